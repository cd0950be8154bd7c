"""Whether an image is one of this service, by its watermark."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from limner.images.opening import open_image
from limner.safety.watermark import FoundMark
from limner.server.auth import Reader
from limner.server.state import in_decoder, in_thread, state_of

from .access import owner_of
from .uploads import IMAGE_BODY, image_body
from .views import ImageView, image_view

router = APIRouter(tags=["images"])


class MarkView(BaseModel):
    """A watermark."""

    id: str = Field(description="Its id: 16 hexadecimal digits, or the first 8 of them in a small image.")
    bits: int = Field(description="How many bits of the id the image carries: 64 or 32.")
    z: float = Field(description="Standard deviations by which it stands out.")
    scale: float = Field(description="Size of the image relative to that at which it was marked.")
    key: Literal["own", "published"] = Field(
        description="`own`: made with the key of this service; `published`: with the key that everybody has."
    )


class DetectionView(BaseModel):
    """What is found in an image."""

    watermark: MarkView | None = Field(description="The watermark; null where none is found.")
    images: list[ImageView] = Field(
        description="Images of the caller (for operators: of all accounts) whose watermark has this id, the "
        "newest 10 at most. The same image drawn twice has the same id."
    )


@router.post("/detect", openapi_extra=IMAGE_BODY)
async def detect(
    request: Request,
    caller: Reader,
    scales: Annotated[
        bool,
        Query(description="Whether to look for a mark in a scaled copy, too, which takes seconds."),
    ] = False,
) -> DetectionView:
    """Find the watermark of an image, a crop or a re-encoded copy, and which of one's images it is."""
    state, data = state_of(request), await image_body(request)

    def look() -> FoundMark | None:
        upload = state.intake.read_image(data)  # its header, before its pixels are decoded
        return state.release.find_mark(open_image(upload.data_url), search_scales=scales)

    found = await in_decoder(state, look)
    if found is None:
        return DetectionView(watermark=None, images=[])
    mark = found.mark
    images = await in_thread(state.ledger.find_watermark, mark.digits, account_id=owner_of(caller))
    return DetectionView(
        watermark=MarkView(id=mark.digits, bits=mark.bits, z=mark.z, scale=mark.scale, key=found.key),
        images=[image_view(one) for one in images],
    )
