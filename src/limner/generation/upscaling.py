"""Upscaling of latents or an image before a hires pass."""

from math import gcd
from typing import Literal

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from limner.images.pixels import to_images, to_tensor
from limner.request import Tiling, Upscaler

Size = tuple[int, int]

# Modes of `F.interpolate`, and whether it antialiases.
_OF_LATENTS: dict[Upscaler, tuple[str, bool]] = {
    "latent": ("bilinear", False),
    "latent_antialiased": ("bilinear", True),
    "latent_bicubic": ("bicubic", False),
    "latent_bicubic_antialiased": ("bicubic", True),
    "latent_nearest": ("nearest", False),
    "latent_nearest_exact": ("nearest-exact", False),
}
_OF_PICTURES = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
_REACH = 8  # pixels to either side that an upscaler reads at most


def works_on(upscaler: Upscaler) -> Literal["latents", "pictures"]:
    """What an upscaler works on."""
    return "latents" if upscaler in _OF_LATENTS else "pictures"


def enlarged(x: Tensor, size: Size, upscaler: Upscaler, tiling: Tiling | None = None) -> Tensor:
    """Latents, or an image in [-1, 1], at another size.

    The proportions are kept: x is scaled to cover the size, then cropped evenly on both sides, as in
    AUTOMATIC1111.

    Args:
        x: [1, C, h, w].
        size: Height and width.
        tiling: Axes along which opposite edges of x meet; nothing may be cropped along them.

    Returns:
        [1, C, *size].
    """
    (height, width), (h, w) = size, x.shape[2:]
    covering = max(height, width * h // w), max(width, height * w // h)
    margins = [
        _margin(side, larger) if axis in (tiling or "") else 0
        for axis, side, larger in zip("yx", (h, w), covering, strict=True)
    ]
    around = [margin * larger // side for margin, side, larger in zip(margins, (h, w), covering, strict=True)]
    resize = _resize_latents if upscaler in _OF_LATENTS else _resize_picture
    x = F.pad(x, (margins[1], margins[1], margins[0], margins[0]), mode="circular")
    y = resize(x, (covering[0] + 2 * around[0], covering[1] + 2 * around[1]), upscaler)
    top, left = (around[i] + (covering[i] - size[i]) // 2 for i in (0, 1))
    return y[:, :, top : top + height, left : left + width]


def _margin(side: int, larger: int) -> int:
    """Number of pixels of the opposite edge to add before resizing, such that they become whole pixels."""
    step = side // gcd(side, larger)
    return min(side, step * -(-_REACH // step))


def _resize_latents(latents: Tensor, size: Size, upscaler: Upscaler) -> Tensor:
    mode, antialias = _OF_LATENTS[upscaler]
    return F.interpolate(latents, size, mode=mode, antialias=antialias)


def _resize_picture(picture: Tensor, size: Size, upscaler: Upscaler) -> Tensor:
    [image] = to_images(picture)
    return to_tensor([image.resize(size[::-1], _OF_PICTURES[upscaler])])
