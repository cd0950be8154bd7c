"""Images in requests: decoded from base64, checked by their headers, and fitted to a size."""

import base64
import binascii
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from limner.errors import InvalidRequest
from limner.images.opening import image_source, normalised, open_image, shortened, to_rgb
from limner.request.fields import MAX_SIDE
from limner.service.intake import FORMATS

from .errors import Refusal

MAX_PIXELS = 40_000_000  # where the caller does not say
_FILL_SIDE, _NOISE_SIDE = 512, 512  # pixels
_URL = re.compile(r"^\s*(?:https?|ftp|file):", re.IGNORECASE)
_PREFIX = re.compile(r"^\s*data:[^,]{0,200},")
_SPACE = re.compile(r"\s+")
_UNREADABLE = (OSError, ValueError, SyntaxError, UnidentifiedImageError)


def decoded(text: Any, field: str, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """The bytes of an image in base64, with or without `data:` prefix, padding and line breaks.

    Args:
        field: Name of the request's field, for errors.
        max_pixels: Largest number of pixels that its header may give.

    Raises:
        Refusal: It is a URL, no base64, no image, or too large.
    """
    if not isinstance(text, str):
        raise Refusal(f"{field} is {type(text).__name__}; expected an image in base64", fields=(field,))
    if _URL.match(text[:64]):
        raise Refusal(
            f"{field} is a URL, and URLs are not fetched",
            hint="send the image in base64",
            fields=(field,),
        )
    plain = _SPACE.sub("", text[_prefix_length(text) :]).rstrip("=").translate(_STANDARD)
    try:
        data = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(f"{field} is not base64; expected an image in base64", fields=(field,)) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        raise Refusal(
            f"{field} has far too many pixels; the limit is {max_pixels:,} in all", fields=(field,)
        ) from None
    except _UNREADABLE:
        raise Refusal(
            f"{field} cannot be read as an image; expected one of {', '.join(FORMATS)} in base64",
            fields=(field,),
        ) from None
    if width * height > max_pixels:
        raise Refusal(
            f"{field} has {width} x {height} pixels; the limit is {max_pixels:,} in all", fields=(field,)
        )
    return data


_STANDARD = str.maketrans("-_", "+/")  # of the URL-safe alphabet


def _prefix_length(text: str) -> int:
    match = _PREFIX.match(text[:512])
    return match.end() if match else 0


def source(data: bytes) -> str:
    """The data URL of an image's bytes, which a request holds."""
    return f"data:image/{_subtype(data)};base64,{base64.b64encode(data).decode()}"


def _subtype(data: bytes) -> str:
    with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
        return (image.format or "png").lower()


def opened(url: str, field: str) -> Image.Image:
    """The image of a data URL. Raises Refusal where its pixels are broken."""
    try:
        return open_image(url)
    except InvalidRequest as error:
        raise Refusal(error.message.replace(shortened(url), field), fields=(field,)) from None


def fitted(image: Image.Image, size: tuple[int, int], mode: int) -> Image.Image:
    """An image at a size: 0 stretched, 1 cropped to its proportions, 2 whole with its edges continued."""
    if image.size == size:
        return image
    width, height = size
    if mode == 1:
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    if mode != 2:
        return image.resize(size, Image.Resampling.LANCZOS)
    scale = min(width / image.width, height / image.height)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    middle = image.resize(inner, Image.Resampling.LANCZOS)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    whole = Image.new(image.mode, size)
    for box, place in (
        ((0, 0, inner[0], 1), (left, 0, left + inner[0], top)),
        ((0, inner[1] - 1, inner[0], inner[1]), (left, top + inner[1], left + inner[0], height)),
        ((0, 0, 1, inner[1]), (0, top, left, top + inner[1])),
        ((inner[0] - 1, 0, inner[0], inner[1]), (left + inner[0], top, width, top + inner[1])),
    ):
        extent = place[2] - place[0], place[3] - place[1]
        if min(extent) > 0:
            whole.paste(middle.crop(box).resize(extent), place[:2])
    whole.paste(middle, (left, top))
    return whole


def is_sensible(size: tuple[int, int]) -> bool:
    """Whether a request may have this size; images are not scaled to one that it will be refused for."""
    return min(size) >= 1 and max(size) <= MAX_SIDE


def mask_of(url: str, field: str = "mask") -> Image.Image:
    """The mask in an image, as AUTOMATIC1111 reads it: its alpha channel if some of it is
    transparent, else its brightness."""
    image = normalised(opened(url, field), values=True)
    if image.mode == "RGBA":
        alpha = image.getchannel("A")
        if alpha.getextrema() != (255, 255):
            return alpha
    if image.mode == "F":
        return image.point(lambda value: value * 255.0).convert("L")
    return image.convert("L")


def blurred(mask: Image.Image, x: int, y: int) -> Image.Image:
    """A mask blurred by another sigma along each axis."""
    return mask.filter(ImageFilter.GaussianBlur((x, y)))


def filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """RGB of an image whose masked part (white) continues the colours of its surroundings.

    The colours are found in a small copy of the image, as they hold no details.
    """
    rgb = to_rgb(image)
    mask = mask.resize(rgb.size, Image.Resampling.LANCZOS) if mask.size != rgb.size else mask
    kept = ImageOps.invert(mask).point(lambda value: 255 if value > 127 else 0)
    if kept.getbbox() is None:
        return rgb
    small = rgb.copy()
    small.thumbnail((_FILL_SIDE, _FILL_SIDE), Image.Resampling.BOX)
    weight = (np.asarray(kept.resize(small.size, Image.Resampling.NEAREST)) > 0).astype(np.float32)
    colours = _continued(np.asarray(small, np.float32) * weight[..., None], weight)
    fill = Image.fromarray(colours.round().clip(0, 255).astype(np.uint8))
    return Image.composite(rgb, fill.resize(rgb.size, Image.Resampling.BICUBIC), kept)


Floats = NDArray[np.float32]


def _continued(values: Floats, weight: Floats) -> Floats:
    """Colours [H, W, 3] where some pixels have none, by push and pull (Gortler et al. 1996).

    Args:
        values: Colours times their weight, [H, W, 3].
        weight: [H, W] in [0, 1]; some are above 0.
    """
    height, width = weight.shape
    if height == width == 1:
        known: Floats = values / weight[..., None]
        return known
    pad = ((0, height % 2), (0, width % 2))
    sums = np.pad(weight, pad).reshape(-(-height // 2), 2, -(-width // 2), 2).sum((1, 3))
    colours = np.pad(values, (*pad, (0, 0))).reshape(*sums.shape[:1], 2, sums.shape[1], 2, 3).sum((1, 3))
    full = np.minimum(sums, 1.0)
    coarse = _continued(colours * (full / np.maximum(sums, 1e-6))[..., None], full)
    around = [
        Image.fromarray(np.ascontiguousarray(coarse[..., channel])).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        for channel in range(3)
    ]
    whole: Floats = values + (1.0 - weight)[..., None] * np.stack([np.asarray(one) for one in around], axis=2)
    return whole


def replaced(
    image: Image.Image, mask: Image.Image, content: Callable[[tuple[int, int]], Image.Image]
) -> Image.Image:
    """RGB of an image with other content where a mask is white."""
    rgb = to_rgb(image)
    mask = mask.resize(rgb.size, Image.Resampling.LANCZOS) if mask.size != rgb.size else mask
    return Image.composite(content(rgb.size), rgb, mask)


def noise(size: tuple[int, int]) -> Image.Image:
    """Gaussian noise around middle gray, the same for each size, so that a request gives one image."""
    values = np.random.default_rng(0).normal(127.0, 64.0, (_NOISE_SIDE, _NOISE_SIDE, 3))
    block = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    whole = Image.new("RGB", size)
    for top in range(0, size[1], _NOISE_SIDE):
        for left in range(0, size[0], _NOISE_SIDE):
            whole.paste(block, (left, top))
    return whole


def gray(size: tuple[int, int]) -> Image.Image:
    """Middle gray."""
    return Image.new("RGB", size, (127, 127, 127))


def url_of(image: Image.Image) -> str:
    """The data URL of an image in memory, as PNG."""
    return image_source(image)
