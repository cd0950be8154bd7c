"""Pixels to tensors and back: the one place where value ranges change.

Inside, pictures are float tensors [B, 3, H, W] in [-1, 1]; outside, 8-bit RGB.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


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
