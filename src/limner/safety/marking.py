"""Marks finished images: the watermark in their pixels, and what their record says of it."""

import hashlib
import json

from limner.errors import InvalidRequest
from limner.images.picture import Picture, pixel_hash
from limner.images.record import Record, Watermark

from .watermark import DEFAULT_KEY, ID_BITS, carried_bits, detect, embed

UNREADABLE = "the watermark cannot be read back from this image: its contrasts are too strong for its size"


def marked(picture: Picture, key: bytes = DEFAULT_KEY) -> Picture:
    """The image with a watermark, and a record that names it. The given image stays as it is.

    A warning in the record says where the mark cannot be read back, as from a few busy images of 128 pixels.

    Raises:
        InvalidRequest: The image is smaller than 128 pixels a side, or its record names a watermark already.
    """
    if picture.record.watermark is not None:
        raise InvalidRequest(
            f"the image carries the watermark {picture.record.watermark.id} already; expected one without"
        )
    pixels = pixel_hash(picture)
    id = id_of(picture.record, pixels)
    image = embed(picture, int(id, 16), key)
    bits = carried_bits(picture.size)
    found = detect(image, key)
    readable = found is not None and id.startswith(found.digits)
    warnings = picture.record.warnings if readable else (*picture.record.warnings, UNREADABLE)
    update = {"watermark": Watermark(id=id, bits=bits), "warnings": warnings}
    if not picture.record.pixels:
        update["pixels"] = pixels
    return Picture(image, picture.record.model_copy(update=update))


def id_of(record: Record, pixels: str) -> str:
    """The id of an image's watermark: the first 16 digits of a SHA-256 over its pixels and its record.

    Images differ in their ids if they differ in a pixel or in anything that the record says of how they were
    made: in all but its notes. The same image drawn again in the same environment has the same id.

    Args:
        pixels: What `limner.images.picture.pixel_hash` returns for the image before it is marked.
    """
    said = record.model_dump(mode="json", exclude={"watermark", "pixels", "notes"})
    text = json.dumps([pixels, said], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[: ID_BITS // 4]
