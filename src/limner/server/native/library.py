"""The library as a whole: which images are meant, the index of all of them, marking many at once, lineage."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from limner.errors import InvalidRequest, ModelNotFound
from limner.server.auth import Manager, Reader
from limner.server.bodies import body_schema, read_body
from limner.server.compressed import GZIP_LEVEL, CompressedBody
from limner.server.ranges import REVALIDATED, conditional
from limner.server.state import in_thread, state_of
from limner.service.ledger.library import ImageFilter

from .access import AccountQuery, listed_account, owner_of
from .erasure import retention_of
from .views import ImageName, ImageView, checked_id, image_view

router = APIRouter(tags=["images"])

MAX_NAMES = 10_000


class ImageMarks(BaseModel):
    """What images are to be marked as."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ids: list[ImageName] = Field(
        min_length=1, max_length=MAX_NAMES, description="Ids or numbers of the images."
    )
    kept: bool | None = Field(default=None, description="Whether they are marked as ones to keep.")
    deleted: bool | None = Field(
        default=None, description="true puts them into the trash, false takes them out of it."
    )


class MarkedView(BaseModel):
    """What was changed."""

    changed: int = Field(description="Number of images that were not so before.")
    unknown: list[str] = Field(description="Those of the ids that are no image's any more.")


class EmptiedView(BaseModel):
    """How many images were permanently deleted."""

    deleted: int = Field(description="Number of images.")


class IndexView(BaseModel):
    """All images, newest first, in columns. Rows are counted from 0."""

    version: str = Field(description="Another one if anything here is different; also the ETag.")
    total: int = Field(description="Number of images.")
    numbers: list[int] = Field(
        description="Number of the first image; then for each one how much less its number is."
    )
    ratios: list[int] = Field(description="Width over height of each, in hundredths.")
    months: list[tuple[int, str]] = Field(
        description="Row of the first image of each month, and the month in UTC, such as `2026-11`."
    )
    kept: list[int] = Field(description="Rows of the images that are kept.")


class LineageView(BaseModel):
    """What an image was made from, and what was made from it. Each image names its own parents."""

    image: ImageView = Field(description="The image.")
    parents: list[ImageView] = Field(
        description="Images that it was made from, those that they were made from, and so on: nearest first."
    )
    children: list[ImageView] = Field(
        description="Images that were made from it, what was made from them, and so on: nearest first."
    )
    complete: bool = Field(description="Whether these are all. There are at most 200 of each.")


async def _which_images(
    request: Request,
    caller: Reader,
    album: Annotated[
        str | None, Query(max_length=128, description="Id of an album: only its images.")
    ] = None,
    kept: Annotated[bool | None, Query(description="Only images that are kept, or only others.")] = None,
    deleted: Annotated[bool, Query(description="The images in the trash, in place of the others.")] = False,
    model: Annotated[
        str | None, Query(max_length=4096, description="Only images of this model: its id or name.")
    ] = None,
    lora: Annotated[
        str | None, Query(max_length=4096, description="Only images with this LoRA, by its name.")
    ] = None,
    seed: Annotated[int | None, Query(ge=0, lt=2**63, description="Only images of this seed.")] = None,
    since: Annotated[
        float | None, Query(allow_inf_nan=False, description="Only from this time on, in seconds.")
    ] = None,
    until: Annotated[
        float | None, Query(allow_inf_nan=False, description="Only before this time, in seconds.")
    ] = None,
) -> ImageFilter:
    """The images that a query means. Raises NotFound for an album that the caller does not have."""
    server = state_of(request)

    def checked() -> ImageFilter:
        if album is not None:
            server.ledger.get_album(checked_id(album, "album"), account_id=owner_of(caller))
        model_id = model
        if model is not None:
            with suppress(ModelNotFound, InvalidRequest):  # gone, and its images are found by its id
                model_id = server.intake.find_model(model).id
        return ImageFilter(album, kept, deleted, model_id, lora, seed, since, until)

    return await in_thread(checked)


WhichImages = Annotated[ImageFilter, Depends(_which_images)]
"""The images that the query of a request means."""


@router.get("/images/index", response_model=IndexView)
async def image_index(
    request: Request, caller: Reader, which: WhichImages, account: AccountQuery = None
) -> Response:
    """The compact index of all images, for lists that know their length. It has an ETag."""
    server = state_of(request)
    owner = listed_account(caller, account)

    def made() -> Response:
        columns = index_columns(server.ledger.image_index(owner, which))
        text = json.dumps(columns, separators=(",", ":"))
        version = hashlib.sha256(text.encode()).hexdigest()[:16]
        tag, headers = f'W/"{version}"', {"cache-control": REVALIDATED}
        its = {**headers, "etag": tag, "vary": "Accept-Encoding"}
        if (known := conditional(request, tag, its)) is not None:
            return known  # before anything is compressed
        data = f'{{"version":"{version}",{text[1:]}'.encode()
        body = CompressedBody.of(data, "application/json", level=GZIP_LEVEL, tag=tag)
        return body.respond(request, headers)

    return await in_thread(made)


def index_columns(rows: Iterable[Sequence[Any]]) -> dict[str, Any]:
    """The columns of an index.

    Args:
        rows: Number, width, height, whether it is kept and time of creation of each image, newest first.
    """
    numbers, ratios, kept = [], [], []
    months: list[tuple[int, str]] = []
    last, begin = 0, float("inf")
    for row, (number, width, height, is_kept, created_at) in enumerate(rows):
        numbers.append(last - number if row else number)
        last = number
        ratios.append(round(100 * width / height))
        if is_kept:
            kept.append(row)
        if created_at < begin:
            month = datetime.fromtimestamp(created_at, UTC).replace(
                day=1, hour=0, minute=0, second=0, microsecond=0
            )
            begin = month.timestamp()
            months.append((row, f"{month:%Y-%m}"))
    return {"total": len(numbers), "numbers": numbers, "ratios": ratios, "months": months, "kept": kept}


@router.patch("/images", openapi_extra=body_schema(ImageMarks), response_model=MarkedView)
async def mark_images(request: Request, caller: Manager) -> MarkedView:
    """Mark many images at once: as kept, or as deleted, which hides them until they are restored or the
    service deletes them permanently after `trash_days`."""
    server = state_of(request)
    marks = await read_body(request, ImageMarks)
    if marks.kept is None and marks.deleted is None:
        raise InvalidRequest("the change is empty", hint="give kept or deleted")
    done = await in_thread(
        server.ledger.mark_images,
        marks.ids,
        account_id=owner_of(caller),
        kept=marks.kept,
        deleted=marks.deleted,
    )
    server.hub.changed()
    return MarkedView(changed=done.changed, unknown=list(done.unknown))


@router.delete("/trash", response_model=EmptiedView)
async def empty_trash(request: Request, caller: Manager) -> EmptiedView:
    """Permanently delete the images in the account's trash now."""
    server = state_of(request)
    deleted = await in_thread(retention_of(server).empty_trash, account_id=caller.account.id)
    server.hub.changed()
    return EmptiedView(deleted=deleted)


@router.get("/images/{image_id}/lineage")
async def lineage(request: Request, caller: Reader, image_id: str) -> LineageView:
    """What an image was made from and what was made from it, without what is in the trash."""
    found = await in_thread(
        state_of(request).ledger.lineage, checked_id(image_id, "image"), account_id=owner_of(caller)
    )
    return LineageView(
        image=image_view(found.image),
        parents=[image_view(one) for one in found.parents],
        children=[image_view(one) for one in found.children],
        complete=found.complete,
    )
