"""Everything of an account: as a file for its owner, or erased in every store."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any

from anyio import from_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from limner.errors import NotFound
from limner.server.auth import Manager, Reader
from limner.server.state import ServerState, in_thread, state_of
from limner.service.identity import Principal
from limner.service.jobs import JobState
from limner.service.retention import Retention

from .views import checked_id

router = APIRouter(tags=["accounts"])

_CHUNK = 256 << 10
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "A ZIP file.", "content": {"application/zip": {}}}
}


@router.get("/accounts/{account_id}/export", response_class=StreamingResponse, responses=_RESPONSES)
async def export_account(request: Request, caller: Reader, account_id: str) -> StreamingResponse:
    """Everything that is kept of one's own account (operators: of any), as a ZIP file.

    It holds the rows of the ledger as JSON lines, one file for each kind, images as they are delivered, and
    uploads as they are stored. Of these, what the safety policy blocks is left out, and what it blurs is
    blurred. Keys are without their secrets.
    """
    state = state_of(request)
    checked = _own(caller, account_id)
    file = await in_thread(_exported, state, caller, checked)
    await in_thread(state.ledger.audit, caller.account.id, "account.exported", checked)
    headers = {"content-disposition": f'attachment; filename="limner-{checked}.zip"'}
    return StreamingResponse(_pieces(file), media_type="application/zip", headers=headers)


@router.delete("/accounts/{account_id}", status_code=204)
async def erase_account(request: Request, caller: Manager, account_id: str) -> Response:
    """Erase one's own account (operators: any), with its keys, jobs, images, uploads and drafts,
    immediately and permanently. Its usage is kept as sums without its name."""
    state = state_of(request)
    checked = _own(caller, account_id)
    now: tuple[JobState, ...] = ("running",)
    running = await in_thread(state.ledger.list_jobs, checked, states=now, limit=10_000)
    await in_thread(retention_of(state).erase, checked, actor=caller.account.id)
    state.hub.cancel([job.id for job in running])
    state.hub.forget(checked)
    await in_thread(state.searches.forget, checked)
    return Response(status_code=204)


def _own(caller: Principal, account_id: str) -> str:
    """The id, if it is the caller's own account or the caller is an operator. Raises NotFound."""
    checked = checked_id(account_id, "account")
    if checked != caller.account.id and not caller.is_operator:
        raise NotFound("there is no account of this id")
    return checked


def retention_of(state: ServerState) -> Retention:
    """What deletes files of the service for good."""
    return Retention(state.ledger, state.store, state.settings, state.metrics)


def _exported(state: ServerState, caller: Principal, account_id: str) -> IO[bytes]:
    """A file without a name, which is gone when it is closed. For a thread of the event loop's."""

    def passed(upload: bytes) -> bytes:
        return from_thread.run(state.gate.passed, caller, [upload])[0]

    with ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile(dir=state.settings.data))
        retention_of(state).export(account_id, file, state.release, passed)
        file.seek(0)
        stack.pop_all()  # the answer closes it
        return file


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(_CHUNK):
            yield piece
