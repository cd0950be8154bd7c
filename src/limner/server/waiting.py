"""Waiting for sets of jobs, following them, and delivering their images: what every API needs.

A call that waits owns what it waits for: when its client hangs up, or the service stops before the end, and
nobody else waits for the set, the jobs that have not ended are cancelled.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.requests import Request

from limner.errors import DeadlineExceeded, EngineClosed, InvalidRequest
from limner.service.encoding import Encoding
from limner.service.events import JobChanged, ServiceEvent
from limner.service.intake import service_stops
from limner.service.jobs import FINAL_STATES, ImageFile, JobSet, StoredImage
from limner.service.ledger.ending import CLIENT_GONE

from .state import ServerState, in_thread

LOOK_SECONDS = 2.0  # between looks at the ledger where no event says that a set has ended

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
"""Formats that images are delivered in -> media type."""


class ClientDisconnected(Exception):
    """The client of a request has hung up, so that nobody reads the answer."""


async def finished_set(
    state: ServerState,
    set_id: str,
    *,
    request: Request | None = None,
    owned: bool = True,
    timeout: float | None = None,
) -> JobSet:
    """Wait until all jobs of a set have ended, and return it.

    Args:
        request: Request that waits. Where its client hangs up, waiting ends.
        owned: Whether the jobs are then cancelled, and when the service stops, unless others wait for the
            set.
        timeout: Seconds to wait at most; by default those of the settings.

    Raises:
        ClientDisconnected: The client of `request` has hung up.
        DeadlineExceeded: The time is up; the jobs go on.
        EngineClosed: The service is about to stop.
    """

    async def ended() -> JobSet:
        async for _ in follow(state, set_id, progress=False):
            pass
        return await in_thread(state.ledger.get_set, set_id)

    seconds = state.settings.wait_seconds if timeout is None else timeout
    async with waiting_for(state, set_id, owned=owned):
        try:
            async with asyncio.timeout(seconds):
                return await until_disconnect(request, ended())
        except TimeoutError:
            raise DeadlineExceeded(
                f"the images were not done within {seconds:g} s",
                hint="they are still being generated: look for them under the id of the set",
            ) from None


@asynccontextmanager
async def waiting_for(state: ServerState, set_id: str, *, owned: bool = True) -> AsyncIterator[None]:
    """Context in which a request waits for a set.

    If it is left by ClientDisconnected, EngineClosed, the cancellation of its task or a closed generator, the
    set's jobs are cancelled, unless another request waits for them.

    Args:
        owned: Whether to cancel jobs.
    """
    state.waiting[set_id] = state.waiting.get(set_id, 0) + 1
    try:
        yield
    except (ClientDisconnected, EngineClosed, asyncio.CancelledError, GeneratorExit):
        if owned and state.waiting[set_id] == 1:
            await asyncio.shield(_cancel(state, set_id))
        raise
    finally:
        state.waiting[set_id] -= 1
        if not state.waiting[set_id]:
            del state.waiting[set_id]


async def until_disconnect(request: Request | None, work: Coroutine[Any, Any, JobSet]) -> JobSet:
    """The result of `work`, which is stopped where the client of `request` hangs up.

    The body of the request must have been read.

    Raises:
        ClientDisconnected: The client has hung up.
    """
    if request is None:
        return await work
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnected
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def follow(
    state: ServerState, set_id: str, *, progress: bool = True, previews: bool = False
) -> AsyncGenerator[ServiceEvent]:
    """The events of a set from now on; ends when all its jobs have ended, at once if they have ended already.

    Args:
        progress: Whether the steps of jobs are among them.
        previews: Whether the steps have previews, which workers make only while somebody watches.

    Raises:
        EngineClosed: The server is about to stop.
    """
    watched = state.hub.subscribe(None, set_ids={set_id}, progress=progress, previews=previews)
    async with watched as events:
        open_jobs, looked = await _open_jobs(state, set_id), time.monotonic()
        while open_jobs:
            found = await events.batch(max(0.0, looked + LOOK_SECONDS - time.monotonic()))
            if found is None:
                raise service_stops()
            for event in found:
                if isinstance(event, JobChanged) and event.change in FINAL_STATES:
                    open_jobs.discard(event.job_id)
                yield event
            if time.monotonic() >= looked + LOOK_SECONDS:
                open_jobs, looked = await _open_jobs(state, set_id), time.monotonic()


async def delivered(
    state: ServerState, image: ImageFile | StoredImage, *, format: str = "png", quality: int | None = None
) -> bytes:
    """The bytes of an image as a client gets them, with the watermark, the record and the signature.

    Args:
        format: "png", "jpeg" or "webp".
        quality: Of JPEG and WebP, from 0 to 100. Default: the encoder's.

    Raises:
        InvalidRequest: Another format.
    """
    if format not in MEDIA_TYPES:
        raise InvalidRequest(f"format is {format!r}; expected {', '.join(MEDIA_TYPES)}", fields=("format",))
    return await in_thread(state.release.file, image, Encoding(format, quality))


def file_tag(state: ServerState, image: ImageFile | StoredImage, format: str, quality: int | None) -> str:
    """Entity tag of what `delivered` returns; a weak one where the bytes differ each time."""
    if format == "png":
        return f'"{image.file_sha256}"'
    return f'{"W/" if state.release.signs else ""}"{image.file_sha256}-{format}-{quality}"'


async def _open_jobs(state: ServerState, set_id: str) -> set[str]:
    """Ids of the jobs of a set that have not ended."""
    current = await in_thread(state.ledger.get_set, set_id)
    return {job.id for job in current.jobs if job.state not in FINAL_STATES}


async def _disconnected(request: Request) -> None:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return


async def _cancel(state: ServerState, set_id: str) -> None:
    affected = await in_thread(state.ledger.cancel, account_id=None, set_id=set_id, because=CLIENT_GONE)
    state.hub.cancel(affected)
