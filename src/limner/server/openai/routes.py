"""The routes of OpenAI's API under /v1."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.routing import APIRoute
from starlette.datastructures import UploadFile
from starlette.responses import Response

from limner.catalogue.catalogue import Entry
from limner.errors import Conflict, LimnerError, NotFound
from limner.request import GenerationRequest
from limner.request.resolve import STEPS
from limner.server.auth import Reader, Submitter
from limner.server.bodies import check_texts, read_json
from limner.server.problems import Problem, SafeJSON
from limner.server.ranges import REVALIDATED, answered
from limner.server.state import ServerState, in_decoder, in_thread, state_of
from limner.server.waiting import MEDIA_TYPES, delivered, file_tag, finished_set
from limner.service.identity import Principal
from limner.service.jobs import JobSet, StoredImage
from limner.service.ledger.ending import CLIENT_GONE

from .answers import failure_of, images_answer, quality_of, usage_of
from .bodies import Body, File, file_in, read_form, read_object
from .description import body, image_responses, responses
from .errors import ApiError, ErrorKind, InvalidParameter, api_error, error_of
from .links import PATH, new_link, read_link
from .models import find_image_prompter, find_model, model_list, model_view
from .parameters import Operation
from .pictures import edit_images, reference_image
from .streaming import EventStream, ImageStream, content_of
from .translate import ImageCall, read_call
from .usage import count_tokens

PREFIX = "/v1"

_CLIENT = "openai"
_RETRIES = "x-stainless-retry-count"  # header of the SDKs: how often a request was sent before
_RETRY_SECONDS = 300.0  # after its start in which a process looks for what an earlier one has left
_MAX_PARTS = 1000  # fields and files of a form
_MAX_KEY = 255  # characters of an idempotency key
_STOPPING_SECONDS = 30.0  # to wait for a job that is being stopped


class ApiFailure(Exception):
    """An error of this API that is ready to be sent."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


class _Route(APIRoute):
    """A route whose errors are answered in OpenAI's shape."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await inner(request)
            except ApiFailure as failure:
                return _answer(failure.error)
            except LimnerError as error:
                return _answer(api_error(error))

        return handler


router = APIRouter(prefix=PREFIX, route_class=_Route, tags=["openai"])


def error_response(problem: Problem) -> Response:
    """A problem that arose outside of the routes, in OpenAI's shape."""
    error = error_of(
        problem.code, problem.message, problem.hint, problem.fields, retry_after=problem.retry_after
    )
    if error.kind.status != problem.status and problem.status not in (422,):
        kind = "server_error" if problem.status >= 500 else "invalid_request_error"
        error = ApiError(
            ErrorKind(problem.status, kind, problem.retryable),
            error.message,
            error.param,
            error.code,
            error.retry_after,
        )
    return _answer(error, problem.headers)


@router.post("/images/generations", openapi_extra=body("generation"), responses=image_responses())
async def generate(request: Request, caller: Submitter) -> Response:
    """Images from a prompt. Besides OpenAI's parameters, fields of Limner's requests are accepted."""
    return await _images(request, caller, "generation")


@router.post("/images/edits", openapi_extra=body("edit"), responses=image_responses())
async def edit(request: Request, caller: Submitter) -> Response:
    """Images from an image: redrawn as a whole, or where its mask is transparent."""
    return await _images(request, caller, "edit")


@router.get(PATH.removeprefix(PREFIX) + "/{name}", responses=responses(files=True))
@router.head(PATH.removeprefix(PREFIX) + "/{name}", include_in_schema=False)
async def image_file(
    request: Request,
    name: str,
    compression: Annotated[int, Query(ge=0, le=100)],
    expires: Annotated[int, Query(ge=0, le=2**53)],
    signature: Annotated[str, Query(max_length=128)],
) -> Response:
    """The file of an image at an address that an answer gave. It needs no key."""
    state, link = state_of(request), read_link(name, compression, expires)
    if link is None or not link.is_valid(signature, state.signing_key):
        raise NotFound("there is no image at this address, or its address is no longer valid")
    image = await in_thread(state.ledger.find_image, link.image_id)
    headers = {
        "content-disposition": f'inline; filename="{image.id}.{link.format}"',
        "cross-origin-resource-policy": "cross-origin",  # pages of other origins show it by its address
    }
    if image.blurred:  # an operator may release it
        headers["cache-control"] = REVALIDATED
    quality = quality_of(link.format, compression).get("quality")
    tag = file_tag(state, image, link.format, quality)
    read = partial(delivered, state, image, format=link.format, quality=quality)
    return await answered(request, read, MEDIA_TYPES[link.format], tag, headers)


@router.get("/models", responses=responses())
async def models(request: Request, caller: Reader) -> Response:
    """The models that requests may name."""
    return SafeJSON(await in_thread(model_list, state_of(request)))


@router.get("/models/{name:path}", responses=responses())
async def model(request: Request, caller: Reader, name: str) -> Response:
    """A model by its name or an alias."""
    return SafeJSON(model_view(name, await in_thread(find_model, state_of(request), name)))


async def _images(request: Request, caller: Principal, operation: Operation) -> Response:
    """The answer to a request for images: all of them, or a stream."""
    state = state_of(request)
    given = await _body(request)
    call = read_call(operation, given)
    with _parameters_of(call):
        accepted = await _accepted_before(request, caller, given.digest)
        if accepted is None:
            plan = await _planned(state, caller, call)
            accepted = await state.intake.accept(
                caller,
                plan.request,
                client=_CLIENT,
                idempotency_key=_idempotency_key(request),
                digest=given.digest,
                warnings=plan.warnings,
                waits=True,
            )
        if accepted.replayed:
            await _revive(state, caller, accepted.id)
        count = partial(_count, state, call)
        if call.stream:
            return await EventStream.begun(ImageStream(state, call, accepted, count))
        finished = await finished_set(state, accepted.id, request=request)
    if (failure := failure_of(finished)) is not None:
        raise ApiFailure(failure)
    images = [job.image for job in finished.jobs if job.image is not None]
    if call.response_format == "url":
        links = [new_link(one.id, call.output_format, call.output_compression) for one in images]
        contents = [link.url(_base_url(request, state), state.signing_key) for link in links]
    else:
        contents = [await content_of(state, call, one) for one in images]
    tokens = await in_thread(count, images[0])
    answer = images_answer(call, finished, images, contents, usage_of(call, images, tokens))
    headers = {"idempotent-replayed": "true"} if accepted.replayed else {}
    return await in_thread(SafeJSON, answer, 200, headers)


@dataclass(frozen=True)
class _Plan:
    """What a call needs of its model.

    Attributes:
        request: The request to be accepted.
        warnings: What was done to its images.
    """

    request: GenerationRequest
    warnings: tuple[str, ...]


async def _planned(state: ServerState, caller: Principal, call: ImageCall) -> _Plan:
    """The request of a call, with its images."""
    if call.images:
        return await in_decoder(state, _plan, state, caller, call)
    return await in_thread(_plan, state, caller, call)


def _plan(state: ServerState, caller: Principal, call: ImageCall) -> _Plan:
    """The request of a call. Blocks."""
    entry = find_model(state, call.model)
    default_steps = int(state.intake.facts(entry).defaults.get("steps", STEPS))
    max_steps = state.intake.policy(caller).max_steps
    image = mask = None
    warnings: tuple[str, ...] = ()
    if call.images:
        made = edit_images(
            call.images[0],
            call.mask,
            size=call.image_size,
            mask_is_in_image=call.mask_is_in_image,
            max_pixels=state.settings.max_image_pixels,
        )
        image, mask, warnings = made.image, made.mask, made.warnings
    request = call.request(
        entry.id,
        default_steps=default_steps,
        max_steps=max_steps,
        image=image,
        mask=mask,
        image_prompt=_image_prompt(state, entry, call.images[1:]),
    )
    return _Plan(request, warnings)


def _count(state: ServerState, call: ImageCall, drawn: StoredImage) -> int:
    """Number of tokens of an image's prompts; 0 where its model is gone. Blocks."""
    try:
        entry = find_model(state, call.model)
    except LimnerError:
        return 0
    own = GenerationRequest.of(drawn.record["request"])
    return count_tokens(entry.path, own.prompts, own.prompt_syntax)


def _image_prompt(state: ServerState, entry: Entry, images: Sequence[bytes]) -> dict[str, Any] | None:
    """Further images of an edit as an image prompt; None where there are none."""
    if not images:
        return None
    limit = state.settings.max_image_pixels
    urls = [reference_image(one, max_pixels=limit) for one in images]
    return {"model": find_image_prompter(state, entry).name, "images": urls}


async def _body(request: Request) -> Body:
    """The body of a request: a form, or JSON whatever type it is said to be of.

    Raises:
        Refused: A body that cannot be read.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return read_object(await read_json(request, any_type=True))
    limit = state_of(request).settings.max_body_bytes
    async with request.form(max_files=_MAX_PARTS, max_fields=_MAX_PARTS, max_part_size=limit) as form:
        pairs: list[tuple[str, str | File]] = []
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                pairs.append((name, File(await value.read(), value.filename or "")))
            else:
                pairs.append((name, file_in(value) or value))
    check_texts([text for pair in pairs for text in pair if isinstance(text, str)])
    return read_form(pairs)


@contextmanager
def _parameters_of(call: ImageCall) -> Iterator[None]:
    """Errors of a request name the parameters that its fields were taken from."""
    try:
        yield
    except LimnerError as error:
        raise ApiFailure(api_error(error, call.sources)) from error


def _idempotency_key(request: Request) -> str | None:
    """The idempotency key of a request, if it has one."""
    key = request.headers.get("idempotency-key") or None
    if key is not None and len(key) > _MAX_KEY:
        raise InvalidParameter(
            None, f"Idempotency-Key has {len(key)} characters; expected {_MAX_KEY} at most"
        )
    return key


async def _accepted_before(request: Request, caller: Principal, digest: str) -> JobSet | None:
    """The set of a request that is sent again; None where it is new.

    What was accepted once stays accepted, even if its model is gone by now.

    Raises:
        IdempotencyConflict: Another request had its idempotency key.
    """
    key = _idempotency_key(request)
    if key is None:
        return await _left_over(request, caller, digest)
    return await state_of(request).intake.find_replayed(caller, key, digest, client=_CLIENT)


async def _left_over(request: Request, caller: Principal, digest: str) -> JobSet | None:
    """The set of a request that is sent again because the API process has died; None where there is none.

    The SDKs count what they repeat, and send no key by which it is known: it is the same body of the same
    account, whose set nobody waits for.
    """
    state, retries = state_of(request), request.headers.get(_RETRIES, "0")
    if not retries.isdecimal() or not int(retries):
        return None

    def look() -> list[JobSet]:
        if state.ledger.now() > state.started_at + _RETRY_SECONDS:
            return []
        return state.ledger.find_left_over(caller.account.id, _CLIENT, digest, before=state.started_at)

    for found in await in_thread(look):
        if found.id not in state.adopted:
            state.adopted.add(found.id)
            return found
    return None


async def _revive(state: ServerState, caller: Principal, set_id: str) -> None:
    """Queue the jobs of a set again that were cancelled when its client hung up or the service stopped.

    Waits for those that are being stopped, as the client may send the request again within a step.
    """
    until = time.monotonic() + _STOPPING_SECONDS
    while True:
        jobs = (await in_thread(state.ledger.get_set, set_id)).jobs
        stopping = [job for job in jobs if job.state == "running" and job.cancel_requested]
        if not stopping or time.monotonic() > until:
            break
        await asyncio.sleep(0.05)
    for job in jobs:
        if job.state == "cancelled" and job.error == CLIENT_GONE:
            with suppress(Conflict):  # another repetition of the request came first
                await state.intake.retry(caller, job.id, account_id=job.account_id)


def _base_url(request: Request, state: ServerState) -> str:
    """Address of the service as the client reaches it."""
    return state.settings.public_url or f"{request.url.scheme}://{request.headers['host']}"


def _answer(error: ApiError, headers: Any = None) -> Response:
    return SafeJSON(error.body, error.kind.status, {**(headers or {}), **error.headers})
