"""The stream of a request for images: previews while they are drawn, and each image when it is done."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Self

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from limner.errors import LimnerError
from limner.request import GenerationRequest
from limner.server.state import ServerState, in_thread
from limner.server.waiting import delivered, follow, waiting_for
from limner.service.events import JobChanged, JobProgress, ServiceEvent
from limner.service.jobs import Job, JobSet, StoredImage

from .answers import (
    PING,
    completed_event,
    error_event,
    failure_of,
    in_base64,
    partial_event,
    partial_file,
    quality_of,
    usage_of,
)
from .errors import api_error
from .translate import ImageCall

PING_SECONDS = 10.0
"""Seconds without an event after which a comment is sent."""


@dataclass
class ImageStream:
    """The events of one request.

    Attributes:
        accepted: Its set of jobs.
        count: Number of tokens of an image's prompts.
    """

    state: ServerState
    call: ImageCall
    accepted: JobSet
    count: Callable[[StoredImage], int]
    _partials: dict[str, int] = field(default_factory=dict, init=False)  # job -> previews that were sent
    _sent: set[str] = field(default_factory=set, init=False)  # jobs whose image was sent

    async def lines(self) -> AsyncGenerator[bytes]:
        """The text of the stream, in pieces, of which the first is empty. It always ends with completed
        events, or with an error.

        Where it is closed after the first piece and before its end, as by a client that hangs up, the jobs
        are cancelled.
        """
        try:
            async with waiting_for(self.state, self.accepted.id), aclosing(self._events()) as events:
                yield b""
                async for text in events:
                    yield text
        except LimnerError as error:
            yield error_event(api_error(error, self.call.sources))

    async def _events(self) -> AsyncGenerator[bytes]:
        """The text of all events but an error that ends waiting."""
        set_id = self.accepted.id
        followed = follow(self.state, set_id, previews=self.call.partial_images > 0)
        async with aclosing(followed), aclosing(_with_pings(followed)) as events:
            async for event in events:
                if event is None:
                    yield PING
                elif isinstance(event, JobProgress):
                    async for text in self._partial(event):
                        yield text
                elif isinstance(event, JobChanged) and event.change == "done":
                    job = await in_thread(self.state.ledger.get_job, event.job_id)
                    async for text in self._completed(job):
                        yield text
        finished = await in_thread(self.state.ledger.get_set, set_id)
        for job in finished.jobs:  # those that ended before the first event was awaited
            async for text in self._completed(job):
                yield text
        if (failure := failure_of(finished)) is not None:
            yield error_event(failure)

    async def _partial(self, progress: JobProgress) -> AsyncIterator[bytes]:
        """A preview, where it is time for one: they are spread over the steps."""
        sent, most = self._partials.get(progress.job_id, 0), self.call.partial_images
        if progress.preview is None or sent >= most or progress.job_id in self._sent:
            return
        if progress.step / progress.steps < (sent + 0.5) / (most + 1):
            return
        job = next(one for one in self.accepted.jobs if one.id == progress.job_id)
        request = GenerationRequest.of(job.params)
        size = request.hires_size or (request.width or 0, request.height or 0)
        yield await self._partial_text(progress.job_id, progress.index, progress.preview, size)

    async def _completed(self, job: Job) -> AsyncIterator[bytes]:
        """The event of a finished image, once. Where it was done before any preview came, it is its own."""
        image = job.image
        if image is None or job.id in self._sent:
            return
        self._sent.add(job.id)
        call = self.call
        if call.partial_images and not self._partials.get(job.id):
            file = await in_thread(self.state.release.file, image)
            yield await self._partial_text(job.id, job.index, file, (image.width, image.height))
        content = await content_of(self.state, call, image)
        usage = usage_of(call, [image], await in_thread(self.count, image))
        yield completed_event(call, job.index, image, content, usage, self.accepted.warnings)

    async def _partial_text(self, job_id: str, index: int, preview: bytes, size: tuple[int, int]) -> bytes:
        number = self._partials[job_id] = self._partials.get(job_id, 0) + 1
        call = self.call
        file = await in_thread(partial_file, preview, size, call.output_format, call.output_compression)
        return partial_event(call, index, number - 1, in_base64(file), size)


class EventStream(StreamingResponse):
    """An answer with the events of a request. However it ends, its lines are closed."""

    @classmethod
    async def begun(cls, stream: ImageStream) -> Self:
        """The answer with a stream that has begun, so that hanging up before its first event is noticed."""
        lines = stream.lines()
        await anext(lines)
        return cls(lines, media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            lines: Any = self.body_iterator
            await lines.aclose()


async def content_of(state: ServerState, call: ImageCall, image: StoredImage) -> str:
    """The file of an image in base64."""
    quality = quality_of(call.output_format, call.output_compression).get("quality")
    data = await delivered(state, image, format=call.output_format, quality=quality)
    return await in_thread(in_base64, data)


async def _with_pings(events: AsyncIterator[ServiceEvent]) -> AsyncGenerator[ServiceEvent | None]:
    """The events, and None where none has come for a while."""
    pending: asyncio.Task[ServiceEvent] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(_next(events))
            await asyncio.wait((pending,), timeout=PING_SECONDS)
            if not pending.done():
                yield None
                continue
            task, pending = pending, None
            try:
                event = task.result()
            except StopAsyncIteration:
                return
            yield event
    finally:
        if pending is not None:
            pending.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await pending


async def _next(events: AsyncIterator[ServiceEvent]) -> ServiceEvent:
    return await anext(events)
