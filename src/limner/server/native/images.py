"""Finished images: which there are, their files, thumbnails and records, and how they are marked and deleted.

Wherever a path has an image's id, its number does as well.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from limner.errors import InvalidRequest
from limner.server.auth import Manager, Reader
from limner.server.problems import Refused
from limner.server.ranges import REVALIDATED, answered
from limner.server.state import in_thread, state_of
from limner.server.waiting import MEDIA_TYPES, delivered, file_tag
from limner.service.identity import Principal
from limner.service.jobs import ImageFile
from limner.service.release import THUMBNAIL_SIDE

from .access import AccountQuery, listed_account, owner_of
from .jobs import Before, Limit
from .library import WhichImages
from .viewing import note_view
from .views import ImagePage, ImageView, checked_id, http_date, image_view

router = APIRouter(tags=["images"])

_FILE: dict[int | str, dict[str, Any]] = {200: {"content": {media: {} for media in MEDIA_TYPES.values()}}}
_THUMBNAIL: dict[int | str, dict[str, Any]] = {200: {"content": {"image/webp": {}}}}


class StepView(BaseModel):
    """A step of an image."""

    step: int = Field(description="Its number, from 1.")
    sigma: float | None = Field(default=None, description="Its noise level, where that is known.")
    x: int = Field(description="Left edge of its preview in the sprite.")
    y: int = Field(description="Upper edge of its preview in the sprite.")


class StripView(BaseModel):
    """The steps of an image."""

    steps: list[StepView] = Field(description="Steps with a preview, in order; none where none are kept.")
    sprite: str | None = Field(description="Path of a WebP with all previews.")
    tile: tuple[int, int] = Field(description="Width and height of a preview in pixels.")


@router.get("/images")
async def list_images(
    request: Request,
    caller: Reader,
    which: WhichImages,
    number: Annotated[
        list[Annotated[int, Field(ge=0, lt=2**63)]] | None,
        Query(max_length=500, description="Only the images of these numbers. May be repeated."),
    ] = None,
    limit: Limit = 50,
    before: Before = None,
    account: AccountQuery = None,
) -> ImagePage:
    """Images, newest first."""
    server, owner = state_of(request), listed_account(caller, account)
    await note_view(request, caller, owner, "list.viewed", "images")
    found = await in_thread(
        server.ledger.list_images,
        owner,
        which=which if number is None else replace(which, numbers=tuple(number)),
        limit=limit,
        before=before,
    )
    items = [image_view(one) for one in found]
    return ImagePage(items=items, next=items[-1].id if len(items) == limit else None)


@router.get("/images/{image_id}")
async def show_image(request: Request, caller: Reader, image_id: str) -> ImageView:
    """An image with its record."""
    ledger, name = state_of(request).ledger, checked_id(image_id, "image")
    found = await in_thread(ledger.get_image, name, account_id=owner_of(caller))
    await note_view(request, caller, found.account_id, "image.viewed", found.id)
    return image_view(found, whole=True)


@router.get("/images/{image_id}/file", responses=_FILE)
@router.head("/images/{image_id}/file", include_in_schema=False)
async def image_file(
    request: Request,
    caller: Reader,
    image_id: str,
    format: Annotated[Literal["png", "jpeg", "webp"], Query(description="Format.")] = "png",
    quality: Annotated[int | None, Query(ge=0, le=100, description="Of JPEG and WebP.")] = None,
    exact: Annotated[
        bool, Query(description="For operators: the master, with the exact pixels and without a watermark.")
    ] = False,
) -> Response:
    """The file of an image, with its record, watermark and signature. Takes Range, If-None-Match and
    If-Range, but no ranges of a signed file that is no PNG."""
    server = state_of(request)
    if exact and not caller.is_operator:
        raise Refused(403, "images without their watermark are for operators", fields=("exact",))
    if exact and format != "png":
        raise InvalidRequest(f"format is {format}; the exact pixels are a png", fields=("exact", "format"))
    image = await _find_image(request, caller, image_id)
    tag = f'"{image.sha256}"' if exact else file_tag(server, image, format, quality)
    read: Callable[[], Awaitable[bytes]]
    if exact:
        read = partial(in_thread, server.release.exact, image, actor=caller.account.id)
    else:
        read = partial(delivered, server, image, format=format, quality=quality)
    return await answered(request, read, MEDIA_TYPES[format], tag, _headers(image, f"{image.id}.{format}"))


@router.get("/images/{image_id}/thumbnail", responses=_THUMBNAIL)
@router.head("/images/{image_id}/thumbnail", include_in_schema=False)
async def thumbnail(request: Request, caller: Reader, image_id: str) -> Response:
    """A small WebP of an image, at most 384 pixels a side, without its record."""
    server = state_of(request)
    image = await _find_image(request, caller, image_id)
    tag = f'"{image.file_sha256}-{THUMBNAIL_SIDE}"'
    read = partial(in_thread, server.release.thumbnail, image)
    return await answered(request, read, "image/webp", tag, _headers(image, f"{image.id}.webp"))


@router.get("/images/{image_id}/steps")
async def image_steps(request: Request, caller: Reader, image_id: str) -> StripView:
    """Small previews of an image's steps in one WebP: at most 32, of at most 96 pixels a side."""
    server = state_of(request)
    image = await _find_image(request, caller, image_id)
    layout = await in_thread(server.release.steps_layout, image)
    if layout is None:
        return StripView(steps=[], sprite=None, tile=(0, 0))
    steps = [StepView(**one) for one in layout["steps"]]
    return StripView(steps=steps, sprite=f"/api/v1/images/{image.id}/steps/sprite", tile=layout["tile"])


@router.get("/images/{image_id}/steps/sprite", responses=_THUMBNAIL)
@router.head("/images/{image_id}/steps/sprite", include_in_schema=False)
async def image_steps_sprite(request: Request, caller: Reader, image_id: str) -> Response:
    """The WebP with the previews of an image's steps."""
    server = state_of(request)
    image = await _find_image(request, caller, image_id)
    read = partial(in_thread, server.release.steps_sprite, image)
    headers = _headers(image, f"{image.id}-steps.webp")
    return await answered(request, read, "image/webp", f'"{image.sha256}-steps"', headers)


@router.delete("/images/{image_id}", status_code=204)
async def delete_image(request: Request, caller: Manager, image_id: str) -> Response:
    """Delete an image permanently: its entry and its files. The job that made it and its usage stay."""
    server = state_of(request)
    name, owner = checked_id(image_id, "image"), owner_of(caller)

    def delete() -> None:
        server.store.delete([server.ledger.delete_image(name, account_id=owner)])

    await in_thread(delete)
    server.hub.changed()
    return Response(status_code=204)


async def _find_image(request: Request, caller: Principal, image_id: str) -> ImageFile:
    """The file of an image of the caller's. Raises NotFound."""
    ledger, name = state_of(request).ledger, checked_id(image_id, "image")
    found = await in_thread(ledger.find_image, name, account_id=owner_of(caller))
    await note_view(request, caller, found.account_id, "image.viewed", found.id)
    return found


def _headers(image: ImageFile, name: str) -> Mapping[str, str]:
    return {
        "last-modified": http_date(image.created_at),
        "content-disposition": f'inline; filename="{name}"',
        **({"cache-control": REVALIDATED} if image.blurred else {}),  # an operator may release it
    }
