"""What one watcher of the hub gets: every change, however slow it is, and the newest progress of each job."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from .events import JobChanged, JobProgress, LedgerEvent, ServiceEvent

BATCH = 500  # events that are read at once
QUEUED = 1000  # changes that wait for one watcher; it reads further ones from the ledger


class EventSource(Protocol):
    """What the hub needs of the ledger."""

    def events(self, account_id: str | None, *, after: int, limit: int = 500) -> list[LedgerEvent]:
        """The events of an account, or of all, with higher numbers."""

    def last_event(self) -> int:
        """Number of the last event; 0 if there is none."""


class Subscription:
    """The events that one watcher gets: `async for event in subscription`. It ends when the hub stops."""

    def __init__(
        self,
        source: "Reader",
        account_id: str | None,
        set_ids: Set[str] | None,
        position: int,
        *,
        behind: bool,
        progress: bool,
        previews: bool,
    ) -> None:
        self.account_id, self.set_ids, self.previews = account_id, set_ids, progress and previews
        self._source, self._with_progress = source, progress
        self._changes: deque[LedgerEvent] = deque()
        self._progress: dict[str, JobProgress] = {}  # the newest of each job
        self._position = position  # number of the last change that was read
        self._behind = behind  # further changes are in the ledger, and not in `_changes`
        self._closed = False
        self._news = asyncio.Event()

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> ServiceEvent:
        while True:
            if self._changes:
                change = self._changes.popleft()
                self._position = max(self._position, change.seq)
                return change
            if self._behind and not self._closed:
                await self._catch_up()
            elif self._progress:
                return self._progress.pop(next(iter(self._progress)))
            elif self._closed:
                raise StopAsyncIteration
            else:
                self._news.clear()
                await self._news.wait()

    async def batch(
        self, timeout: float, *, turn: Callable[[], Awaitable[None]] | None = None
    ) -> list[ServiceEvent] | None:
        """All events that are there, in the order in which iterating yields them.

        Args:
            turn: Waited for before events are taken: what comes meanwhile is taken with them.

        Returns:
            At least one event; none where none has come for `timeout` seconds; None once there are no more.
        """
        while True:
            if turn is not None and (self._changes or self._progress):
                await turn()
            found: list[ServiceEvent] = list(self._changes)
            if self._changes:
                self._position = max(self._position, self._changes[-1].seq)
                self._changes.clear()
            if not self._behind or self._closed:
                found += self._progress.values()
                self._progress.clear()
            if found:
                return found
            if self._closed:
                return None
            if self._behind:
                await self._catch_up()
                continue
            self._news.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._news.wait()
            except TimeoutError:
                return []

    def offer(self, event: ServiceEvent) -> None:
        """For the hub: take an event, if it is wanted."""
        if self.account_id not in (None, event.account_id) or not self._has(event):
            return
        if isinstance(event, JobProgress):
            if not self._with_progress:
                return
            self._progress[event.job_id] = event
        else:
            if isinstance(event, JobChanged):
                self._progress.pop(event.job_id, None)
            if self._behind or event.seq <= self._position:
                return  # it will be read from the ledger, or was read there before the hub had it
            if len(self._changes) >= QUEUED:
                self._behind = True
                return
            self._changes.append(event)
        self._news.set()

    def close(self) -> None:
        """End the iteration, once what has come in is read."""
        self._closed = True
        self._news.set()

    def _has(self, event: ServiceEvent) -> bool:
        """Whether an event is of the sets that are watched. Those of a library are of none."""
        if self.set_ids is None:
            return True
        return isinstance(event, JobChanged | JobProgress) and event.set_id in self.set_ids

    async def _catch_up(self) -> None:
        self._behind = False  # from here on changes come in, which may be read from the ledger as well
        found = await self._source.read(self.account_id, self._position)
        wanted = [one for one in found if self._has(one)]
        arrived, self._changes = self._changes, deque(wanted)
        if found:
            self._position = found[-1].seq
        if len(found) >= BATCH:
            self._behind = True  # what has arrived will be read in its turn
        else:
            self._changes += [one for one in arrived if one.seq > self._position]


class Reader:
    """Reads events from the ledger in a thread."""

    def __init__(self, ledger: EventSource) -> None:
        self._ledger = ledger
        self._thread = ThreadPoolExecutor(1, "limner-events")

    async def read(self, account_id: str | None, after: int) -> list[LedgerEvent]:
        """The next events after a number, at most `BATCH`."""

        def read() -> list[LedgerEvent]:
            return self._ledger.events(account_id, after=after, limit=BATCH)

        return await asyncio.get_running_loop().run_in_executor(self._thread, read)

    async def last(self) -> int:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._ledger.last_event)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
