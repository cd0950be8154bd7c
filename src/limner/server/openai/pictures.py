"""The input images of an edit: sniffed by their bytes, brought to the size asked for, and their masks.

OpenAI's masks are transparent where the image is regenerated; Limner's are white there.
"""

import base64
import io
from dataclasses import dataclass, field

from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from limner.errors import InvalidRequest
from limner.images.opening import image_source, open_image
from limner.service.intake import FORMATS

from .errors import InvalidParameter

_MAX_PIXELS = 64_000_000


@dataclass(frozen=True)
class EditImages:
    """The images of an edit, as a request takes them.

    Attributes:
        image: The input image as a data URL.
        mask: Its mask as a data URL, white where it is regenerated; None where all of it is.
        size: Width and height of the input image as it was sent, upright.
        warnings: What was done to them.
    """

    image: str = field(repr=False)
    mask: str | None = field(repr=False)
    size: tuple[int, int]
    warnings: tuple[str, ...] = ()


def edit_images(
    image: bytes,
    mask: bytes | None = None,
    *,
    size: tuple[int, int] | None = None,
    mask_is_in_image: bool = False,
    max_pixels: int = _MAX_PIXELS,
) -> EditImages:
    """The images of an edit.

    An image of another size is scaled; what its proportions leave over is cropped at both ends, and its mask
    with it. Without a size, the image stays as it is.

    Args:
        image, mask: Bytes of the files. Their formats are found out from the bytes.
        size: Width and height to bring both to.
        mask_is_in_image: Whether transparent parts of the image are its mask, if it has any.
        max_pixels: Largest number of pixels of a file, which is checked before it is decoded.

    Raises:
        InvalidParameter: A file that is no image, is too large or broken, or a mask that does not fit.
    """
    picture, url = _opened(image, "image", max_pixels)
    area: Image.Image | None = None
    if mask is not None:
        area = _area(_opened(mask, "mask", max_pixels)[0])
        if area is None:
            raise InvalidParameter(
                "mask",
                "mask has no transparent part, so that nothing would be regenerated",
                hint="make the area to regenerate transparent, and save it as png",
            )
        if area.size != picture.size:
            raise InvalidParameter(
                "mask",
                f"mask is {_by(area.size)}, and image {_by(picture.size)}; expected the same size",
            )
    elif mask_is_in_image:
        area = _area(picture)
    warnings: tuple[str, ...] = ()
    if size is not None and size != picture.size:
        fitted = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
        lost = _lost(picture.size, size)
        if lost is not None:
            warnings = (f"the image is {_by(picture.size)} and size is {_by(size)}: {lost} are cropped",)
        url = image_source(fitted)
        if area is not None:
            area = ImageOps.fit(area, size, Image.Resampling.BILINEAR)
            if area.getbbox() is None:
                raise InvalidParameter(
                    "mask",
                    f"the transparent part of the mask is cropped away: {lost} of the image are, to make "
                    f"it {_by(size)}",
                    hint="give a size of the image's proportions, or leave it out",
                )
    return EditImages(url, None if area is None else image_source(area), picture.size, warnings)


def reference_image(data: bytes, *, max_pixels: int = _MAX_PIXELS) -> str:
    """The data URL of a further image of an edit. Raises as `edit_images`."""
    return _opened(data, "image", max_pixels)[1]


def _opened(data: bytes, param: str, max_pixels: int) -> tuple[Image.Image, str]:
    """An image, decoded and upright, and its data URL."""
    try:
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as header:
            kind, size = header.format or "PNG", header.size
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        raise InvalidParameter(
            param,
            f"{param} is a file of {len(data)} bytes that is not an image",
            reason="invalid_image",
            hint="send a png, jpeg or webp",
        ) from None
    if size[0] * size[1] > max_pixels:
        raise InvalidParameter(
            param,
            f"{param} is {_by(size)}; expected {max_pixels:,} pixels at most",
            reason="image_too_large",
            hint="scale it down",
        )
    url = f"data:{Image.MIME.get(kind, 'image/png')};base64,{base64.b64encode(data).decode()}"
    try:
        return open_image(url), url
    except InvalidRequest as error:
        reason = error.message.rpartition("cannot be read as an image: ")[2]
        raise InvalidParameter(param, f"{param} is broken: {reason}", reason="invalid_image") from None


def _area(image: Image.Image) -> Image.Image | None:
    """Where an image is transparent, in white; None where it is opaque throughout."""
    if image.mode != "RGBA":
        return None
    area = ImageChops.invert(image.getchannel("A"))
    return None if area.getbbox() is None else area


def _lost(given: tuple[int, int], size: tuple[int, int]) -> str | None:
    """What is cropped of an image that is brought to a size; None where less than a pixel is."""
    scale = max(size[0] / given[0], size[1] / given[1])
    over = given[0] * scale - size[0], given[1] * scale - size[1]
    if max(over) < 1:
        return None
    return "its left and right" if over[0] > over[1] else "its top and bottom"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
