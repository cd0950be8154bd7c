"""The input image, mask and control images of a generation, at the size of its passes."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from limner.diffusion.samplers import Noise
from limner.errors import InvalidRequest
from limner.images.checks import INPAINT, lacks_margin
from limner.images.inputs import InputImages
from limner.images.opening import to_mask, to_rgb
from limner.images.pixels import gray_tensor, resized, to_images, to_tensor
from limner.images.preprocess import inpaint_condition, preprocessed
from limner.request import Control, GenerationRequest

from .calls import Call, DecodeLatents, EncodeImage

_LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # of red, green and blue, as Pillow weighs them


@dataclass(frozen=True)
class Canvas:
    """The input image of a generation, and the part of it that is regenerated.

    Attributes:
        whole: The whole image in RGB, at the size of the result.
        mask: Same size; 255 where the image is regenerated, 0 where it is kept. None: all is regenerated.
        hard: The mask before its edges were blurred, of any size.
        box: Left, top, right and bottom of the part that is generated.
        size: Width and height at which that part is generated.
    """

    whole: Image.Image
    mask: Image.Image | None
    hard: Image.Image | None
    box: tuple[int, int, int, int]
    size: tuple[int, int]

    @property
    def pixels(self) -> Tensor:
        """The input image within the box: [1, 3, H, W] in [-1, 1]."""
        return to_tensor([self.part(self.whole)])

    @property
    def masked(self) -> Tensor | None:
        """Regenerated area: [1, 1, H, W] in [0, 1]."""
        return None if self.mask is None else gray_tensor(self.part(self.mask))

    def finished(self, generated: Tensor) -> Tensor:
        """The whole image [1, 3, H, W] with the generated part pasted into the box; where the mask is 0,
        pixels keep their bits."""
        if self.mask is None:
            return generated
        left, top, right, bottom = self.box
        if generated.shape[2:] != (bottom - top, right - left):
            [image] = to_images(generated)
            generated = to_tensor([image.resize((right - left, bottom - top), Image.Resampling.LANCZOS)])
        share = gray_tensor(self.mask)[:, :, top:bottom, left:right]
        result = to_tensor([self.whole])
        part = result[:, :, top:bottom, left:right]
        result[:, :, top:bottom, left:right] = part + share * (generated.clamp(-1.0, 1.0) - part)
        return result

    def part(
        self, image: Image.Image, resampling: Image.Resampling = Image.Resampling.LANCZOS
    ) -> Image.Image:
        """The part within the box, at `size`, of an image that is aligned with the whole one."""
        cropped = resized(image, self.whole.size, resampling).crop(self.box)
        return resized(cropped, self.size, resampling)


def canvas_of(request: GenerationRequest, size: tuple[int, int], images: InputImages) -> Canvas | None:
    """The canvas of a request; None without an input image.

    Args:
        size: Width and height of the pass.
        images: Opens the request's images.

    Raises:
        InvalidRequest: An image that cannot be read, or a mask that is all 0.
    """
    if request.image is None:
        return None
    whole = _extended(to_rgb(images(request.image)), request.extend)
    mask = None if request.mask is None else to_mask(images(request.mask, values=True))
    if request.extend != (0, 0, 0, 0):
        mask = _border(whole.size, request.extend)
    if (request.inpaint_area == "whole" or mask is None) and whole.size != size:
        whole = whole.resize(size, Image.Resampling.LANCZOS)
    if mask is None:
        return Canvas(whole, None, None, (0, 0, *size), size)
    hard = mask
    if mask.size != whole.size:
        mask = mask.resize(whole.size, Image.Resampling.LANCZOS)
    if request.mask_blur:
        mask = mask.filter(ImageFilter.GaussianBlur(request.mask_blur))
    found = mask.getbbox()
    if found is None:
        raise InvalidRequest(
            "the mask is black, so that nothing is regenerated", hint="make some of it white"
        )
    box = (0, 0, *whole.size)
    if request.inpaint_area == "masked":
        box = _around(found, request.mask_padding, whole.size, size)
    return Canvas(whole, mask, hard, box, size)


def _extended(image: Image.Image, by: tuple[int, int, int, int]) -> Image.Image:
    """An image with margins at its left, top, right and bottom, filled with the colours of its edges."""
    left, top, right, bottom = by
    if not any(by):
        return image
    pixels = np.asarray(image)
    widths = [(top, bottom), (left, right), (0, 0)][: pixels.ndim]
    return Image.fromarray(np.pad(pixels, widths, mode="edge"))


def _border(size: tuple[int, int], by: tuple[int, int, int, int]) -> Image.Image:
    """A mask that is white in the margins of `_extended`."""
    left, top, right, bottom = by
    mask = Image.new("L", size, 255)
    mask.paste(0, (left, top, size[0] - right, size[1] - bottom))
    return mask


def _around(
    found: tuple[int, int, int, int], padding: int, whole: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The box `found` with padding, widened to the proportions of `size` if the image is large enough.

    Args:
        whole: Width and height of the image.
    """
    sides = [_span((found[axis] - padding, found[axis + 2] + padding), whole[axis]) for axis in (0, 1)]
    for axis in (0, 1):
        other = sides[1 - axis]
        wanted = round((other[1] - other[0]) * size[axis] / size[1 - axis])
        lacking = wanted - (sides[axis][1] - sides[axis][0])
        if lacking > 0:
            low = sides[axis][0] - lacking // 2
            sides[axis] = _span((low, low + wanted), whole[axis])
    (left, right), (top, bottom) = sides
    return left, top, right, bottom


def _span(span: tuple[int, int], length: int) -> tuple[int, int]:
    """A span moved, and shortened if it is longer, to lie within 0 and `length`."""
    low, high = span
    low, high = (0, high - low) if low < 0 else (low, high)
    low, high = (low - (high - length), length) if high > length else (low, high)
    return max(0, low), high


def control_image(
    control: Control,
    request: GenerationRequest,
    size: tuple[int, int],
    channels: int,
    images: InputImages,
    canvas: Canvas | None = None,
) -> Tensor:
    """The control image as its network reads it: [1, channels, H, W] in [0, 1].

    Args:
        size: Width and height of the pass.
        channels: 3, or 1 for grayscale.
        images: Opens the request's images.
        canvas: Canvas of the request. If only a part is generated, the same part of the control image is
            used. If the image is extended, the control image for `INPAINT` may be the image before that.
    """
    image = images(control.image, values=control.preprocessor == "none")
    if lacks_margin(image.size, request, images):
        image = _extended(image, request.extend)
    whole = resized(image, size, Image.Resampling.LANCZOS) if canvas is None else canvas.part(image)
    if control.preprocessor == INPAINT:
        assert canvas is not None
        assert canvas.hard is not None
        condition = inpaint_condition(whole, canvas.part(canvas.hard, Image.Resampling.NEAREST))
        picture = torch.from_numpy(condition).permute(2, 0, 1)[None]
    else:
        picture = to_tensor([preprocessed(whole, control.preprocessor)]) * 0.5 + 0.5
    return picture if channels == 3 else (picture * _LUMA).sum(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Kept:
    """Latents of the input image, which are kept where a mask [1, 1, h, w] is 0, and their noise."""

    latents: Tensor
    noise: Tensor
    mask: Tensor

    def noisy(self, x: Tensor, sigma: float) -> Tensor:
        """Latents with noise of sigma: x where the mask is 1, the input image's where it is 0."""
        return self.latents + sigma * self.noise + self.mask * (x - self.latents - sigma * self.noise)

    def within(self, generated: Tensor) -> Tensor:
        """Latents without noise: generated where the mask is 1, the input image's where it is 0."""
        return self.latents + self.mask * (generated - self.latents)


def latent_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask [1, 1, H, W] at the size of latents; blurred edges stay blurred."""
    hard = bool(((mask == 0.0) | (mask == 1.0)).all())
    return F.interpolate(mask, tuple(size), mode="nearest" if hard else "area")


def decoded(latents: Tensor, request: GenerationRequest) -> Generator[Call, Any, Tensor]:
    picture: Tensor = yield DecodeLatents(latents, request.vae_tiling, request.tiling)
    return picture


def encoded(picture: Tensor, request: GenerationRequest) -> Generator[Call, Any, tuple[Tensor, Tensor]]:
    mean, spread = yield EncodeImage(picture, request.vae_tiling, request.tiling)
    return mean, spread


def encoded_sample(picture: Tensor, request: GenerationRequest, noise: Noise) -> Generator[Call, Any, Tensor]:
    """Latents [1, C, h, w] of an image [1, 3, H, W], sampled from the autoencoder's distribution for it."""
    mean, spread = yield from encoded(picture, request)
    return mean + spread * noise()
