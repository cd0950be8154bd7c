"""Jobs and sets: submit, list, wait, cancel, pause, reorder, retry."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from limner.errors import DeadlineExceeded, EngineClosed, InvalidRequest
from limner.request import GenerationRequest
from limner.request.dial import Dial
from limner.request.fields import Seed
from limner.server.auth import Manager, Reader, Submitter, principal
from limner.server.bodies import body_digest, body_schema, read_body, read_envelope
from limner.server.problems import Refused
from limner.server.state import ServerState, in_thread, state_of
from limner.server.waiting import finished_set
from limner.service.identity import Principal
from limner.service.jobs import Job, JobSet, JobState, Lane, Relation

from .access import AccountQuery, listed_account, owner_of, split_at_commas
from .viewing import note_view
from .views import (
    AttemptView,
    DeliveryView,
    ImageName,
    JobPage,
    JobView,
    SetPage,
    SetView,
    attempt_view,
    checked_id,
    delivery_view,
    job_view,
    set_view,
)

router = APIRouter(tags=["jobs"])

MAX_IDS = 10_000
MAX_MORE = 64

Limit = Annotated[int, Query(ge=1, le=500, description="Number of entries.")]
Before = Annotated[
    str | None, Query(max_length=128, description="Id of the last entry of the page before this one.")
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="The same key always returns the same set: use it to repeat a request safely.",
    ),
]


class Webhook(BaseModel):
    """Where the end of a set is reported to."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(max_length=2048, description="Address; its host must be one that the operator allows.")
    secret: str | None = Field(
        default=None,
        min_length=16,
        max_length=256,
        description="Secret that deliveries are signed with. Default: the service's.",
    )


class NewJobs(BaseModel):
    """A request for images, and how it is to be handled."""

    model_config = ConfigDict(extra="forbid")

    request: GenerationRequest = Field(description="What to generate. One job is made for each image.")
    dial: Dial | None = Field(
        default=None,
        description="A field that takes several values in turn: one image for each, all of the same seed.",
    )
    lane: Lane = Field(
        default="interactive", description="`interactive` runs before `batch`, which always gets a share."
    )
    deadline_seconds: float | None = Field(
        default=None, gt=0, le=31 * 86400, description="Seconds after which jobs that are not done fail."
    )
    external_id: str | None = Field(
        default=None, min_length=1, max_length=128, description="The caller's own name for the set."
    )
    webhook: Webhook | None = Field(default=None, description="Where to report the end of the set.")
    parents: list[ImageName] = Field(
        default=[], max_length=16, description="Ids or numbers of own images that these are made from."
    )
    relation: Relation | None = Field(
        default=None, description="What they are of their parents; given together with these."
    )


class JobChange(BaseModel):
    """A change of a waiting job."""

    model_config = ConfigDict(extra="forbid")

    state: Literal["paused", "queued"] | None = Field(
        default=None, description="`paused` keeps it from being begun; `queued` lets it go on."
    )
    before: str | None = Field(
        default=None,
        max_length=128,
        description="Id of one's own waiting job that it is to precede; `last` for the end of the queue.",
    )


class JobsChange(BaseModel):
    """A change of many waiting jobs."""

    model_config = ConfigDict(extra="forbid")

    ids: list[str] = Field(min_length=1, max_length=MAX_IDS, description="Ids of the jobs.")
    state: Literal["paused", "queued"] = Field(
        description="`paused` keeps them from being begun; `queued` lets them go on."
    )


class Cancellation(BaseModel):
    """The jobs to be cancelled: either `ids` or `all`."""

    model_config = ConfigDict(extra="forbid")

    ids: list[str] = Field(default=[], max_length=MAX_IDS, description="Ids of the jobs.")
    all: bool = Field(default=False, description="All jobs of the account that have not ended.")


class ChangedView(BaseModel):
    """How many jobs were changed."""

    changed: int = Field(description="Number of jobs that this affected: not those that had ended.")


class MoreJobs(BaseModel):
    """Further images of a set's request: one of these fields. A set with a dial cannot have any."""

    model_config = ConfigDict(extra="forbid")

    count: int | None = Field(
        default=None, ge=1, le=MAX_MORE, description="Number of images. They take the next seeds."
    )
    seeds: list[Seed] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_MORE,
        description="Their seeds; variation seeds, where the request has a variation_strength.",
    )
    instead_of: list[str] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_MORE,
        description="Ids of jobs of the set that are cancelled. For each that has not ended the next seed is "
        "drawn, before what waits of the account.",
    )


@router.post("/jobs", status_code=202, openapi_extra=body_schema(NewJobs), response_model=SetView)
async def submit(
    request: Request,
    response: Response,
    caller: Submitter,
    idempotency_key: IdempotencyKey = None,
    prefer: Annotated[
        str | None, Header(max_length=200, description="`wait=20` waits so many seconds for the images.")
    ] = None,
) -> SetView:
    """Submit a request. Its jobs are stored when the answer (202) arrives; 200 if they have ended by then."""
    state = state_of(request)
    body = await read_envelope(request, NewJobs)
    accepted = await state.intake.accept(
        caller,
        body.request,
        dial=body.dial,
        lane=body.lane,
        client="native",
        idempotency_key=idempotency_key,
        digest=await body_digest(request),
        external_id=body.external_id,
        deadline_seconds=body.deadline_seconds,
        webhook=None if body.webhook is None else body.webhook.model_dump(exclude_none=True),
        parents=tuple(body.parents),
        relation=body.relation,
    )
    response.headers["location"] = f"/api/v1/sets/{accepted.id}"
    if accepted.replayed:
        response.headers["idempotent-replayed"] = "true"
    if (seconds := _wait_seconds(prefer)) is not None:
        accepted = await _ended_or_current(state, accepted, request, seconds)
        response.headers["preference-applied"] = f"wait={seconds:g}"
    if accepted.ended:
        response.status_code = 200
    return set_view(accepted, state.hub.latest)


@router.get("/jobs")
async def list_jobs(
    request: Request,
    caller: Reader,
    state: Annotated[
        list[JobState] | None,
        BeforeValidator(split_at_commas),
        Query(description="Only jobs in these states. May be repeated, or separated by commas."),
    ] = None,
    set_id: Annotated[str | None, Query(max_length=128, description="Only jobs of this set.")] = None,
    order: Annotated[
        Literal["newest", "queue"],
        Query(
            description="`queue`: jobs that have not ended: first those that run, then those that wait, in "
            "the order in which they are begun, then those that are paused. It has no pages."
        ),
    ] = "newest",
    limit: Limit = 50,
    before: Before = None,
    account: AccountQuery = None,
) -> JobPage:
    """Jobs, newest first or as they stand in the queue."""
    server, owner = state_of(request), listed_account(caller, account)
    await note_view(request, caller, owner, "list.viewed", "jobs")
    if order == "queue":
        if before is not None or set_id is not None:
            raise InvalidRequest("the queue takes neither before nor set_id", fields=("before", "set_id"))
        queue, total = await in_thread(
            server.ledger.list_queue,
            owner,
            limit=limit,
            **({"states": tuple(state)} if state else {}),
        )
        return JobPage(
            items=[
                job_view(one.job, server.hub.latest(one.job.id), place=one.place, starts_in=one.starts_in)
                for one in queue
            ],
            total=total,
        )
    found = await in_thread(
        server.ledger.list_jobs,
        owner,
        states=tuple(state or ()),
        set_id=set_id,
        limit=limit,
        before=before,
    )
    items = [job_view(job, server.hub.latest(job.id)) for job in found]
    return JobPage(items=items, next=items[-1].id if len(items) == limit else None)


@router.patch("/jobs", openapi_extra=body_schema(JobsChange), response_model=ChangedView)
async def change_jobs(request: Request, caller: Manager) -> ChangedView:
    """Pause many waiting jobs, or let them go on."""
    server, ledger = state_of(request), state_of(request).ledger
    change = await read_body(request, JobsChange)
    act = ledger.pause if change.state == "paused" else ledger.resume
    affected = await in_thread(act, account_id=owner_of(caller), job_ids=change.ids)
    server.hub.wake_workers()
    return ChangedView(changed=len(affected))


@router.post("/jobs/cancel", openapi_extra=body_schema(Cancellation), response_model=ChangedView)
async def cancel_jobs(request: Request, caller: Manager) -> ChangedView:
    """Cancel many jobs at once, or all of the account."""
    body = await read_body(request, Cancellation)
    if body.all == bool(body.ids):
        raise InvalidRequest("either ids or all is expected", fields=("ids", "all"))
    which: dict[str, Any] = {"all_of": caller.account.id} if body.all else {"job_ids": body.ids}
    affected = await _cancel(state_of(request), account_id=owner_of(caller), **which)
    return ChangedView(changed=len(affected))


@router.get("/jobs/{job_id}")
async def show_job(request: Request, caller: Reader, job_id: str) -> JobView:
    """A job with its parameters, its place in the queue and its result."""
    found = await _job(state_of(request), caller, job_id)
    await note_view(request, caller, found.account_id, "job.viewed", found.id)
    return found


@router.get("/jobs/{job_id}/attempts")
async def list_attempts(request: Request, caller: Reader, job_id: str) -> list[AttemptView]:
    """The attempts at a job: which worker, how long, how each ended."""
    server = state_of(request)
    job = await in_thread(server.ledger.get_job, checked_id(job_id, "job"), account_id=owner_of(caller))
    return [attempt_view(one) for one in await in_thread(server.ledger.attempts, job.id)]


@router.post("/jobs/{job_id}/cancel")
async def cancel_job(request: Request, caller: Manager, job_id: str) -> JobView:
    """Cancel a job. A waiting one ends at once, a running one within a step. One that has ended stays so."""
    server = state_of(request)
    job = await in_thread(server.ledger.get_job, checked_id(job_id, "job"), account_id=owner_of(caller))
    await _cancel(server, account_id=owner_of(caller), job_ids=(job.id,))
    return await _job(server, caller, job_id)


@router.post("/jobs/{job_id}/retry")
async def retry_job(request: Request, caller: Manager, job_id: str) -> JobView:
    """Put a job that has failed, died or been cancelled back into the queue, unless it is refused by now."""
    server = state_of(request)
    await server.intake.retry(caller, checked_id(job_id, "job"), account_id=owner_of(caller))
    return await _job(server, caller, job_id)


@router.patch("/jobs/{job_id}", openapi_extra=body_schema(JobChange), response_model=JobView)
async def change_job(request: Request, caller: Manager, job_id: str) -> JobView:
    """Pause a waiting job, let it go on, or move it within one's own queue."""
    server, ledger = state_of(request), state_of(request).ledger
    change = await read_body(request, JobChange)
    job = await in_thread(ledger.get_job, checked_id(job_id, "job"), account_id=owner_of(caller))
    if change.state is None and change.before is None:
        raise InvalidRequest("the change is empty", hint="give state or before")
    if change.state == "paused":
        await in_thread(ledger.pause, account_id=owner_of(caller), job_ids=(job.id,))
    elif change.state == "queued":
        await in_thread(ledger.resume, account_id=owner_of(caller), job_ids=(job.id,))
        server.hub.wake_workers()
    if change.before is not None:
        before = None if change.before == "last" else checked_id(change.before, "job")
        await in_thread(ledger.move, job.id, before=before, account_id=owner_of(caller))
    server.hub.changed()
    return await _job(server, caller, job_id)


@router.get("/sets")
async def list_sets(
    request: Request,
    caller: Reader,
    limit: Limit = 20,
    before: Before = None,
    external_id: Annotated[
        str | None, Query(max_length=128, description="Only the set of this name.")
    ] = None,
    account: AccountQuery = None,
) -> SetPage:
    """Sets with their jobs, newest first."""
    server, owner = state_of(request), listed_account(caller, account)
    await note_view(request, caller, owner, "list.viewed", "sets")
    if external_id is not None:
        one = await in_thread(server.ledger.find_external, owner or caller.account.id, external_id)
        return SetPage(items=[] if one is None else [set_view(one, server.hub.latest)])
    found = await in_thread(server.ledger.list_sets, owner, limit=limit, before=before)
    items = [set_view(one, server.hub.latest) for one in found]
    return SetPage(items=items, next=items[-1].id if len(items) == limit else None)


@router.get("/sets/{set_id}")
async def show_set(
    request: Request,
    caller: Reader,
    set_id: str,
    wait: Annotated[
        float, Query(ge=0, le=600, description="Seconds to wait for its end before answering.")
    ] = 0.0,
) -> SetView:
    """A set with its jobs."""
    server = state_of(request)
    found = await in_thread(server.ledger.get_set, checked_id(set_id, "set"), account_id=owner_of(caller))
    await note_view(request, caller, found.account_id, "set.viewed", found.id)
    if wait and not found.ended:
        found = await _ended_or_current(server, found, request, wait)
    return set_view(found, server.hub.latest, whole=True)


@router.post(
    "/sets/{set_id}/jobs", status_code=202, openapi_extra=body_schema(MoreJobs), response_model=SetView
)
async def extend_set(
    request: Request,
    response: Response,
    caller: Submitter,
    set_id: str,
    idempotency_key: IdempotencyKey = None,
) -> SetView:
    """Add further images of its request to a set: with the next seeds, with given ones, or in place of jobs
    that are cancelled."""
    state = state_of(request)
    body = await read_body(request, MoreJobs)
    if sum(one is not None for one in (body.count, body.seeds, body.instead_of)) != 1:
        raise InvalidRequest("one of count, seeds and instead_of is expected", fields=("count", "seeds"))
    if body.instead_of:
        await principal(request, "manage")
    extended = await state.intake.extend(
        caller,
        checked_id(set_id, "set"),
        count=body.count or 1,
        seeds=body.seeds or (),
        instead_of=body.instead_of or (),
        idempotency_key=idempotency_key,
        digest=await body_digest(request),
    )
    if extended.jobs.replayed:
        response.headers["idempotent-replayed"] = "true"
    state.hub.cancel(extended.cancelled)
    return set_view(extended.jobs, state.hub.latest)


@router.post("/sets/{set_id}/cancel")
async def cancel_set(request: Request, caller: Manager, set_id: str) -> SetView:
    """Cancel all jobs of a set that have not ended."""
    server, owner = state_of(request), owner_of(caller)
    found = await in_thread(server.ledger.get_set, checked_id(set_id, "set"), account_id=owner)
    await _cancel(server, account_id=owner, set_id=found.id)
    return set_view(await in_thread(server.ledger.get_set, found.id), server.hub.latest)


@router.delete("/sets/{set_id}", status_code=204)
async def delete_set(request: Request, caller: Manager, set_id: str) -> Response:
    """Delete a set whose jobs have ended, with its images, for good. Its usage stays."""
    server = state_of(request)

    def delete() -> None:
        freed = server.ledger.delete_set(checked_id(set_id, "set"), account_id=owner_of(caller))
        server.store.delete(freed.keys)

    await in_thread(delete)
    server.hub.changed()
    return Response(status_code=204)


@router.get("/sets/{set_id}/deliveries")
async def list_deliveries(request: Request, caller: Reader, set_id: str) -> list[DeliveryView]:
    """The deliveries of a set's webhook: how often it was tried, and what the receiver answered."""
    ledger = state_of(request).ledger
    found = await in_thread(ledger.get_set, checked_id(set_id, "set"), account_id=owner_of(caller))
    return [delivery_view(one) for one in await in_thread(ledger.list_deliveries, found.id)]


async def _cancel(state: ServerState, **what: Any) -> list[str]:
    """Cancel jobs, and return the ids of those that this affected."""
    affected = await in_thread(state.ledger.cancel, **what)
    state.hub.cancel(affected)
    return affected


async def _job(state: ServerState, caller: Principal, job_id: str) -> JobView:
    def look() -> tuple[Job, int | None]:
        job = state.ledger.get_job(checked_id(job_id, "job"), account_id=owner_of(caller))
        return job, state.ledger.place(job.id) if job.state == "queued" else None

    job, place = await in_thread(look)
    return job_view(job, state.hub.latest(job.id), place=place, whole=True)


async def _ended_or_current(state: ServerState, jobs: JobSet, request: Request, seconds: float) -> JobSet:
    """The set as it is when it has ended, after so many seconds, or when the service is about to stop."""
    try:
        return await finished_set(state, jobs.id, request=request, owned=False, timeout=seconds)
    except (DeadlineExceeded, EngineClosed):
        return await in_thread(state.ledger.get_set, jobs.id)


def _wait_seconds(prefer: str | None) -> float | None:
    """The seconds of `Prefer: wait=20` (RFC 7240), at most 600; None where it says nothing of the kind."""
    for preference in (prefer or "").split(","):
        name, _, value = preference.partition(";")[0].strip().partition("=")
        if name.strip().lower() == "wait":
            if not value.strip().isdecimal():
                raise Refused(400, f"Prefer: wait is {value[:20]!r}; expected a number of seconds")
            return float(min(int(value), 600))
    return None
