"""txt2img and img2img: translates a request, submits it, waits for the images and answers."""

import asyncio
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import Response

from limner.errors import ImageRefused, LimnerError, WorkerUnavailable
from limner.images.record import Record
from limner.request import GenerationRequest
from limner.server.auth import Submitter
from limner.server.problems import SafeJSON
from limner.server.state import ServerState, in_decoder, in_thread, state_of
from limner.server.waiting import follow, until_disconnect, waiting_for
from limner.service.events import JobProgress
from limner.service.identity import Principal
from limner.service.jobs import Job, JobError, JobSet

from . import delivery
from .api import Place, SdapiRoute, read_fields, read_object
from .bodies import GenerationBody, Img2ImgBody, Txt2ImgBody
from .errors import Refusal, status_of_code
from .info import answer, info_of
from .maps import detected_map
from .pictures import decoded
from .running import CLIENT, Run, Runs, is_stopped
from .translate import Delivery, Model, Translated, model_of, translate

router = APIRouter(route_class=SdapiRoute, include_in_schema=False)

_MAX_TASK = 128  # characters of a `force_task_id`


@router.post("/sdapi/v1/txt2img")
async def txt2img(request: Request, caller: Submitter) -> Response:
    """Images of a text."""
    return await _generate(request, caller, Txt2ImgBody)


@router.post("/sdapi/v1/img2img")
async def img2img(request: Request, caller: Submitter) -> Response:
    """Images that begin with one."""
    return await _generate(request, caller, Img2ImgBody)


def runs_of(request: Request) -> Runs:
    """The requests that this process waits for."""
    state = request.app.state
    if not hasattr(state, "sdapi_runs"):
        state.sdapi_runs = Runs()
    found: Runs = state.sdapi_runs
    return found


async def _generate(request: Request, caller: Principal, kind: type[GenerationBody]) -> Response:
    value = await read_object(request)
    body = read_fields(kind, value)
    task = body.force_task_id or None
    if task is not None and len(task) > _MAX_TASK:
        raise Refusal(
            f"force_task_id has {len(task)} characters; expected at most {_MAX_TASK}",
            fields=("force_task_id",),
        )
    state = state_of(request)
    place = Place(state, caller)
    unknown = tuple(sorted(str(name)[:60] for name in value.keys() - kind.model_fields.keys()))
    if isinstance(body, Img2ImgBody) or body.alwayson_scripts:
        translated = await in_decoder(state, _translated, place, body, unknown)
    else:
        translated = await in_thread(_translated, place, body, unknown)
    if translated.kept:  # before the jobs are accepted: if this fails, no request would wait for them
        await in_thread(place.keep_options, dict(translated.kept))
    accepted = await state.intake.accept(
        caller,
        GenerationRequest.of(translated.fields),
        client=CLIENT,
        external_id=task,
        waits=True,
    )
    hires = isinstance(body, Txt2ImgBody) and body.enable_hr
    run = Run("img2img" if kind is Img2ImgBody else "txt2img", max(1, body.n_iter), hires)
    runs = runs_of(request)
    runs.by_set[accepted.id] = run
    try:
        async with waiting_for(state, accepted.id):
            ended = await until_disconnect(request, _ended(state, accepted.id, run))
    finally:
        del runs.by_set[accepted.id]
    return await _answered(state, place, translated, ended, run)


def _translated(place: Place, body: GenerationBody, unknown: tuple[str, ...]) -> Translated:
    options = place.options()
    models = place.models()
    entry = model_of(body, options, models) or place.default_model()
    try:
        facts = place.state.intake.facts(entry)
    except LimnerError:  # which accepting the request says as well
        facts = None
    return translate(
        body,
        options,
        Model(entry.id, facts),
        place,
        models,
        unknown,
        max_pixels=place.state.settings.max_image_pixels,
    )


async def _ended(state: ServerState, set_id: str, run: Run) -> JobSet:
    """The set once all its jobs have ended, or once it is interrupted; `run` keeps their last steps."""

    async def ended() -> None:
        async for event in follow(state, set_id):
            if isinstance(event, JobProgress):
                run.seen[event.job_id] = event

    waiting = [asyncio.create_task(ended()), asyncio.create_task(run.over.wait())]
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return await in_thread(state.ledger.get_set, set_id)


async def _answered(
    state: ServerState, place: Place, translated: Translated, job_set: JobSet, run: Run
) -> Response:
    """The answer for a set that has ended or was interrupted.

    Raises:
        Refusal: No image was made.
    """
    failed = [job for job in job_set.jobs if job.state in ("failed", "dead")]
    warnings = list(job_set.warnings)
    if failed and not any(job.image is not None for job in job_set.jobs):
        raise _failure(failed[0].error)
    warnings += [f"image {job.index + 1}: {_sentence(job.error)}" for job in failed]
    pictures: list[tuple[bytes, Record]] = []
    models = {entry.id: entry.name for entry in (await in_thread(place.models)).entries}
    for job in job_set.jobs:
        try:
            found = await _picture(place, job, translated.delivery, run, models)
        except (ImageRefused, WorkerUnavailable) as error:
            warnings.append(f"image {job.index + 1}: {error.message}")
            found = None
        if found is not None:
            pictures.append(found)
        if is_stopped(job):
            sent = await run.unfinished[job.id] if job.id in run.unfinished else None
            far = sent or run.seen.get(job.id)  # an image that is sent may be further than what was seen
            when = "before its first step" if far is None else f"after step {far.step} of {far.steps}"
            warnings.append(f"image {job.index + 1} was interrupted {when}")
    images: list[str] = []
    if translated.delivery.send:
        images = [delivery.text_of(data) for data, _ in pictures]
        for one in translated.delivery.maps:
            try:
                images.append(await detected_map(state, place.caller, one, translated.fields))
            except LimnerError as error:  # the images are stored anyway
                warnings.append(f"the control image {one.preprocessor} is not sent: {error.message}")
    records = [record for _, record in pictures]
    body = translated.body
    if isinstance(body, Img2ImgBody) and body.include_init_images and not await _may_repeat(place, body):
        body = body.model_copy(update={"include_init_images": False})
        warnings.append("the images of the request are not repeated: the safety policy withholds them")

    def respond() -> Response:
        info = info_of(translated, records, at=job_set.created_at, warnings=warnings)
        info["interrupted"] = any(map(is_stopped, job_set.jobs))
        return SafeJSON(answer(body, images, info))

    return await in_thread(respond)  # megabytes of JSON, which would hold up all other requests


async def _picture(
    place: Place, job: Job, how: Delivery, run: Run, models: dict[str, str]
) -> tuple[bytes, Record] | None:
    """The file and the record of a job's image; None where it has none.

    Raises:
        ImageRefused: It was interrupted, and the safety policy blocks it.
        WorkerUnavailable: It was interrupted, and no worker applies the policy.
    """
    state = place.state
    if job.image is not None:
        data = await in_thread(state.release.file, job.image, how.encoding)
        return data, Record.model_validate(job.image.record)
    if not is_stopped(job) or job.id not in run.unfinished:
        return None
    image = await run.unfinished[job.id]
    if image is None:
        return None
    [shown] = await state.gate.passed(place.caller, [image.data])
    picture = await in_thread(delivery.unfinished, job, replace(image, data=shown), models)
    return await in_thread(state.release.unstored, picture, how.encoding, marks=state.settings.watermark)


async def _may_repeat(place: Place, body: Img2ImgBody) -> bool:
    """Whether an answer may repeat the images of its request."""
    texts = [*(body.init_images or ()), *([body.mask] if body.mask else ())]
    try:
        files = [await in_thread(decoded, text, "init_images") for text in texts]
        return await place.state.gate.passed(place.caller, files) == files
    except LimnerError:
        return False


def _sentence(error: JobError | None) -> str:
    if error is None:
        return "it failed"
    return f"{error.message} ({error.hint})" if error.hint else error.message


def _failure(error: JobError | None) -> Refusal:
    """The error of a request none of whose images was made."""
    if error is None:
        return Refusal("the image was not made", status=500)
    return Refusal(error.message, status=status_of_code(error.code), hint=error.hint, fields=error.fields)
