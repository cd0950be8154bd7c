"""Uploads: input images, addressed by the hash of their bytes."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from limner.errors import NotFound
from limner.server.auth import Manager, Reader, Submitter
from limner.server.problems import Refused
from limner.server.ranges import answered
from limner.server.state import ServerState, in_thread, state_of

from .access import AccountQuery, listed_account
from .jobs import Limit
from .viewing import note_view

router = APIRouter(tags=["uploads"])

IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of an image file.",
        "content": {
            media: {"schema": {"type": "string", "format": "binary"}}
            for media in ("image/png", "image/jpeg", "image/webp", "application/octet-stream")
        },
    }
}
_FILE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/*": {}}}}


class UploadView(BaseModel):
    """An uploaded image."""

    reference: str = Field(description="What a request gives for it: `sha256:` and the hash of its bytes.")
    sha256: str = Field(description="SHA-256 of its bytes, in hex.")
    bytes: int = Field(description="Size of the file.")
    media_type: str = Field(description="Format, as its header says.")
    width: int | None = Field(default=None, description="Width in pixels, turned upright.")
    height: int | None = Field(default=None, description="Height in pixels, turned upright.")
    created_at: float | None = Field(default=None, description="When it was uploaded first.")


@router.post("/uploads", status_code=201, openapi_extra=IMAGE_BODY)
async def upload(request: Request, caller: Submitter) -> UploadView:
    """Upload an image. The same bytes always have the same reference, and are stored once."""
    state = state_of(request)
    data = await image_body(request)
    checked = await in_thread(state.intake.read_image, data)
    await in_thread(state.intake.store_upload, caller, checked)
    return UploadView(
        reference=checked.reference,
        sha256=checked.sha256,
        bytes=len(data),
        media_type=checked.media_type,
        width=checked.width,
        height=checked.height,
    )


async def image_body(request: Request) -> bytes:
    """The body of a request, which is an image file. Raises Refused for another Content-Type."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        raise Refused(
            415,
            f"Content-Type is {kind[:60]!r}; expected image/… or application/octet-stream",
            hint="send the bytes of the file as the body",
        )
    return await request.body()


def upload_content(state: ServerState, digest: str, *fields: str) -> bytes:
    """The bytes of an upload, whoever has it.

    Args:
        digest: The hash of the bytes.
        fields: The fields of the request that name it.

    Raises:
        NotFound: They are gone.
    """
    path = state.assets.find(digest)
    if path is None:
        raise NotFound("the content of this upload is gone", fields=fields)
    return path.read_bytes()


@router.get("/uploads")
async def list_uploads(
    request: Request,
    caller: Reader,
    limit: Limit = 100,
    before: Annotated[float | None, Query(description="Only uploads that are older than this time.")] = None,
    account: AccountQuery = None,
) -> list[UploadView]:
    """Uploads of the account, newest first."""
    owner = listed_account(caller, account)
    await note_view(request, caller, owner, "list.viewed", "uploads")
    found = await in_thread(
        state_of(request).ledger.list_uploads,
        owner,
        limit=limit,
        before=before,
    )
    return [
        UploadView(
            reference=f"sha256:{one.sha256}",
            sha256=one.sha256,
            bytes=one.bytes,
            media_type=one.media_type,
            created_at=one.created_at,
        )
        for one in found
    ]


@router.get("/uploads/{sha256}", responses=_FILE)
async def show_upload(request: Request, caller: Reader, sha256: str) -> Response:
    """The bytes of an upload of the account. Under a safety policy with rules about images it is checked: it
    may be refused with 422, or answered as a blurred PNG."""
    state, digest = state_of(request), _digest(sha256)
    upload = await in_thread(state.ledger.get_upload, caller.account.id, digest)
    data = await in_thread(upload_content, state, digest)
    [shown] = await state.gate.passed(caller, [data])
    if shown != data:
        return Response(shown, media_type="image/png", headers={"cache-control": "no-store"})

    async def read() -> bytes:
        return shown

    return await answered(request, read, upload.media_type, f'"{digest}"')


@router.delete("/uploads/{sha256}", status_code=204)
async def delete_upload(request: Request, caller: Manager, sha256: str) -> Response:
    """Delete an upload of the account. Jobs that need it and have not begun will fail."""
    state, digest = state_of(request), _digest(sha256)

    def delete() -> None:
        if state.ledger.delete_upload(caller.account.id, digest):
            state.ledger.delete_unowned([digest], state.assets.discard)

    await in_thread(delete)
    return Response(status_code=204)


def _digest(reference: str) -> str:
    digest = reference.removeprefix("sha256:")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise NotFound("there is no upload of this hash")
    return digest
