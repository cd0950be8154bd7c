"""Opens images of every kind: 16 bits, floats, palettes, CMYK, transparency, ICC profiles, orientation.

All input images are opened here: input images of requests, masks, control images, depth maps, image prompts
and training images. Pillow alone clips values above 8 bits to white, and drops transparency and profiles.
"""

import base64
import binascii
import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from limner.errors import InvalidRequest

_DATA = "data:image/"
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    binascii.Error,
    UnidentifiedImageError,
    Image.DecompressionBombError,
)
_TURNS = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # that a PNG holds without loss
_MODES_OF_PROFILES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_SRGB = ImageCms.createProfile("sRGB")
_COLOUR_SPREAD = 8  # of 255: what differs less is one colour


def open_image(source: str | Path, *, values: bool = False) -> Image.Image:
    """An image by its path or from a data URL, turned as its EXIF says, as `normalised` returns it.

    Args:
        values: Whether its numbers are values (a mask, a depth map), so that no colour profile counts.

    Raises:
        InvalidRequest: no such file, or no image.
    """
    shown = shortened(source)
    try:
        with _opened(str(source)) as image:
            image.load()
            turn = _TURNS.get(_orientation(image))
            opened = normalised(image, values=values)  # first, as a turned copy does not know its format
            return opened if turn is None else opened.transpose(turn)
    except FileNotFoundError:
        raise InvalidRequest(f"there is no image {shown}", hint="give a path, or a data: URL") from None
    except _UNREADABLE as error:
        raise InvalidRequest(f"{shown} cannot be read as an image: {error}") from None


@dataclass(frozen=True)
class ImageInfo:
    """What is known of an input image before its pixels are used.

    Attributes:
        size: Width and height, turned as its EXIF says.
        warnings: Warnings about its numbers, where the file does not say which of them is white.
        colour_warnings: Warnings about its colour profile, which counts unless the numbers are values.
    """

    size: tuple[int, int]
    warnings: tuple[str, ...]
    colour_warnings: tuple[str, ...]


def image_info(source: str) -> ImageInfo:
    """The size of an image and warnings about it; decodes only images of 32 bits. Raises as `open_image`."""
    try:
        with _opened(source) as image:
            width, height = image.size
            return ImageInfo(
                size=(height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height),
                warnings=tuple(_range_warnings(image, source)),
                colour_warnings=tuple(_profile_warnings(image, source)),
            )
    except _UNREADABLE:
        open_image(source)  # says what is wrong
        raise


def shortened(source: str | Path) -> str:
    """An image's source for messages."""
    return str(source) if len(str(source)) <= 80 else f"{str(source)[:77]}…"


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none, or it is broken."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except (*_UNREADABLE, KeyError, TypeError, struct.error):
        return 1


def _opened(source: str) -> Image.Image:
    if source.startswith(_DATA):
        return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2], validate=True)))
    return Image.open(os.path.expanduser(source))


def normalised(image: Image.Image, *, values: bool = False) -> Image.Image:
    """The same image as L, RGB or RGBA in sRGB, or as F in [0, 1] if it has more than 8 bits.

    16-bit images have the range of 16 bits. A file does not say that of 32-bit integers and floats: see
    `_unit_range`.

    Args:
        values: As in `open_image`.

    Raises:
        InvalidRequest: it holds numbers that are not finite.
    """
    if image.mode.startswith("I") or image.mode == "F":
        deep = Image.fromarray(_unit_range(image))
        if values or not _profile_of(image):
            return deep
        flat = Image.fromarray((np.asarray(deep) * 255.0).round().astype(np.uint8))
        flat.info = dict(image.info)
        return normalised(flat)
    if not values and (converted := _in_srgb(image)) is not None:
        return converted
    if image.mode == "LAB":
        lab = ImageCms.buildTransform(ImageCms.createProfile("LAB"), _SRGB, "LAB", "RGB")
        return _transformed(image, lab)
    if image.has_transparency_data or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        if image.mode == "La":
            image = image.convert("LA")
        return image if image.mode == "RGBA" else image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def to_rgb(image: Image.Image, background: str | None = "white") -> Image.Image:
    """8-bit RGB of an image in any mode.

    Args:
        background: Colour under what is transparent. None leaves the colours that are hidden there.
    """
    image = eight_bit(normalised(image))
    if background is not None and image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def eight_bit(image: Image.Image) -> Image.Image:
    """The image itself, or L, RGB or RGBA if its mode is one that Pillow converts wrongly or not at all."""
    if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        return image
    image = normalised(image)
    return _eight_bits(image) if image.mode == "F" else image


def to_gray(image: Image.Image) -> NDArray[np.float32]:
    """The brightness of an image in any mode, [H, W] in [0, 255], with all its bits."""
    image = normalised(image, values=True)
    if image.mode == "F":
        scaled: NDArray[np.float32] = np.asarray(image, np.float32).clip(0.0, 1.0) * np.float32(255.0)
        return scaled
    return np.asarray(image.convert("L")).astype(np.float32)


def to_mask(image: Image.Image) -> Image.Image:
    """An 8-bit mask, white where an image is regenerated, from an image in any mode.

    Where it is transparent it counts as black. If all that is visible has one colour, as strokes of a brush
    on a transparent layer do, whatever is opaque counts as white.

    Raises:
        InvalidRequest: a transparent image in colours; neither its brightness nor its alpha channel is
            surely the mask.
    """
    image = normalised(image, values=True)
    if image.mode == "F":
        return _eight_bits(image)
    if image.mode != "RGBA":
        return image.convert("L")
    pixels = np.asarray(image)
    alpha = pixels[..., 3]
    if alpha.min() == 255:
        return image.convert("L")
    visible = pixels[alpha > 0][:, :3]
    if visible.size == 0 or np.ptp(visible, axis=0).max() <= _COLOUR_SPREAD:
        return Image.fromarray(alpha)
    if np.ptp(visible, axis=1).max() > _COLOUR_SPREAD:
        raise InvalidRequest(
            "the mask is an image in colours with transparency, so it is not clear what it masks",
            hint="give a gray image that is white where the image is regenerated",
            fields=("mask",),
        )
    black = Image.new("RGBA", image.size, "black")
    return Image.alpha_composite(black, image).convert("L")


def _range_warnings(image: Image.Image, source: str) -> Iterator[str]:
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        image.load()
        numbers = _numbers(image)
        low, high, top = float(numbers.min()), float(numbers.max()), _top(image, numbers)
        if low < 0.0 or high > top:
            yield (
                f"{shortened(source)} holds numbers from {low:g} to {high:g}: they are read as 0 to "
                f"{top:g}, and what is beyond is cut off"
            )


def _profile_warnings(image: Image.Image, source: str) -> Iterator[str]:
    if fault := _fault_of_profile(image):
        yield f"the colour profile of {shortened(source)} {fault}, so its colours are read as sRGB"


def image_source(image: Image.Image | Path | str) -> str:
    """The reference to an image in a request: its path, or a data URL with its pixels."""
    if not isinstance(image, Image.Image):
        return str(image)
    encoded = io.BytesIO()
    if image.mode not in _PNG_MODES:
        image = normalised(image)
        if image.mode == "F":
            image = Image.fromarray((np.asarray(image) * 65535.0).round().astype(np.uint16))
    image.save(encoded, format="PNG", compress_level=1)
    return f"{_DATA}png;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _eight_bits(image: Image.Image) -> Image.Image:
    """L of an F in [0, 1]."""
    return Image.fromarray((np.asarray(image).clip(0.0, 1.0) * 255.0).round().astype(np.uint8))


def _unit_range(image: Image.Image) -> NDArray[np.float32]:
    """An image of 16 or 32 bits, integers or floats, as float32 in [0, 1]."""
    numbers = _numbers(image)
    if not np.isfinite(numbers).all():
        raise InvalidRequest(
            "an image of floats holds numbers that are not finite", hint="give it finite ones"
        )
    scaled: NDArray[np.float32] = (numbers.astype(np.float64) / _top(image, numbers)).clip(0.0, 1.0)
    return scaled.astype(np.float32)


def _numbers(image: Image.Image) -> NDArray[Any]:
    numbers = np.asarray(image)
    if image.mode == "I" and numbers.min() < 0 and getattr(image, "tag_v2", {}).get(339, (1,))[0] == 1:
        return numbers.view(np.uint32)  # TIFF's unsigned integers, which Pillow reads as signed ones
    return numbers


def _top(image: Image.Image, numbers: NDArray[Any]) -> float:
    """The number that means white. If the file does not say it, it is estimated from the numbers.

    Floats are in [0, 1], with few above in high dynamic range; if most exceed that, they have the range of
    8 bits or 16. Integers have the range of the fewest bits, 8, 16 or 32, that hold them all.
    """
    if image.mode.startswith("I;16"):
        return 65535.0
    high = float(numbers.max())
    if image.mode == "F":
        lit = numbers > 0
        if not lit.any() or np.mean(numbers[lit] > 1.5) < 0.5:
            return 1.0
        return 255.0 if high <= 255.5 else 65535.0
    if image.format == "PNG":  # which has 16 bits at most
        return 65535.0
    return next((top for top in (255.0, 65535.0, 2.0**31 - 1) if high <= top), 2.0**32 - 1)


def _profile_of(image: Image.Image) -> bytes:
    profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) else b""


def _fault_of_profile(image: Image.Image) -> str | None:
    """Why an image's ICC profile cannot be used; None if it can, or there is none."""
    if not (data := _profile_of(image)):
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    except (OSError, ImageCms.PyCMSError):
        return "is broken"
    space = profile.profile.xcolor_space
    if space not in _MODES_OF_PROFILES:
        return f"is of the colour space {space.strip()}"
    gray, cmyk = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I"), image.mode == "CMYK"
    if (space == "GRAY") != gray or (space == "CMYK") != cmyk:
        return f"is of the colour space {space.strip()}, but the image is {image.mode}"
    return None


def _in_srgb(image: Image.Image) -> Image.Image | None:
    """RGB or RGBA in sRGB of an image with another ICC profile; None without one, or with a broken one."""
    data = _profile_of(image)
    if not data or _fault_of_profile(image) is not None:
        return None
    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    if "sRGB" in ImageCms.getProfileDescription(profile):
        return None
    mode = _MODES_OF_PROFILES[profile.profile.xcolor_space]
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    try:
        transform = ImageCms.buildTransform(
            profile,
            _SRGB,
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except ImageCms.PyCMSError:
        return None
    converted = _transformed(image.convert(mode), transform)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _transformed(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """An image converted by a transform, without a profile."""
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it is not converted in place
    converted.info.pop("icc_profile", None)
    return converted
