"""Images to tensors and back: the one place where value ranges change.

Inside, images are float tensors [B, 3, H, W] in [-1, 1]; outside, 8-bit RGB.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .opening import to_gray, to_rgb


def to_images(tensor: Tensor) -> list[Image.Image]:
    """Float [B, 3, H, W] to RGB images; values outside [-1, 1] are clamped, halves round to even."""
    pixels = ((tensor.detach().float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(rows) for rows in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def to_tensor(images: list[Image.Image]) -> Tensor:
    """RGB images of one size to float [B, 3, H, W] in [-1, 1]."""
    return from_pixels(torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images])))


def from_pixels(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def depth_map(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """A depth map of width and height `size`: [1, 1, H, W] in [0, 1]."""
    if image.mode != "F":
        image = image.convert("L")
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(to_gray(image)[None, None] / 255.0)


# Mean and standard deviation of CLIP's training images, in [0, 1].
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_SPREAD = (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(image: Image.Image, side: int) -> Tensor:
    """Input of CLIP's image encoder: the central square of an image, [1, 3, side, side], normalised."""
    image = to_rgb(image)
    shorter = min(image.size)
    width, height = (int(side * length / shorter) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    pixels = (to_tensor([image.crop((left, top, left + side, top + side))]) + 1.0) / 2.0
    mean, spread = (torch.tensor(values)[:, None, None] for values in (_CLIP_MEAN, _CLIP_SPREAD))
    return (pixels - mean) / spread


def resized(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, resampling)


def gray_tensor(image: Image.Image) -> Tensor:
    """[1, 1, H, W] in [0, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32)[None, None] / 255.0)
