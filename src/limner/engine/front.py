"""The part of an engine that does not generate images: accept requests, count and report them, drain, close.
Without torch."""

import logging
import threading
import time
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf
from types import TracebackType
from typing import Literal, Self

from limner.errors import (
    DeadlineExceeded,
    EngineClosed,
    ImageRefused,
    InternalError,
    InvalidRequest,
    QueueFull,
)
from limner.forks import renew_after_fork
from limner.images.picture import Picture
from limner.images.result import GenerationResult
from limner.request import GenerationRequest
from limner.request.resolve import ResolvedRequest

from .events import (
    Admitted,
    Cancelled,
    Event,
    Failed,
    Finished,
    ImageDone,
    Started,
    StepDone,
    Subscriber,
    event_data,
)
from .handle import Handle, Progress
from .protocol import EngineProtocol, Stats

_LOG = logging.getLogger("limner.engine")
ARRIVALS = count()  # numbers requests as they arrive; the engines of a device share one queue

Ending = Literal["done", "failed", "cancelled"]


@dataclass(eq=False)
class Job:
    """A request in an engine.

    Attributes:
        handle: The handle that its caller has.
        rank: Place in the queue: priority, the highest first, then age.
        deadline: Time at which it fails, in seconds of `time.monotonic`.
        admitted: Time at which it was accepted.
        started: Time at which its first image began; 0.0 before.
        waits: Whether some of its images have not begun.
        ended: Whether the engine has ended it; its handle may end earlier, when it is cancelled.
        pictures: Finished images by index, from 0.
        withheld: Images that the safety policy blocks, by index, from 0.
        device_seconds: Its share of all forward passes that it took part in.
    """

    handle: Handle
    rank: tuple[int, int]
    deadline: float
    admitted: float = field(default_factory=time.monotonic)
    started: float = 0.0
    waits: bool = True
    ended: bool = False
    pictures: dict[int, Picture] = field(default_factory=dict)
    withheld: dict[int, ImageRefused] = field(default_factory=dict)
    device_seconds: float = 0.0

    @property
    def id(self) -> str:
        return self.handle.id

    @property
    def complete(self) -> bool:
        """Whether each image is finished, withheld or cancelled."""
        ended = len(self.pictures) + len(self.withheld) + len(self.handle.cancelled_images)
        return ended >= self.handle.request.num_images


class Desk:
    """The unfinished requests of an engine, and its statistics. Safe to use from any thread.

    Args:
        max_waiting: Number of requests that may wait at once.
        subscribers: Called with each event. An exception that it raises is logged and has no other effect.
    """

    def __init__(self, max_waiting: int, subscribers: Sequence[Subscriber]) -> None:
        self._max_waiting, self._subscribers = max_waiting, tuple(subscribers)
        self._changed = threading.Condition()
        # Guarded by `_changed`:
        self._jobs: dict[str, Job] = {}  # all that have not ended, by id
        self._closed = False
        self._waiting = self._running = 0
        self._ended: Counter[Ending] = Counter()
        self._forwards: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self._pass_seconds: defaultdict[str, float] = defaultdict(float)
        renew_after_fork(self)

    def accept(self, job: Job) -> None:
        """Take a job. Raises as `EngineProtocol.submit`."""
        with self._changed:
            if self._closed:
                raise EngineClosed("this engine takes no more requests", hint="make a new one")
            if self._waiting >= self._max_waiting:
                raise QueueFull(
                    f"{self._max_waiting} requests are waiting already", hint="try again when some are done"
                )
            if job.id in self._jobs:
                raise InvalidRequest(f"an unfinished request has the id {job.id!r}", hint="choose another")
            self._jobs[job.id] = job
            self._waiting += 1
        self.publish(Admitted(job=job.id, images=job.handle.request.num_images, priority=-job.rank[0]))

    def close(self) -> list[Job]:
        """Take no more jobs, and return those that have not ended."""
        with self._changed:
            self._closed = True
            return list(self._jobs.values())

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all jobs have ended. False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs, timeout)

    def stats(self) -> Stats:
        """What has been done so far."""
        with self._changed:
            return Stats(
                waiting=self._waiting,
                running=self._running,
                forwards=dict(self._forwards),
                rows=dict(self._rows),
                pass_seconds=dict(self._pass_seconds),
                done=self._ended["done"],
                failed=self._ended["failed"],
                cancelled=self._ended["cancelled"],
            )

    def publish(self, event: Event) -> None:
        """Log an event, and hand it to all subscribers."""
        level = logging.DEBUG if isinstance(event, StepDone) else logging.INFO
        if _LOG.isEnabledFor(level):
            _LOG.log(level, event.kind, extra={"fields": event_data(event)})
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                _LOG.exception("a subscriber failed on the event %r of job %s", event.kind, event.job)

    def count_passes(self, kind: str, calls: Sequence[int], seconds: float) -> None:
        """Count forward passes.

        Args:
            kind: Kind of the calls.
            calls: Number of this engine's calls that each pass answered.
            seconds: This engine's share of their time.
        """
        with self._changed:
            self._forwards[kind] += len(calls)
            self._rows[kind] += sum(calls)
            self._pass_seconds[kind] += seconds

    def image_begins(self, job: Job) -> None:
        """Count an image that begins."""
        with self._changed:
            self._running += 1
        if not job.started:
            job.started = time.monotonic()
            self.publish(Started(job=job.id, seconds=job.started - job.admitted))

    def image_leaves(self) -> None:
        """Count an image that is finished or dropped."""
        with self._changed:
            self._running -= 1

    def all_begun(self, job: Job) -> None:
        """Note that all images of a job have begun, so that it no longer waits."""
        with self._changed:
            if job.waits:
                job.waits = False
                self._waiting -= 1

    def image_done(self, job: Job, progress: Progress, batch_size: int, device_seconds: float) -> None:
        """Keep a finished image, unless it has been cancelled."""
        assert progress.picture is not None
        if job.ended or not job.handle.publish(progress):
            return
        job.pictures[progress.image - 1] = progress.picture
        self.publish(
            ImageDone(
                job=job.id,
                image=progress.image,
                batch_size=batch_size,
                device_seconds=device_seconds,
                picture=progress.picture,
            )
        )

    def finish(self, job: Job, request: GenerationRequest) -> None:
        """End a job that is complete. It fails if all its images are withheld.

        Args:
            request: The resolved request.
        """
        if job.withheld and not job.pictures:
            self.fail(job, next(iter(job.withheld.values())))
            return
        images = tuple(picture for _, picture in sorted(job.pictures.items()))
        lacks = {image: f"image {image} was cancelled" for image in job.handle.cancelled_images}
        lacks |= {index + 1: f"image {index + 1} is withheld: {why}" for index, why in job.withheld.items()}
        warnings = dict.fromkeys(warning for image in images for warning in image.record.warnings)
        missing = tuple(sorted(lacks))
        told = tuple(lacks[image] for image in missing)
        job.handle.finish(GenerationResult(images, request, (*warnings, *told), missing))
        self._end(job, "cancelled" if job.handle.cancelled() else "done")

    def drop(self, job: Job) -> bool:
        """End a job that was cancelled or is late. False if it is neither."""
        if job.handle.done():
            self._end(job, "cancelled")
        elif time.monotonic() > job.deadline:
            self.fail(job, DeadlineExceeded("the request was not finished before its timeout"))
        else:
            return False
        return True

    def fail(self, job: Job, error: Exception) -> None:
        """End a job with an error, unless it has ended."""
        if job.ended:
            return
        if isinstance(error, InternalError):
            _LOG.error("job %s failed: %s", job.id, error, exc_info=error)
        job.handle.fail(error)
        self._end(job, "failed", error)

    def _end(self, job: Job, how: Ending, error: Exception | None = None) -> None:
        if job.ended:
            return
        job.ended = True
        self.all_begun(job)
        spent = job.device_seconds
        if error is not None:
            self.publish(Failed(job=job.id, error=error, device_seconds=spent))
        elif how == "cancelled":
            self.publish(Cancelled(job=job.id, image=None, device_seconds=spent))
        else:
            seconds = time.monotonic() - job.admitted
            self.publish(
                Finished(job=job.id, images=len(job.pictures), seconds=seconds, device_seconds=spent)
            )
        with self._changed:
            self._ended[how] += 1
            del self._jobs[job.id]
            self._changed.notify_all()

    def renew(self) -> None:
        """In a forked process: fail the jobs, which the parent process runs, and begin without any."""
        jobs, self._changed = list(self._jobs.values()), threading.Condition()
        self._jobs, self._waiting, self._running = {}, 0, 0
        for job in jobs:
            job.ended = True
            job.handle.abandon(EngineClosed("the request runs in the process that this one was forked from"))


class Front(EngineProtocol):
    """An engine without what generates the images; subclasses start that in `_start`.

    Args:
        desk: Its requests.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def submit(
        self,
        request: GenerationRequest | ResolvedRequest,
        *,
        id: str | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Handle:
        resolved = request if isinstance(request, ResolvedRequest) else None
        asked = request.request if isinstance(request, ResolvedRequest) else request
        handle = Handle(asked, id, resolved=resolved, wake=self._wake)
        deadline = inf if timeout is None else time.monotonic() + timeout
        self._start(handle, (-priority, next(ARRIVALS)), deadline)
        return handle

    def stats(self) -> Stats:
        return self._desk.stats()

    def drain(self, timeout: float | None = None) -> bool:
        self._desk.close()
        return self._desk.wait(timeout)

    def close(self) -> list[Handle]:
        cancelled = [job.handle for job in self._desk.close() if job.handle.cancel()]
        if not self._is_own_thread():
            self._desk.wait()
        return cancelled

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if error is None:
            self.drain()
        else:
            self.close()

    @abstractmethod
    def _start(self, handle: Handle, rank: tuple[int, int], deadline: float) -> None:
        """Have the desk accept a job, and run it in another thread."""

    @abstractmethod
    def _wake(self) -> None:
        """Look at all jobs again, as one has been cancelled or has ended."""

    @abstractmethod
    def _is_own_thread(self) -> bool:
        """Whether this is the thread that generates the images."""
