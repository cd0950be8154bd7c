"""Pixels to tensors and back: the one place where value ranges change.

Inside, pictures are float tensors [B, 3, H, W] in [-1, 1]; outside, 8-bit RGB.
"""

import base64
import binascii
import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from limner.errors import InvalidRequest
from limner.request import GenerationRequest

_DATA = "data:image/"


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


def read_pixels(source: str, request: GenerationRequest) -> Tensor:
    """A picture that a request names, at the request's size: [1, 3, H, W] in [-1, 1]."""
    return to_tensor([_fitted(open_image(source).convert("RGB"), request)])


def read_gray(source: str, request: GenerationRequest) -> Tensor:
    """A mask or a depth map that a request names, at the request's size: [1, 1, H, W] in [0, 1]."""
    image = _fitted(open_image(source).convert("L"), request)
    return torch.from_numpy(np.asarray(image, dtype=np.float32)[None, None] / 255.0)


def open_image(source: str) -> Image.Image:
    """A picture by its path or from a data URL, turned the way up that its EXIF says.

    Raises:
        InvalidRequest: there is no such file, or it is no picture.
    """
    shown = source if len(source) <= 80 else f"{source[:77]}…"
    try:
        if source.startswith(_DATA):
            data = base64.b64decode(source.partition(",")[2], validate=True)
            image = Image.open(io.BytesIO(data))
        else:
            image = Image.open(os.path.expanduser(source))
        image.load()
        return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise InvalidRequest(f"there is no picture {shown}", hint="give a path, or a data: URL") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        binascii.Error,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        raise InvalidRequest(f"{shown} cannot be read as a picture: {error}") from None


def image_source(image: Image.Image | Path | str) -> str:
    """What a request holds for a picture: its path, or a data URL with the pixels."""
    if not isinstance(image, Image.Image):
        return str(image)
    encoded = io.BytesIO()
    image.save(encoded, format="PNG", compress_level=1)
    return f"{_DATA}png;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _fitted(image: Image.Image, request: GenerationRequest) -> Image.Image:
    assert request.width is not None
    assert request.height is not None
    size = request.width, request.height
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
