"""Routes about requests that run: progress, interrupt, skip, and those of the web page that clients use."""

import base64
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse

from limner.server.auth import Reader, Submitter, principal
from limner.server.problems import Refused
from limner.server.state import ServerState, in_thread, state_of
from limner.service.events import JobProgress
from limner.service.jobs import JobSet

from . import running
from .api import Place, SdapiRoute, read_fields, read_object
from .bodies import Body, Int
from .delivery import text_of
from .generation import runs_of

router = APIRouter(route_class=SdapiRoute, include_in_schema=False)

_MAX_TASKS = 1000
_GONE = {
    "active": False,
    "queued": False,
    "completed": False,
    "progress": None,
    "eta": None,
    "live_preview": None,
    "id_live_preview": -1,
    "textinfo": "Waiting...",
}


@router.get("/sdapi/v1/progress")
async def progress(
    request: Request,
    caller: Reader,
    skip_current_image: Annotated[bool, Query()] = False,
    id_task: Annotated[str | None, Query(max_length=200)] = None,
) -> dict[str, Any]:
    """Progress of the caller's oldest request that runs, or of the one named by `id_task`."""
    state, account = state_of(request), caller.account.id
    found: JobSet | None
    if id_task is not None:
        found = await running.named_set(state, account, id_task)
    else:
        found = next(iter(await running.running_sets(state, account)), None)
    if found is None or not running.open_jobs(found):
        return running.idle()
    answer = running.progress_of(found, runs_of(request).of(found), state.hub.latest)
    if not skip_current_image and await _wants_previews(request, caller):
        newest = await _preview(state, account, found)
        answer["current_image"] = None if newest is None else text_of(newest.preview or b"")
    return answer


@router.post("/sdapi/v1/interrupt")
async def interrupt(
    request: Request, caller: Submitter, id_task: Annotated[str | None, Query(max_length=200)] = None
) -> dict[str, Any]:
    """Stop the caller's requests that run, after their step, or the one named by `id_task`."""
    body = await read_object(request, optional=True)
    named = id_task or body.get("id_task") or body.get("force_task_id")
    task = str(named) if named else None
    await running.stop(state_of(request), runs_of(request), caller.account.id, task=task)
    return {}


@router.post("/sdapi/v1/skip")
async def skip(request: Request, caller: Submitter) -> JSONResponse:
    """Stop the image that runs; the other images of its request go on."""
    await running.stop(state_of(request), runs_of(request), caller.account.id, one=True)
    return JSONResponse(None)


class ProgressBody(Body):
    """The body of `/internal/progress`."""

    id_task: str | None = None
    id_live_preview: Int = -1
    live_preview: bool = True


@router.post("/internal/progress")
async def task_progress(request: Request, caller: Reader) -> dict[str, Any]:
    """Progress of the request that the caller has named by `force_task_id`."""
    state, account = state_of(request), caller.account.id
    body = read_fields(ProgressBody, await read_object(request))
    found = await running.named_set(state, account, body.id_task or "")
    if found is None:
        return dict(_GONE)
    if not running.open_jobs(found):
        return {**_GONE, "completed": True, "textinfo": None}
    current = running.progress_of(found, runs_of(request).of(found), state.hub.latest)
    begun = current["state"]["job_count"] != -1
    answer = {
        **_GONE,
        "active": begun,
        "queued": not begun,
        "progress": current["progress"] if begun else None,
        "eta": current["eta_relative"] if begun else None,
        "id_live_preview": body.id_live_preview,
        "textinfo": None if begun else await _queue(state, account, found),
    }
    if begun and body.live_preview and await _wants_previews(request, caller):
        newest = await _preview(state, account, found)
        if newest is not None and newest.step != body.id_live_preview:
            encoded = base64.b64encode(newest.preview or b"").decode()
            answer |= {
                "live_preview": f"data:{newest.preview_type};base64,{encoded}",
                "id_live_preview": newest.step,
            }
    return answer


@router.get("/internal/pending-tasks")
async def pending_tasks(request: Request, caller: Reader) -> dict[str, Any]:
    """The caller's requests with a `force_task_id` that have not ended."""
    sets = await running.running_sets(state_of(request), caller.account.id)
    tasks = [one.external_id for one in sets if one.external_id is not None][:_MAX_TASKS]
    return {"size": len(tasks), "tasks": tasks}


@router.get("/internal/ping")
async def ping() -> dict[str, Any]:
    """That the server is there."""
    return {}


@router.get("/queue/status")
async def queue_status(request: Request) -> dict[str, Any]:
    """The sign of life that Cyanic's plugin waits for, with the number of waiting jobs for who may read."""
    try:
        await principal(request, "read")
    except Refused:  # a stranger learns that the server is there, and makes it ask no ledger for more
        waiting = 0
    else:
        waiting = await in_thread(state_of(request).intake.waiting)
    return {
        "msg": "estimation",
        "queue_size": waiting,
        "avg_event_process_time": None,
        "avg_event_concurrent_process_time": None,
        "rank_eta": None,
        "queue_eta": 0,
    }


@router.get("/config")
async def config() -> dict[str, Any]:
    """The page that some clients look for lists in; it has none."""
    return {"components": []}


async def _wants_previews(request: Request, caller: Reader) -> bool:
    options = await in_thread(Place(state_of(request), caller).options)
    return options.get("live_previews_enable") is not False


async def _preview(state: ServerState, account: str, found: JobSet) -> JobProgress | None:
    state.hub.want_previews(account)
    return running.newest_preview(found, state.hub.latest)


async def _queue(state: ServerState, account: str, found: JobSet) -> str:
    waiting = [job for job in found.jobs if job.state == "queued"]
    if not waiting:
        return "Waiting..."
    before = await in_thread(state.ledger.place, waiting[0].id, account_id=account)
    load = await in_thread(state.ledger.load)
    return f"In queue: {before + 1}/{max(load.all_waiting, before + 1)}"
