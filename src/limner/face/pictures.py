"""Pictures as diffusers takes them: PIL images, arrays or tensors, alone or in lists."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from limner.errors import InvalidRequest
from limner.pipeline.images import to_tensor

Pictures = Image.Image | np.ndarray[Any, Any] | Tensor | Sequence[Any]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""

_UNIT = 8
_RESAMPLING = Image.Resampling.LANCZOS


def pictures_of(
    given: Pictures | None,
    size: tuple[int, int] | None = None,
    *,
    latent_channels: int = 4,
    box: Box | None = None,
) -> Tensor:
    """Pictures [B, 3, H, W] in [-1, 1], or latents as they are.

    Args:
        given: arrays [H, W, 3] or [B, H, W, 3] and tensors [3, H, W] or [B, 3, H, W] are in [0, 1], or, if
            something in them is below 0, in [-1, 1]. Tensors of `latent_channels` channels are latents.
        size: height and width; None is the pictures' own, cut to multiples of 8.
        box: of PIL images, only what is within, filled up to `size` from its edges.

    Raises:
        InvalidRequest: something else was given.
    """
    images = _listed(given)
    if isinstance(images, Tensor) and images.shape[1] == latent_channels:
        return images.float()
    pixels = pixels_of(images, size, box=box)
    return pixels if bool(pixels.min() < 0) else 2.0 * pixels - 1.0


def pixels_of(
    given: Pictures | None, size: tuple[int, int] | None = None, *, box: Box | None = None
) -> Tensor:
    """Pictures [B, 3, H, W] whose numbers stay: those of PIL images are in [0, 1]. As `pictures_of`."""
    if isinstance(images := _listed(given), list):
        first = images[0]
        height, width = size or (first.height, first.width)
        wanted = height - height % _UNIT, width - width % _UNIT
        return (to_tensor([_resized(image, wanted, box).convert("RGB") for image in images]) + 1.0) / 2.0
    return _interpolated(images.float(), size)


def masks_of(given: Pictures | None, size: tuple[int, int], *, box: Box | None = None) -> Tensor:
    """Masks [B, 1, H, W], 1 where something is to be drawn and 0 elsewhere. Arguments as of `pictures_of`."""
    if isinstance(given, Tensor | np.ndarray) and given.ndim == 3:
        given = given[:, None] if isinstance(given, Tensor) else given[..., None]
    if isinstance(images := _listed(given), list):
        grays = [np.asarray(_resized(image, size, box).convert("L"), np.float32) for image in images]
        masks = torch.from_numpy(np.stack(grays))[:, None] / 255.0
    else:
        masks = _interpolated(images.float(), size)
    return (masks >= 0.5).float()


def box_around(mask: Image.Image, size: tuple[int, int], padding: int) -> Box:
    """The box around all that is not black in a mask, padded, and then widened to the proportions of `size`.

    Raises:
        InvalidRequest: the mask is all black.
    """
    found = mask.convert("L").getbbox()
    if found is None:
        raise InvalidRequest("mask_image is black: there is nothing to draw")
    whole = mask.size
    low = [max(found[axis] - padding, 0) for axis in (0, 1)]
    high = [min(found[axis + 2] + padding, whole[axis]) for axis in (0, 1)]
    width, height = (high[axis] - low[axis] for axis in (0, 1))
    shape = size[1] / size[0]
    axis = 1 if width / height > shape else 0
    more = int(width / shape - height) if axis else int(height * shape - width)
    low[axis] -= more // 2
    high[axis] += more - more // 2
    over = max(0, high[axis] - whole[axis])
    low[axis], high[axis] = low[axis] - over, high[axis] - over
    under = max(0, -low[axis])
    low[axis], high[axis] = low[axis] + under, min(high[axis] + under, whole[axis])
    return low[0], low[1], high[0], high[1]


def pasted(drawn: Image.Image, into: Image.Image, mask: Image.Image, box: Box) -> Image.Image:
    """A picture with what was drawn of its `box` in its place, where the mask is white."""
    left, top, right, bottom = box
    base = Image.new("RGBA", into.size)
    base.paste(_cropped(drawn, (bottom - top, right - left)), (left, top))
    kept = Image.new("RGBa", into.size)
    kept.paste(into.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    base = base.convert("RGB").convert("RGBA")
    base.alpha_composite(kept.convert("RGBA"))
    return base.convert("RGB")


def _listed(given: Pictures | None) -> list[Image.Image] | Tensor:
    """PIL images in a list, or anything else as one tensor [B, C, H, W]."""
    items: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    if items and all(isinstance(item, Image.Image) for item in items):
        return items
    tensors = []
    for item in items:
        if isinstance(item, np.ndarray) and item.ndim in (3, 4):
            batch = item if item.ndim == 4 else item[None]
            tensors.append(torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2))
        elif isinstance(item, Tensor) and item.ndim in (3, 4):
            tensors.append((item if item.ndim == 4 else item[None]).detach().cpu())
        else:
            raise InvalidRequest(
                f"a picture is {type(item).__name__}; expected a PIL image, an array or a tensor, or a list"
            )
    return torch.cat(tensors)


def _resized(image: Image.Image, size: tuple[int, int], box: Box | None) -> Image.Image:
    height, width = size
    if box is None:
        return image.resize((width, height), _RESAMPLING)
    part = image.crop(box)
    inner = (
        (width, part.height * width // part.width)
        if width / height < part.width / part.height
        else (part.width * height // part.height, height)
    )
    pixels = np.asarray(part.resize(inner, _RESAMPLING).convert("RGB"))
    left, top = width // 2 - inner[0] // 2, height // 2 - inner[1] // 2
    room = ((top, height - inner[1] - top), (left, width - inner[0] - left), (0, 0))
    return Image.fromarray(np.pad(pixels, room, mode="edge"))


def _cropped(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image that covers `size`, what is beyond it cut off."""
    height, width = size
    ratio, own = width / height, image.width / image.height
    inner = (
        (width, image.height * width // image.width)
        if ratio > own
        else (image.width * height // image.height, height)
    )
    whole = Image.new("RGB", (width, height))
    resized = image.resize(inner, _RESAMPLING)
    whole.paste(resized, (width // 2 - inner[0] // 2, height // 2 - inner[1] // 2))
    return whole


def _interpolated(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    height, width = size or images.shape[2:]
    return F.interpolate(images, (height - height % _UNIT, width - width % _UNIT))
