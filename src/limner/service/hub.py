"""The hub in the API process: it listens for workers, and hands events to whoever watches.

Changes of jobs and libraries are read from the ledger, in the order of their numbers: when a worker or this
process says that there are new ones, and every second in any case. Progress comes from the workers and is not
kept. So a watcher misses no change, however slow it is, and gets the newest progress of each job only.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence, Set
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from limner.errors import WorkerUnavailable

from .channel import ChannelClosed, Frame, error_of, make_socket_folder, read_frame
from .events import JobChanged, JobProgress, ServiceEvent
from .subscription import BATCH, EventSource, Reader, Subscription

_LOG = logging.getLogger("limner.hub")

_POLL = 1.0  # seconds between looks at the ledger
_KEPT = 600.0  # seconds that progress is kept without a newer one; a step takes less
_WANTED = 10.0  # seconds for which previews are made after somebody has asked for one
_FOR_A_WORKER = 10.0  # seconds that a call waits for a worker to connect
_MAX_UNSENT = 8 << 20  # bytes that wait to be sent to a worker before it is taken for dead
_TURNS_TO_ACCEPT = 8  # of the event loop, more than asyncio takes from accepting a connection to its task


@dataclass(frozen=True)
class WorkerInfo:
    """A connected worker.

    Attributes:
        id: Its name in the ledger.
        device: Its device: "cpu", "cuda:0" …
        pid: Its process.
        models: Ids of the checkpoints in its memory.
        memory: Bytes: "models", and "limit" for them.
        running: Number of jobs that it has claimed.
        draining: Whether it takes no more jobs.
        problem: Why it cannot work for the moment, such as a full disk.
    """

    id: str
    device: str
    pid: int
    models: tuple[str, ...] = ()
    memory: Mapping[str, int] = field(default_factory=dict)
    running: int = 0
    draining: bool = False
    problem: str | None = None


@dataclass(eq=False)
class _Connection:
    """A worker that is connected."""

    writer: asyncio.StreamWriter
    info: WorkerInfo
    calls: dict[int, "asyncio.Future[Frame]"] = field(default_factory=dict)

    def send(self, frame: Frame) -> None:
        """Send a frame; a worker that does not read is disconnected, and connects again when it can."""
        transport = self.writer.transport
        if transport.get_write_buffer_size() > _MAX_UNSENT:
            transport.abort()
        elif not self.writer.is_closing():
            self.writer.write(frame.encode())


class Hub:
    """Connects the API process with the workers, and its callers with events.

    All methods are for the thread of the event loop, but for `changed`, `wake_workers`, `cancel`,
    `drain` and `end_subscriptions`, which any thread may call.

    Args:
        ledger: Where changes are read from.
        observed: Called with a worker's name and what it has measured.
    """

    def __init__(
        self,
        ledger: EventSource,
        *,
        observed: Callable[[str, Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._reader, self._observed = Reader(ledger), observed
        self._connections: set[_Connection] = set()
        self._subscriptions: set[Subscription] = set()
        self._latest: dict[str, tuple[float, JobProgress]] = {}  # by job, and when it came
        self._wanted: dict[str, float] = {}  # account -> until when previews are made for it
        self._watch = _Watch()
        self._numbers = itertools.count(1)
        self._last = 0  # number of the last event that was handed out
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._arrived = asyncio.Event()  # a worker has connected
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._draining = self._ended = False

    async def start(self, path: Path | None) -> None:
        """Listen for workers on the Unix socket `path`, and read events. None: without workers.

        Raises:
            OutputError: The folder of the socket cannot be created.
        """
        self._loop = asyncio.get_running_loop()
        self._last = await self._reader.last()
        if path is not None:
            make_socket_folder(path)
            with suppress(FileNotFoundError):
                path.unlink()  # of a process that has died; two servers on one folder are refused before
            self._server = await asyncio.start_unix_server(self._serve, path)
            path.chmod(0o600)
        self._run(self._pump())

    async def stop(self) -> None:
        """Disconnect all workers and end all subscriptions."""
        self._end_subscriptions()
        if self._server is not None:
            self._server.close()
        for _ in range(_TURNS_TO_ACCEPT):
            await asyncio.sleep(0)
        for connection in list(self._connections):
            connection.writer.transport.abort()
        while self._tasks:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0)
        self._reader.close()

    @property
    def workers(self) -> tuple[WorkerInfo, ...]:
        """The connected workers, by name."""
        return tuple(sorted((one.info for one in self._connections), key=lambda info: info.id))

    @property
    def stopping(self) -> bool:
        """Whether the service is about to stop: every worker that is connected takes no more jobs."""
        workers = [one.info for one in self._connections]
        return self._draining or (bool(workers) and all(one.draining for one in workers))

    @asynccontextmanager
    async def _subscribed(self, subscription: Subscription) -> AsyncIterator[Subscription]:
        if self._ended or (self._draining and subscription.set_ids is None):
            subscription.close()
        self._subscriptions.add(subscription)
        self._tell_watched()
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            self._tell_watched()

    def subscribe(
        self,
        account_id: str | None,
        *,
        set_ids: Set[str] | None = None,
        after: int | None = None,
        progress: bool = True,
        previews: bool = True,
    ) -> AbstractAsyncContextManager[Subscription]:
        """Watch the jobs of an account, or of all.

            async with hub.subscribe(account_id) as events:
                async for event in events: ...

        Args:
            account_id: The account; None for all.
            set_ids: The sets to watch; None for all. It may change while it is watched.
            after: Number of an event: those after it come first, from the ledger. None: from now on.
            progress: Whether progress is wanted.
            previews: Whether the progress should have previews, which workers make only for those who look.
        """
        return self._subscribed(
            Subscription(
                self._reader,
                account_id,
                set_ids,
                self._last if after is None else after,
                behind=after is not None,
                progress=progress,
                previews=previews,
            )
        )

    def latest(self, job_id: str) -> JobProgress | None:
        """The newest progress of a running job; None if there is none."""
        found = self._latest.get(job_id)
        return None if found is None else found[1]

    def forget(self, account_id: str) -> None:
        """Drop the progress and previews of an account that was erased."""
        self._latest = {job: one for job, one in self._latest.items() if one[1].account_id != account_id}

    def want_previews(self, account_id: str) -> None:
        """Have workers make previews of an account's jobs for a while, for callers that poll `latest`."""
        self._wanted[account_id] = time.monotonic() + _WANTED
        self._tell_watched()

    def changed(self) -> None:
        """The ledger has new events."""
        self._soon(self._news.set)

    def wake_workers(self) -> None:
        """The ledger has new jobs; and so it has new events."""
        self._soon(self._broadcast, Frame("wake", {}))
        self.changed()

    def cancel(self, job_ids: Collection[str]) -> None:
        """Tell the workers at once that jobs are cancelled, as the ledger says already."""
        if job_ids:
            self._soon(self._broadcast, Frame("cancel", {"jobs": list(job_ids)}))
        self.changed()

    def drain(self) -> None:
        """Prepare for the end of the process: end the subscriptions of whole accounts now, and those of sets,
        whose end somebody waits for, when no worker is left."""
        self._soon(self._drain)

    def end_subscriptions(self) -> None:
        """End all subscriptions, and all later ones at once."""
        self._soon(self._end_subscriptions)

    async def call(
        self,
        name: str,
        params: Mapping[str, Any],
        blobs: Sequence[bytes] = (),
        *,
        timeout: float = 60.0,
        worker: str | None = None,
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Call a worker for work that needs networks. `worker_calls.CALLS` lists the calls.

        Args:
            params, blobs: Arguments of the call, as JSON and binary data.
            timeout: Seconds until WorkerUnavailable is raised.
            worker: Name of the worker to call; by default the one with the fewest calls and jobs.

        Returns:
            The answer, as JSON and binary data.

        Raises:
            WorkerUnavailable: No worker is connected, or it did not answer in time.
            LimnerError: What the worker raised.
        """
        deadline = time.monotonic() + timeout
        if worker is None:
            connection = await self._free_worker(min(timeout, _FOR_A_WORKER))
        else:
            connection = self._worker(worker)
        number = next(self._numbers)
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        connection.calls[number] = future
        connection.send(Frame("call", {"id": number, "name": name, "params": dict(params)}, tuple(blobs)))
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                answer = await future
        except TimeoutError:
            raise WorkerUnavailable(
                f"no worker answered {name} within {timeout:g} s", hint="try again later"
            ) from None
        finally:
            connection.calls.pop(number, None)
        if "error" in answer.data:
            raise error_of(answer.data["error"])
        return dict(answer.data["result"]), list(answer.parts)

    def _worker(self, name: str) -> _Connection:
        """A connected worker. Raises WorkerUnavailable."""
        for connection in self._connections:
            if connection.info.id == name:
                return connection
        raise WorkerUnavailable(f"the worker {name} is not connected")

    async def _free_worker(self, timeout: float) -> _Connection:
        """The worker with the fewest calls and jobs, once there is one."""
        deadline = time.monotonic() + timeout
        while True:
            found = [one for one in self._connections if not one.info.draining]
            if found:
                return min(found, key=lambda one: (len(one.calls), one.info.running, one.info.id))
            self._arrived.clear()
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._arrived.wait()
            except TimeoutError:
                raise WorkerUnavailable(
                    "no worker is connected", hint="try again in some seconds; the log says why it is gone"
                ) from None

    def _soon(self, call: Callable[..., object], *args: object) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *args)

    def _run(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _broadcast(self, frame: Frame) -> None:
        for connection in self._connections:
            connection.send(frame)

    def _drain(self) -> None:
        self._draining = True
        for subscription in self._subscriptions:
            if subscription.set_ids is None:
                subscription.close()
        self._news.set()

    def _end_subscriptions(self) -> None:
        self._ended = True
        for subscription in self._subscriptions:
            subscription.close()

    # Events.

    async def _pump(self) -> None:
        """Read new events from the ledger, and hand them out."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL):
                    await self._news.wait()
            self._news.clear()
            self._tell_watched()
            # The last progress of a job may come after its end has been read.
            old = time.monotonic() - _KEPT
            for job_id in [job_id for job_id, (came, _) in self._latest.items() if came < old]:
                del self._latest[job_id]
            try:
                while found := await self._reader.read(None, self._last):
                    self._last = found[-1].seq
                    for change in found:
                        if isinstance(change, JobChanged) and change.change != "started":
                            self._latest.pop(change.job_id, None)
                        self._offer(change)
                    if len(found) < BATCH:
                        break
                if self._draining and not self._connections:
                    self._end_subscriptions()
            except Exception:  # a ledger that cannot be read now is read again
                _LOG.exception("events cannot be read")
                await asyncio.sleep(_POLL)

    def _offer(self, event: ServiceEvent) -> None:
        for subscription in self._subscriptions:
            subscription.offer(event)

    # Workers.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection: _Connection | None = None
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            hello = await read_frame(reader)
            if hello.type != "hello":
                raise ChannelClosed(f"a worker began with {hello.type}")
            connection = _Connection(writer, _info(hello.data))
            self._connections.add(connection)
            self._arrived.set()
            connection.send(self._watch.frame())
            _LOG.info("worker connected", extra={"fields": {"worker": connection.info.id}})
            while True:
                self._take(connection, await read_frame(reader))
        except ChannelClosed as error:
            if connection is not None:
                fields = {"worker": connection.info.id, "reason": str(error)}
                _LOG.info("worker disconnected", extra={"fields": fields})
        except asyncio.CancelledError:
            pass  # the hub ends; raised again, asyncio would print a traceback
        except (KeyError, ValueError, TypeError):
            _LOG.exception("a worker sent a malformed message")
        finally:
            self._tasks.discard(task)
            if connection is not None:
                self._connections.discard(connection)
                for future in connection.calls.values():
                    if not future.done():
                        future.set_exception(WorkerUnavailable("the worker has gone", hint="try again"))
                self._news.set()
            writer.close()

    def _take(self, connection: _Connection, frame: Frame) -> None:
        """Act on a worker's message."""
        data = frame.data
        match frame.type:
            case "changed":
                self._news.set()
            case "progress":
                for progress in _progress(data["jobs"], frame.parts):
                    self._latest[progress.job_id] = (time.monotonic(), progress)
                    self._offer(progress)
            case "state":
                was, connection.info = connection.info, _info(data)
                if was.draining and not connection.info.draining:
                    self._arrived.set()
            case "observed":
                if self._observed is not None:
                    self._observed(connection.info.id, data)
            case "answer":
                future = connection.calls.get(int(data["id"]))
                if future is not None and not future.done():
                    future.set_result(frame)
            case unknown:
                _LOG.warning("a worker sent an unknown message: %s", unknown)

    def _tell_watched(self) -> None:
        """Tell the workers whose previews are wanted, if that has changed."""
        now = time.monotonic()
        self._wanted = {account: until for account, until in self._wanted.items() if until > now}
        looking = [one for one in self._subscriptions if one.previews]
        sets = [one.set_ids for one in looking if one.set_ids is not None]
        accounts = {one.account_id for one in looking if one.set_ids is None}
        watch = _Watch(
            None in accounts,
            frozenset(one for one in accounts if one is not None) | self._wanted.keys(),
            frozenset[str]().union(*sets),
        )
        if watch != self._watch:
            self._watch = watch
            self._broadcast(watch.frame())


@dataclass(frozen=True)
class _Watch:
    """Whose previews are wanted: everybody's, or those of accounts and sets."""

    everybody: bool = False
    accounts: frozenset[str] = frozenset()
    sets: frozenset[str] = frozenset()

    def frame(self) -> Frame:
        """The message for a worker."""
        data = {"all": self.everybody, "accounts": sorted(self.accounts), "sets": sorted(self.sets)}
        return Frame("watch", data)


def _info(data: Mapping[str, Any]) -> WorkerInfo:
    return WorkerInfo(
        id=str(data["worker"]),
        device=str(data["device"]),
        pid=int(data["pid"]),
        models=tuple(map(str, data["models"])),
        memory={str(name): int(size) for name, size in data["memory"].items()},
        running=int(data["running"]),
        draining=bool(data["draining"]),
        problem=data.get("problem"),
    )


def _progress(jobs: Sequence[Mapping[str, Any]], parts: Sequence[bytes]) -> Iterable[JobProgress]:
    for job in jobs:
        part, left = job.get("preview"), job["seconds_left"]
        yield JobProgress(
            account_id=str(job["account_id"]),
            set_id=str(job["set_id"]),
            job_id=str(job["job_id"]),
            index=int(job["index"]),
            step=int(job["step"]),
            steps=int(job["steps"]),
            seconds_left=inf if left is None else float(left),
            batch_size=int(job["batch_size"]),
            preview=None if part is None else parts[part],
            preview_type=str(job.get("preview_type", "image/png")),
        )
