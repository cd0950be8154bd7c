"""What the contract tests of OpenAI's API share: pictures to send, and how answers are read."""

import base64
import io

from PIL import Image

from limner.images.metadata import read_record
from limner.images.record import Record

PHOTO_SIZE = (96, 64)


def opened(content: str | bytes) -> Image.Image:
    """The image of a file, or of a file in base64."""
    return Image.open(io.BytesIO(base64.b64decode(content) if isinstance(content, str) else content))


def record_of(content: str) -> Record:
    """The record in a file in base64."""
    record = read_record(io.BytesIO(base64.b64decode(content)))
    assert record is not None
    return record


def photo(format: str = "PNG", size: tuple[int, int] = PHOTO_SIZE) -> bytes:
    """The file of an image."""
    out = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert("RGB").save(out, format)
    return out.getvalue()


def mask(size: tuple[int, int] = PHOTO_SIZE) -> bytes:
    """A mask that is transparent, so that the image is regenerated, in its left half."""
    image, out = Image.new("RGBA", size, "black"), io.BytesIO()
    image.paste((0, 0, 0, 0), (0, 0, size[0] // 2, size[1]))
    image.save(out, "PNG")
    return out.getvalue()
