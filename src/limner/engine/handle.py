"""A request in an engine, as its caller sees it."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from limner.errors import InvalidRequest, UnsupportedModel
from limner.images.picture import Picture
from limner.images.result import GenerationResult
from limner.request import GenerationRequest
from limner.request.resolve import ResolvedRequest

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from limner.generation.preview import LatentPreview

_LOG = logging.getLogger("limner.engine")

Listener = Callable[["Progress | None"], None]


@dataclass(frozen=True, eq=False)
class Progress:
    """The state of a request after a step.

    Attributes:
        image: Number of the image, from 1.
        images: Number of images of the request.
        step: Number of the step that the image has just taken, from 1.
        steps: Number of steps of the image.
        latents: Estimate of the clean latents [1, C, h, w] at this step; None from a `FakeEngine`, and where
            a safety policy has rules about images.
        seconds_left: Estimate of the seconds until the whole request is done, at the pace so far.
        picture: The image once it is finished; then step == steps.
        preview_map: The model's map from latents to colours; None if it has none.
    """

    image: int
    images: int
    step: int
    steps: int
    latents: "Tensor | None" = field(repr=False)
    seconds_left: float
    picture: Picture | None = None
    preview_map: "LatentPreview | None" = field(default=None, repr=False)

    def preview(self) -> "Image.Image":
        """A preview of the latents, with one pixel for each: about the image's colours, without the decoder.

        Raises:
            UnsupportedModel: The model has no map for previews, or there are no latents.
        """
        if self.latents is None or self.preview_map is None:
            raise UnsupportedModel(
                "this model has no previews of latents",
                hint="fit a map with `LatentPreview.fit` and write it to limner.json as `preview`; under a "
                "safety policy with rules about images there are no previews",
            )
        from PIL import Image

        return Image.fromarray(self.preview_map(self.latents)[0].numpy())

    def reduced(self, side: int) -> "Progress":
        """The same step with latents of at most `side` x `side`, each kept or left out. They are a copy."""
        if self.latents is None:
            return self
        stride = -(-max(self.latents.shape[-2:]) // side)
        return replace(self, latents=self.latents[..., ::stride, ::stride].clone())


class Handle:
    """A submitted request. Safe to use from any thread, and from asyncio.

        for progress in handle: ...        # and `async for`
        result = handle.result()           # and `await handle`

    Iterating yields the images that are finished already, then every step, and ends when the request ends;
    `result` then returns its images or raises its error.

    Attributes:
        request: The request as it was submitted.
        resolved: What it was resolved to before; None where the engine resolves it.
        id: Name of the request in events and logs.
    """

    def __init__(
        self,
        request: GenerationRequest,
        id: str | None = None,
        *,
        resolved: ResolvedRequest | None = None,
        wake: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            resolved: The request as it was resolved, if it was.
            wake: Called when the request has ended, and when one of its images is cancelled.
        """
        self.request, self.resolved = request, resolved
        self.id = uuid4().hex if id is None else id
        self._wake = wake
        self._future: Future[GenerationResult] = Future()
        self._lock = Lock()
        self._finished: dict[int, Progress] = {}  # by image
        self._cancelled = frozenset[int]()
        self._listeners: list[Listener] = []
        self._undelivered: deque[tuple[Listener, Progress | None]] = deque()
        self._delivering = False
        self._future.add_done_callback(self._end)

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Wait for the images. Those that were cancelled one by one, or that the safety policy withholds, are
        missing, and a warning says so.

        Raises:
            LimnerError: Why the request failed.
            concurrent.futures.CancelledError: The request was cancelled.
            TimeoutError: The request is not finished after `timeout` seconds; it continues.
        """
        return self._future.result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and return what `result` would raise, or None; CancelledError and TimeoutError are raised."""
        return self._future.exception(timeout)

    def cancel(self, image: int | None = None) -> bool:
        """Stop the request, or one image of it, within a step. False if it was done or cancelled already.

        Cancelling every image of a request cancels the request.

        Args:
            image: Number of an image, from 1.

        Raises:
            InvalidRequest: The request has no such image.
        """
        if image is None:
            return self._future.cancel()
        if not 1 <= image <= self.request.num_images:
            raise InvalidRequest(f"image is {image}; the request has images 1 to {self.request.num_images}")
        with self._lock:
            if self._future.done() or image in self._finished or image in self._cancelled:
                return False
            self._cancelled |= {image}
            last = len(self._cancelled) == self.request.num_images
        if last:
            return self._future.cancel()
        if self._wake is not None:
            self._wake()
        return True

    def done(self) -> bool:
        """Whether the request has ended: finished, failed or cancelled."""
        return self._future.done()

    def cancelled(self) -> bool:
        """Whether the request as a whole was cancelled."""
        return self._future.cancelled()

    @property
    def cancelled_images(self) -> frozenset[int]:
        """Numbers of the images that were cancelled one by one."""
        return self._cancelled

    def __iter__(self) -> Iterator[Progress]:
        events: SimpleQueue[Progress | None] = SimpleQueue()
        self.listen(events.put)
        try:
            while (event := events.get()) is not None:
                yield event
        finally:
            self.leave(events.put)

    async def __aiter__(self) -> AsyncIterator[Progress]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Progress | None] = asyncio.Queue()

        def listen(event: Progress | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        self.listen(listen)
        try:
            while (event := await events.get()) is not None:
                yield event
        finally:
            self.leave(listen)

    def __await__(self) -> Generator[Any, None, GenerationResult]:
        return asyncio.wrap_future(self._future).__await__()

    def when_done(self, call: Callable[[], None]) -> None:
        """Call a function once the request has ended, in the thread that ends it; at once if it has."""
        self._future.add_done_callback(lambda _: call())

    def listen(self, listener: Listener) -> None:
        """Have a function called with what iterating would yield, in the thread where it happens, and with
        None at the end. It must return quickly, and may call any method of the handle that does not wait. An
        exception that it raises is logged and has no other effect."""
        with self._lock:
            self._undelivered.extend((listener, progress) for progress in self._finished.values())
            if self._future.done():
                self._undelivered.append((listener, None))
            else:
                self._listeners.append(listener)
        self._deliver()

    def leave(self, listener: Listener) -> None:
        """Have a function that `listen` was given called no more."""
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)
            self._undelivered = deque(one for one in self._undelivered if one[0] != listener)

    def publish(self, progress: Progress) -> bool:
        """For the engine: hand progress to all listeners. False, and no effect, if the image is cancelled."""
        with self._lock:
            if progress.image in self._cancelled:
                return False
            if progress.picture is not None:
                self._finished[progress.image] = progress
            self._undelivered.extend((listener, progress) for listener in self._listeners)
        self._deliver()
        return True

    def finish(self, result: GenerationResult) -> None:
        """For the engine: the images are finished. No effect if the request has ended."""
        if not self._future.done() and self._future.set_running_or_notify_cancel():
            self._future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """For the engine: the request has failed. No effect if it has ended."""
        if not self._future.done() and self._future.set_running_or_notify_cancel():
            self._future.set_exception(error)

    def abandon(self, error: BaseException) -> None:
        """For the engine: fail in a forked process, where threads that are not copied may hold locks."""
        self._lock, self._listeners, self._future = Lock(), [], Future()
        self._undelivered, self._delivering = deque(), False
        self._future.set_exception(error)

    def _end(self, _: object) -> None:
        with self._lock:
            self._undelivered.extend((listener, None) for listener in self._listeners)
            self._listeners.clear()
        self._deliver()
        if self._wake is not None:
            self._wake()

    def _deliver(self) -> None:
        """Call listeners with what they have not been told, in order and without the lock. One thread does so
        at a time, and takes over what others add."""
        while True:
            with self._lock:
                if self._delivering or not self._undelivered:
                    return
                self._delivering = True
                listener, progress = self._undelivered.popleft()
            try:
                listener(progress)
            except Exception:
                _LOG.exception("a listener of job %s failed", self.id)
            finally:
                with self._lock:
                    self._delivering = False
