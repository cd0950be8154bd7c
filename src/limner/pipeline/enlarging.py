"""Making latents or a picture larger between two passes of a drawing."""

from math import gcd
from typing import Literal

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from limner.request import Tiling, Upscaler

from .images import to_images, to_tensor

Size = tuple[int, int]

# As `F.interpolate` calls them, and whether it filters what it makes smaller.
_OF_LATENTS: dict[Upscaler, tuple[str, bool]] = {
    "latent": ("bilinear", False),
    "latent_antialiased": ("bilinear", True),
    "latent_bicubic": ("bicubic", False),
    "latent_bicubic_antialiased": ("bicubic", True),
    "latent_nearest": ("nearest", False),
    "latent_nearest_exact": ("nearest-exact", False),
}
_OF_PICTURES = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
_SEEN = 8  # pixels, and more than that no upscaler looks to either side


def works_on(upscaler: Upscaler) -> Literal["latents", "pictures"]:
    """What `enlarged` takes for an upscaler."""
    return "latents" if upscaler in _OF_LATENTS else "pictures"


def enlarged(x: Tensor, size: Size, upscaler: Upscaler, tiling: Tiling | None = None) -> Tensor:
    """Latents, or a picture in [-1, 1], at another size.

    The proportions are kept: what stands over is cut off, evenly on both sides, as AUTOMATIC1111 does.

    Args:
        x: [1, C, h, w].
        size: height and width.
        tiling: the directions in which the two ends of x meet; nothing may stand over in them.

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
    """How many pixels of the opposite end to resize along, so that they become whole pixels."""
    step = side // gcd(side, larger)
    return min(side, step * -(-_SEEN // step))


def _resize_latents(latents: Tensor, size: Size, upscaler: Upscaler) -> Tensor:
    mode, antialias = _OF_LATENTS[upscaler]
    return F.interpolate(latents, size, mode=mode, antialias=antialias)


def _resize_picture(picture: Tensor, size: Size, upscaler: Upscaler) -> Tensor:
    [image] = to_images(picture)
    return to_tensor([image.resize(size[::-1], _OF_PICTURES[upscaler])])
