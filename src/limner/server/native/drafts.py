"""Drafts: requests that an account has saved under names of its own."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, Field

from limner.errors import InvalidRequest, NotFound
from limner.server.auth import Reader, Submitter
from limner.server.bodies import read_json
from limner.server.problems import Refused
from limner.server.state import in_thread, state_of
from limner.service.ledger.keeping import Draft

from .views import Seconds

router = APIRouter(tags=["drafts"])

MAX_BYTES = 1 << 20  # of a draft; images are uploads
_NAME = re.compile(r"[^\x00-\x1f\x7f/\ud800-\udfff]{1,128}")
_BODY = {
    "requestBody": {
        "required": True,
        "description": "A request as a JSON object. It need not be complete or valid.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}


class DraftView(BaseModel):
    """A saved request."""

    name: str = Field(description="Its name.")
    value: dict[str, Any] = Field(description="The request.")
    version: int = Field(description="Number of times that it was stored.")
    updated_at: Seconds


@router.get("/drafts")
async def list_drafts(request: Request, caller: Reader) -> list[DraftView]:
    """Drafts of the account, those that were stored last first."""
    return [_view(one) for one in await in_thread(state_of(request).ledger.list_drafts, caller.account.id)]


@router.get("/drafts/{name}")
async def show_draft(request: Request, response: Response, caller: Reader, name: str) -> DraftView:
    """A draft. Its ETag is its version."""
    draft = await in_thread(state_of(request).ledger.get_draft, caller.account.id, _checked(name))
    response.headers["etag"] = f'"{draft.version}"'
    return _view(draft)


@router.put("/drafts/{name}", openapi_extra=_BODY)
async def put_draft(
    request: Request,
    response: Response,
    caller: Submitter,
    name: str,
    if_match: Annotated[
        str | None, Header(max_length=40, description="Version that it must have; 409 for another one.")
    ] = None,
) -> DraftView:
    """Store a draft; it replaces one of the same name."""
    value = await read_json(request)
    if not isinstance(value, dict):
        raise InvalidRequest("a draft is a JSON object")
    if len(await request.body()) > MAX_BYTES:
        raise Refused(413, f"a draft has at most {MAX_BYTES:,} bytes", hint="upload its images")
    draft = await in_thread(
        state_of(request).ledger.put_draft,
        caller.account.id,
        _checked(name),
        value,
        version=_version(if_match),
    )
    response.headers["etag"] = f'"{draft.version}"'
    return _view(draft)


@router.delete("/drafts/{name}", status_code=204)
async def delete_draft(request: Request, caller: Submitter, name: str) -> Response:
    """Delete a draft."""
    await in_thread(state_of(request).ledger.delete_draft, caller.account.id, _checked(name))
    return Response(status_code=204)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise NotFound("there is no draft of this name")
    return name


def _version(if_match: str | None) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip().removeprefix("W/").strip('"')
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise Refused(400, f"If-Match is {if_match!r}; expected the version of a draft")
    return int(text)


def _view(draft: Draft) -> DraftView:
    return DraftView(
        name=draft.name, value=dict(draft.value), version=draft.version, updated_at=draft.updated_at
    )
