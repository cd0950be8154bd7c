"""Making latents or a picture larger between two passes of a drawing."""

from collections.abc import Callable
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
    resize = _resize_latents if upscaler in _OF_LATENTS else _resize_picture
    y = _joined_at_the_ends(x, covering, tiling or "", lambda x, size: resize(x, size, upscaler))
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return y[:, :, top : top + height, left : left + width]


def _joined_at_the_ends(x: Tensor, size: Size, axes: str, resize: Callable[[Tensor, Size], Tensor]) -> Tensor:
    """Resize so that pixels at one end know those at the other: the middle one of three copies."""
    copies = [3 if axis in axes else 1 for axis in "yx"]
    larger = resize(x.repeat(1, 1, *copies), (copies[0] * size[0], copies[1] * size[1]))
    top, left = (size[i] * (copies[i] // 2) for i in (0, 1))
    return larger[:, :, top : top + size[0], left : left + size[1]]


def _resize_latents(latents: Tensor, size: Size, upscaler: Upscaler) -> Tensor:
    mode, antialias = _OF_LATENTS[upscaler]
    return F.interpolate(latents, size, mode=mode, antialias=antialias)


def _resize_picture(picture: Tensor, size: Size, upscaler: Upscaler) -> Tensor:
    [image] = to_images(picture)
    return to_tensor([image.resize(size[::-1], _OF_PICTURES[upscaler])])
