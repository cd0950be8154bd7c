"""Responses of the native API: objects of the ledger as clients see them."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from limner.errors import NotFound
from limner.request.dial import Dial, DialValue
from limner.service.events import JobChanged, JobProgress
from limner.service.jobs import (
    Attempt,
    Job,
    JobError,
    JobKind,
    JobSet,
    JobState,
    Lane,
    LibraryImage,
    Relation,
)
from limner.service.ledger.keeping import Delivery

_ID = re.compile(r"[A-Za-z0-9_.:@-]{1,128}")

ImageName = Annotated[
    str,
    BeforeValidator(lambda name: str(name) if type(name) is int else name, json_schema_input_type=str | int),
    Field(min_length=1, max_length=128),
]
"""Id or number of an image, in a body."""

Seconds = Annotated[float, Field(description="Seconds since the epoch.")]


class ErrorView(BaseModel):
    """Why a job or an attempt failed."""

    code: str = Field(description="Stable name of the kind of error.")
    message: str = Field(description="What was given, and what was expected.")
    hint: str | None = Field(default=None, description="What to do about it.")
    fields: list[str] = Field(default=[], description="Fields of the request at fault.")


class DialledView(BaseModel):
    """The value that an image has of its set's dial."""

    field: str = Field(description="Field of the request.")
    value: DialValue = Field(description="Its value.")


class ImageView(BaseModel):
    """A finished image."""

    id: str = Field(description="Id of the image.")
    number: int = Field(description="Its number, which stands for the id in paths; newer ones are higher.")
    job_id: str = Field(description="Job that made it.")
    set_id: str = Field(description="Set of the job.")
    index: int = Field(description="Number of the image in the set, from 0.")
    url: str = Field(description="Path of its file: PNG, with the record in it.")
    thumbnail_url: str = Field(description="Path of its thumbnail.")
    sha256: str = Field(description="SHA-256 of the stored master, in hex.")
    pixels_sha256: str = Field(description="SHA-256 of the master's pixels, as RGB or RGBA bytes row by row.")
    delivered_sha256: str = Field(
        description="SHA-256 of the file that is delivered, in hex: the master's where it has no watermark."
    )
    watermark: str | None = Field(
        default=None, description="Id of the watermark in what is delivered; null where it has none."
    )
    width: int = Field(description="Width in pixels.")
    height: int = Field(description="Height in pixels.")
    bytes: int = Field(description="Size of the stored master.")
    safety: dict[str, Any] | None = Field(
        default=None,
        description="What the safety policy says about its pixels: action, rule, score, findings; null where "
        "it says nothing.",
    )
    blurred: bool = Field(description="Whether what is delivered is blurred.")
    created_at: Seconds
    prompt: str | None = Field(default=None, description="Its prompt.")
    seed: int | None = Field(default=None, description="Its seed.")
    dialled: DialledView | None = Field(
        default=None,
        description="Its value of its set's dial, if that has one; left out of jobs, whose set has the dial.",
    )
    kept: bool = Field(description="Whether it is marked as one to keep.")
    deleted_at: float | None = Field(default=None, description="When it was put into the trash.")
    relation: Relation | None = Field(
        default=None, description="What it is of its parents; left out of jobs, whose set has it."
    )
    parents: list[str] | None = Field(
        default=None, description="Ids of the images that it was made from; left out of jobs."
    )
    albums: list[str] | None = Field(
        default=None, description="Ids of the albums that it is in; left out of jobs."
    )
    record: dict[str, Any] | None = Field(
        default=None, description="Request, model and environment that made it; left out of lists."
    )


class ProgressView(BaseModel):
    """The last step of a running job."""

    step: int = Field(description="Steps taken.")
    steps: int = Field(description="Steps in all.")
    seconds_left: float = Field(description="Estimate of the seconds until the image is done.")
    batch_size: int = Field(description="Number of images in the last forward pass.")


class SpanView(BaseModel):
    """Words of a text that a rule is about."""

    source: str = Field(description="Field of the request that has the text.")
    start: int = Field(description="Where they begin in it, in characters.")
    end: int = Field(description="Where they end.")
    text: str = Field(description="The words as they are written.")
    list: str = Field(description="List that has them.")
    term: str = Field(description="What they are in that list.")


class FindingView(BaseModel):
    """A rule that applies."""

    rule: str = Field(description="Its name.")
    action: str = Field(description="What it asks for: `flag` or `block`.")
    score: float = Field(description="From 0 to 1, how surely the texts say it.")
    spans: list[SpanView] = Field(description="The words.")
    reason: str = Field(description="One sentence about them.")


class DecisionView(BaseModel):
    """What the safety policy says about prompts."""

    action: str = Field(description="`allow`, `flag` or `block`.")
    rule: str | None = Field(description="The rule that decided; null where none applies.")
    score: float = Field(description="From 0 to 1, how surely the texts say it; 0 where no rule applies.")
    version: str = Field(description="Names and hashes of the policies.")
    reason: str = Field(description="Why.")
    findings: list[FindingView] = Field(description="The rules that apply, the most severe first.")


class JobView(BaseModel):
    """One requested image: its state and its result."""

    id: str = Field(description="Id of the job.")
    set_id: str = Field(description="Set that it belongs to.")
    index: int = Field(description="Number of the image in the set, from 0.")
    account_id: str = Field(description="Account that it belongs to.")
    kind: JobKind = Field(description="What it makes.")
    lane: Lane = Field(description="`interactive` runs before `batch`, which always gets a share.")
    state: JobState = Field(
        description="`failed` is the request's own fault; `dead` has used up its attempts. Both, and "
        "`cancelled`, can be retried."
    )
    model: str = Field(description="Id of the checkpoint in the catalogue.")
    params: dict[str, Any] | None = Field(
        default=None, description="Request of this image, every default filled in; left out of lists."
    )
    predicted_seconds: float = Field(description="Estimate of its device seconds.")
    place: int | None = Field(default=None, description="Number of jobs before it, while it waits.")
    starts_in: float | None = Field(
        default=None,
        description="Estimate of the seconds until it begins, while it waits; in the queue only.",
    )
    attempt: int = Field(description="Number of attempts begun.")
    cancel_requested: bool = Field(description="Whether it is being stopped.")
    created_at: Seconds
    started_at: float | None = Field(default=None, description="When the last attempt started.")
    finished_at: float | None = Field(default=None, description="When it ended.")
    deadline_at: float | None = Field(default=None, description="When it fails unless it is done.")
    device_seconds: float | None = Field(default=None, description="Device seconds used.")
    cost: float | None = Field(default=None, description="Their price.")
    progress: ProgressView | None = Field(default=None, description="Its last step, while it runs.")
    safety: DecisionView | None = Field(
        default=None,
        description="What the safety policy said about its prompts; null for jobs of older versions.",
    )
    error: ErrorView | None = Field(default=None, description="Why it failed.")
    image: ImageView | None = Field(default=None, description="The result, once it is done.")


class SetView(BaseModel):
    """A request and its jobs, one for each image."""

    id: str = Field(description="Id of the set.")
    account_id: str = Field(description="Account that it belongs to.")
    kind: JobKind = Field(description="What its jobs make.")
    lane: Lane = Field(description="Lane of its jobs.")
    client: str = Field(description="API that it came through.")
    external_id: str | None = Field(default=None, description="The caller's own name for it.")
    ended: bool = Field(description="Whether all its jobs have ended.")
    request: dict[str, Any] = Field(description="The request as it was given.")
    dial: Dial | None = Field(
        default=None,
        description="The field that its jobs differ in, instead of in their seeds: that of index 0 has its "
        "first value, and so on.",
    )
    parents: list[str] = Field(description="Ids of the images that its own are made from.")
    relation: Relation | None = Field(default=None, description="What they are of those.")
    warnings: list[str] = Field(description="Warnings: what was not done as requested.")
    created_at: Seconds
    jobs: list[JobView] = Field(description="Its jobs, in the order of the images.")


class DeliveryView(BaseModel):
    """A webhook that reports the end of a set."""

    id: str = Field(description="Its id, which the receiver gets as `webhook-id`.")
    url: str = Field(description="Where it goes.")
    created_at: float = Field(description="Seconds since the epoch.")
    attempts: int = Field(description="Number of attempts begun.")
    due_at: float | None = Field(description="When it is tried next; null once it is delivered or given up.")
    delivered_at: float | None = Field(description="When the receiver took it; null until then.")
    status: int | None = Field(description="HTTP status of the last answer; null where there was none.")
    error: str | None = Field(description="Why the last attempt failed.")


class AttemptView(BaseModel):
    """One try at a job."""

    number: int = Field(description="From 1.")
    worker: str = Field(description="Id of the worker.")
    started_at: Seconds
    ended_at: float | None = Field(default=None, description="When it ended.")
    outcome: str | None = Field(default=None, description="done, failed, cancelled, lost or released.")
    error: ErrorView | None = Field(default=None, description="Why it failed.")


class Page(BaseModel):
    """A page of a list."""

    next: str | None = Field(default=None, description="`before` of the next page; null at the end.")


class JobPage(Page):
    """Jobs, newest first or as they stand in the queue."""

    items: list[JobView] = Field(description="The jobs.")
    total: int | None = Field(default=None, description="Number of jobs of the queue, listed here or not.")


class SetPage(Page):
    """Sets, newest first."""

    items: list[SetView] = Field(description="The sets.")


class ImagePage(Page):
    """Images, newest first."""

    items: list[ImageView] = Field(description="The images.")


def checked_id(id: str, what: str) -> str:
    """The id, if it is well-formed. Raises NotFound."""
    if not _ID.fullmatch(id):
        raise NotFound(f"there is no {what} of this id")
    return id


def error_view(error: JobError | None) -> ErrorView | None:
    """An error of a job."""
    if error is None:
        return None
    return ErrorView(code=error.code, message=error.message, hint=error.hint, fields=list(error.fields))


def image_view(image: LibraryImage, *, whole: bool = False) -> ImageView:
    """An image.

    Args:
        whole: Whether with its record.
    """
    path = f"/api/v1/images/{image.id}"
    return ImageView(
        id=image.id,
        number=image.number,
        job_id=image.job_id,
        set_id=image.set_id,
        index=image.index,
        url=f"{path}/file",
        thumbnail_url=f"{path}/thumbnail",
        sha256=image.sha256,
        pixels_sha256=image.pixels_sha256,
        delivered_sha256=image.file_sha256,
        watermark=image.watermark,
        safety=None if image.safety is None else dict(image.safety),
        blurred=image.blurred,
        width=image.width,
        height=image.height,
        bytes=image.bytes,
        created_at=image.created_at,
        prompt=image.prompt,
        seed=image.seed,
        dialled=image.dialled and DialledView(field=image.dialled[0], value=image.dialled[1]),
        kept=image.kept,
        deleted_at=image.deleted_at,
        relation=image.relation,
        parents=None if image.parents is None else list(image.parents),
        albums=None if image.albums is None else list(image.albums),
        record=dict(image.record) if whole else None,
    )


def job_view(
    job: Job,
    progress: JobProgress | None = None,
    *,
    place: int | None = None,
    starts_in: float | None = None,
    whole: bool = False,
) -> JobView:
    """A job.

    Args:
        progress: Its last step, if it is running.
        place: Number of jobs before it.
        starts_in: Seconds until it begins.
        whole: Whether with its parameters and the record of its image.
    """
    return JobView(
        id=job.id,
        set_id=job.set_id,
        index=job.index,
        account_id=job.account_id,
        kind=job.kind,
        lane=job.lane,
        state=job.state,
        model=job.model,
        params=dict(job.params) if whole else None,
        predicted_seconds=job.predicted_seconds,
        place=place,
        starts_in=starts_in,
        attempt=job.attempt,
        cancel_requested=job.cancel_requested,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        deadline_at=job.deadline_at,
        device_seconds=job.device_seconds,
        cost=job.cost,
        progress=progress_view(progress) if progress is not None and job.state == "running" else None,
        safety=None if job.safety is None else DecisionView(**job.safety),
        error=error_view(job.error),
        image=None if job.image is None else image_view(job.image, whole=whole),
    )


def progress_view(progress: JobProgress) -> ProgressView:
    """A step of a job."""
    return ProgressView(
        step=progress.step,
        steps=progress.steps,
        seconds_left=progress.seconds_left,
        batch_size=progress.batch_size,
    )


def set_view(jobs: JobSet, latest: Callable[[str], JobProgress | None], *, whole: bool = False) -> SetView:
    """A set with its jobs.

    Args:
        latest: The last step of a running job by its id, if there is one.
        whole: As in `job_view`.
    """
    return SetView(
        id=jobs.id,
        account_id=jobs.account_id,
        kind=jobs.kind,
        lane=jobs.lane,
        client=jobs.client,
        external_id=jobs.external_id,
        ended=jobs.ended,
        request=dict(jobs.request),
        dial=jobs.dial,
        parents=list(jobs.parents),
        relation=jobs.relation,
        warnings=list(jobs.warnings),
        created_at=jobs.created_at,
        jobs=[job_view(job, latest(job.id), whole=whole) for job in jobs.jobs],
    )


def delivery_view(delivery: Delivery) -> DeliveryView:
    """A webhook, without its secret."""
    return DeliveryView(
        id=delivery.id,
        url=delivery.webhook["url"],
        created_at=delivery.created_at,
        attempts=delivery.attempts,
        due_at=delivery.due_at,
        delivered_at=delivery.delivered_at,
        status=delivery.status,
        error=delivery.error,
    )


def attempt_view(attempt: Attempt) -> AttemptView:
    """An attempt."""
    return AttemptView(
        number=attempt.number,
        worker=attempt.worker,
        started_at=attempt.started_at,
        ended_at=attempt.ended_at,
        outcome=attempt.outcome,
        error=error_view(attempt.error),
    )


def change_data(event: JobChanged) -> dict[str, Any]:
    """A change of a job as an event of the stream."""
    return {
        "job_id": event.job_id,
        "set_id": event.set_id,
        "account_id": event.account_id,
        "index": event.index,
        "change": event.change,
        "at": event.at,
        **({"data": dict(event.data)} if event.data else {}),
    }


def http_date(seconds: float) -> str:
    """A time in the format of HTTP headers."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
