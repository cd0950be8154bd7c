"""A request on its way through an engine, as whoever made it sees it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Lock
from typing import Any

from torch import Tensor

from limner.request import GenerationRequest

from .metadata import Picture
from .result import GenerationResult

Listener = Callable[["Progress | None"], None]


@dataclass(frozen=True, eq=False)
class Progress:
    """Where a request stands.

    Attributes:
        image, images: which of its pictures this tells of, from 1, and how many there are.
        step, steps: which of the picture's steps was just taken.
        latents: the estimate of the clean latents [1, C, h, w] at this step.
        seconds_left: until the whole request is done, at the pace so far.
        picture: when it is finished, with step == steps.
    """

    image: int
    images: int
    step: int
    steps: int
    latents: Tensor = field(repr=False)
    seconds_left: float
    picture: Picture | None = None


class Handle:
    """A request that was submitted. Safe to use from any thread, and from asyncio.

        for progress in handle: ...        # and `async for`
        result = handle.result()           # and `await handle`

    Iterating gives the pictures that are finished already, then what happens from there on, and ends when
    the request does, however that is; `result` tells how.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self._future: Future[GenerationResult] = Future()
        self._lock = Lock()
        self._finished: list[Progress] = []
        self._listeners: list[Listener] = []
        self._future.add_done_callback(lambda _: self._tell_end())

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Wait for the pictures.

        Raises:
            LimnerError: what became of the request instead.
            concurrent.futures.CancelledError: it was cancelled.
            TimeoutError: it is not done after `timeout` seconds; it goes on.
        """
        return self._future.result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and return what `result` would raise, or None; CancelledError and TimeoutError are raised."""
        return self._future.exception(timeout)

    def cancel(self) -> bool:
        """Stop within a step. False if it was done already."""
        return self._future.cancel()

    def done(self) -> bool:
        """Whether it has ended: drawn, failed or cancelled."""
        return self._future.done()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._future.cancelled()

    def __iter__(self) -> Iterator[Progress]:
        events: SimpleQueue[Progress | None] = SimpleQueue()
        self._listen(events.put)
        try:
            while (event := events.get()) is not None:
                yield event
        finally:
            self._leave(events.put)

    async def __aiter__(self) -> AsyncIterator[Progress]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Progress | None] = asyncio.Queue()

        def tell(event: Progress | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        self._listen(tell)
        try:
            while (event := await events.get()) is not None:
                yield event
        finally:
            self._leave(tell)

    def __await__(self) -> Generator[Any, None, GenerationResult]:
        return asyncio.wrap_future(self._future).__await__()

    def when_done(self, call: Callable[[], None]) -> None:
        """Call this, from whatever thread ends the request, once it has ended; at once if it has."""
        self._future.add_done_callback(lambda _: call())

    def publish(self, progress: Progress) -> None:
        """For the engine: tell everybody who listens."""
        with self._lock:
            if progress.picture is not None:
                self._finished.append(progress)
            for listener in self._listeners:
                listener(progress)

    def finish(self, result: GenerationResult) -> None:
        """For the engine: the pictures are drawn. No effect if the request has ended."""
        if not self._future.done() and self._future.set_running_or_notify_cancel():
            self._future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """For the engine: it cannot be done. No effect if the request has ended."""
        if not self._future.done() and self._future.set_running_or_notify_cancel():
            self._future.set_exception(error)

    def _listen(self, listener: Listener) -> None:
        with self._lock:
            for progress in self._finished:
                listener(progress)
            if self._future.done():
                listener(None)
            else:
                self._listeners.append(listener)

    def _leave(self, listener: Listener) -> None:
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)

    def _tell_end(self) -> None:
        with self._lock:
            for listener in self._listeners:
                listener(None)
            self._listeners.clear()
