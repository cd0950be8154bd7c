"""Conversion of images in diffusers' forms: PIL images, arrays or tensors, alone or in lists."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from limner.errors import InvalidRequest
from limner.images.opening import eight_bit, open_image, to_rgb
from limner.images.pixels import to_images, to_tensor

ImageInput = Image.Image | np.ndarray[Any, Any] | Tensor | Sequence[Any]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""

_UNIT = 8
_EXPECTED = "expected a PIL image, an array or a tensor, or a list"
_RESAMPLING = Image.Resampling.LANCZOS


def image_tensor(
    given: ImageInput | None,
    size: tuple[int, int] | None = None,
    *,
    latent_channels: int = 4,
    box: Box | None = None,
) -> Tensor:
    """Return images as a tensor [B, 3, H, W] in [-1, 1]; latents are returned unchanged.

    Args:
        given: PIL images; arrays [H, W, 3] or [B, H, W, 3]; tensors [3, H, W] or [B, 3, H, W]. Values of
            arrays and tensors are in [0, 1], or in [-1, 1] if any is negative. Tensors with `latent_channels`
            channels are latents.
        size: Height and width; None is the size of the images, rounded down to multiples of 8.
        box: Crop of PIL images. The crop is fitted into `size`, and its edges are repeated to fill it.

    Raises:
        InvalidRequest: `given` is of another type.
    """
    images = _image_list_or_tensor(given)
    if isinstance(images, Tensor) and images.shape[1] == latent_channels:
        return images.float()
    pixels = pixel_tensor(images, size, box=box)
    return pixels if bool(pixels.min() < 0) else 2.0 * pixels - 1.0


def pixel_tensor(
    given: ImageInput | None, size: tuple[int, int] | None = None, *, box: Box | None = None
) -> Tensor:
    """Return images [B, 3, H, W] without normalization; PIL images give [0, 1]. Arguments as in
    `image_tensor`."""
    if isinstance(images := _image_list_or_tensor(given), list):
        first = images[0]
        height, width = size or (first.height, first.width)
        wanted = height - height % _UNIT, width - width % _UNIT
        return (to_tensor([_resize(image, wanted, box).convert("RGB") for image in images]) + 1.0) / 2.0
    return _interpolate(images.float(), size)


def size_of(given: Any) -> tuple[int, int]:
    """Return height and width of an image or mask, or of the first of several, rounded down to multiples of
    8."""
    while isinstance(given, list | tuple):
        given = given[0]
    if isinstance(given, Image.Image):
        height, width = given.height, given.width
    elif isinstance(given, Tensor):
        height, width = given.shape[-2:]
    elif isinstance(given, np.ndarray):
        height, width = given.shape[:2] if given.ndim < 4 else given.shape[1:3]
    else:
        raise InvalidRequest(f"an image is {type(given).__name__}; {_EXPECTED}")
    return height - height % _UNIT, width - width % _UNIT


def mask_tensor(given: ImageInput | None, size: tuple[int, int], *, box: Box | None = None) -> Tensor:
    """Return masks [B, 1, H, W]: 1 is regenerated, 0 is kept. Arguments as in `image_tensor`."""
    if isinstance(given, np.ndarray) and given.ndim == 2:
        given = given[None]
    if isinstance(given, Tensor | np.ndarray) and given.ndim == 3:
        given = given[:, None] if isinstance(given, Tensor) else given[..., None]
    if isinstance(images := _image_list_or_tensor(given), list):
        grays = [np.asarray(_resize(image, size, box).convert("L"), np.float32) for image in images]
        masks = torch.from_numpy(np.stack(grays))[:, None] / 255.0
    else:
        masks = _interpolate(images.float(), size)
    return (masks >= 0.5).float()


def crop_box(mask: Image.Image, size: tuple[int, int], padding: int) -> Box:
    """Return the bounding box of the non-black mask area, padded, then enlarged to the aspect ratio of
    `size`.

    Raises:
        InvalidRequest: The mask is all black.
    """
    found = eight_bit(mask).convert("L").getbbox()
    if found is None:
        raise InvalidRequest("mask_image is black: there is nothing to regenerate")
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


def paste_where_masked(
    drawn: Image.Image, into: Image.Image, mask: Image.Image, box: Box | None
) -> Image.Image:
    """Paste `drawn`, the regenerated `box` or whole of `into`, over `into` where the mask is white."""
    base = drawn
    if box is not None:
        left, top, right, bottom = box
        base = Image.new("RGBA", into.size)
        base.paste(_resize_and_crop(drawn, (bottom - top, right - left)), (left, top))
    kept = Image.new("RGBa", into.size)
    kept.paste(
        eight_bit(into).convert("RGBA").convert("RGBa"), mask=ImageOps.invert(eight_bit(mask).convert("L"))
    )
    base = base.convert("RGB").convert("RGBA")
    base.alpha_composite(kept.convert("RGBA"))
    return base.convert("RGB")


def to_output(pictures: Tensor, output_type: str) -> Any:
    """Convert images [B, 3, H, W] in [-1, 1] to PIL images ("pil"), an array [B, H, W, 3] in [0, 1] ("np") or
    a tensor [B, 3, H, W] in [0, 1] ("pt")."""
    if output_type == "pil":
        return to_images(pictures)
    pictures = (pictures / 2 + 0.5).clamp(0.0, 1.0)
    return pictures if output_type == "pt" else pictures.float().cpu().permute(0, 2, 3, 1).numpy()


class VaeImageProcessor:
    """Converter between images and the tensors of the autoencoder, for programs that write their own loop.

    Args:
        vae_scale_factor: Number of pixels per latent pixel, in each direction; must be 8.
        do_normalize: Whether tensors are in [-1, 1]; otherwise in [0, 1]. Must be False for masks.
        do_binarize, do_convert_grayscale: Whether to convert masks; set both or neither.

    Raises:
        InvalidRequest: Another combination was given.
    """

    def __init__(
        self,
        vae_scale_factor: int = 8,
        *,
        do_normalize: bool = True,
        do_binarize: bool = False,
        do_convert_grayscale: bool = False,
    ) -> None:
        if vae_scale_factor != _UNIT or do_binarize != do_convert_grayscale or (do_binarize and do_normalize):
            raise InvalidRequest(
                "images are processed in [-1, 1] or [0, 1], and masks in black and white, for "
                f"vae_scale_factor={_UNIT}; nothing else is offered"
            )
        self._normalize, self._masks = do_normalize, do_binarize

    def preprocess(self, image: ImageInput, height: int | None = None, width: int | None = None) -> Tensor:
        """Convert images to a tensor [B, 3, H, W], or masks to [B, 1, H, W]; input as in `image_tensor`."""
        own = size_of(image)
        size = height or own[0], width or own[1]
        if self._masks:
            return mask_tensor(image, size)
        return image_tensor(image, size) if self._normalize else pixel_tensor(image, size)

    def postprocess(
        self, image: Tensor, output_type: str = "pil", do_denormalize: Sequence[bool] | None = None
    ) -> Any:
        """Convert images [B, 3, H, W] to `output_type`: "pil", "np", "pt", or "latent" for no conversion.

        Args:
            do_denormalize: For each image, whether it is in [-1, 1] rather than [0, 1].

        Raises:
            InvalidRequest: `output_type` is unknown, or `do_denormalize` has another length than `image`.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise InvalidRequest(f"output_type is {output_type!r}; expected 'pil', 'np', 'pt' or 'latent'")
        if output_type == "latent":
            return image
        normal = [self._normalize] * len(image) if do_denormalize is None else do_denormalize
        if len(normal) != len(image):
            raise InvalidRequest(f"do_denormalize has {len(normal)} items for {len(image)} images")
        rows = [row if own else 2.0 * row - 1.0 for row, own in zip(image, normal, strict=True)]
        return to_output(torch.stack(rows), output_type)

    @staticmethod
    def blur(image: Image.Image, blur_factor: int = 4) -> Image.Image:
        """Blur an image with a Gaussian of radius `blur_factor` pixels."""
        return image.filter(ImageFilter.GaussianBlur(blur_factor))

    @staticmethod
    def apply_overlay(
        mask: Image.Image, init_image: Image.Image, image: Image.Image, crop_coords: Box | None = None
    ) -> Image.Image:
        """Paste `image`, the regenerated whole or crop of `init_image`, over it where the mask is white."""
        return paste_where_masked(image, init_image, mask, crop_coords)


def load_image(image: str | Path | Image.Image) -> Image.Image:
    """Load an image from a path or URL, in RGB, rotated as its EXIF orientation says.

    Raises:
        InvalidRequest: There is no such file, or it is not an image.
        OSError: The URL cannot be fetched.
    """
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        with urlopen(Request(image, headers={"User-Agent": "limner"}), timeout=60) as answer:
            image = Image.open(io.BytesIO(answer.read()))
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image), background=None)
    return to_rgb(open_image(image), background=None)


def make_image_grid(
    images: Sequence[Image.Image], rows: int, cols: int, resize: int | None = None
) -> Image.Image:
    """Arrange images of one size in a grid.

    Args:
        resize: Side of each cell in pixels; None keeps the size of the images.

    Raises:
        InvalidRequest: The number of images is not `rows * cols`.
    """
    if len(images) != rows * cols:
        raise InvalidRequest(f"{len(images)} images do not fill {rows} rows of {cols}")
    shown = [image if resize is None else image.resize((resize, resize)) for image in images]
    width, height = shown[0].size
    grid = Image.new("RGB", (cols * width, rows * height))
    for number, image in enumerate(shown):
        grid.paste(image, (number % cols * width, number // cols * height))
    return grid


def _image_list_or_tensor(given: ImageInput | None) -> list[Image.Image] | Tensor:
    """Return PIL images as a list, and arrays or tensors as one tensor [B, C, H, W]."""
    items: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    if items and all(isinstance(item, Image.Image) for item in items):
        return [eight_bit(item) for item in items]
    tensors = []
    for item in items:
        if isinstance(item, np.ndarray) and item.ndim in (3, 4):
            batch = item if item.ndim == 4 else item[None]
            tensors.append(torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2))
        elif isinstance(item, Tensor) and item.ndim in (3, 4):
            tensors.append((item if item.ndim == 4 else item[None]).detach().cpu())
        else:
            raise InvalidRequest(f"an image is {type(item).__name__}; {_EXPECTED}")
    return torch.cat(tensors)


def _resize(image: Image.Image, size: tuple[int, int], box: Box | None) -> Image.Image:
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


def _resize_and_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an image to cover `size` (height, width), and crop it at the centre."""
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


def _interpolate(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    height, width = size or images.shape[2:]
    return F.interpolate(images, (height - height % _UNIT, width - width % _UNIT))
