"""Pictures as diffusers takes them: PIL images, arrays or tensors, alone or in lists."""

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
from limner.pipeline.images import open_image, to_images, to_tensor

Pictures = Image.Image | np.ndarray[Any, Any] | Tensor | Sequence[Any]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""

_UNIT = 8
_EXPECTED = "expected a PIL image, an array or a tensor, or a list"
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


def size_of(given: Any) -> tuple[int, int]:
    """Height and width of a picture or mask, or of the first of several, cut to multiples of 8."""
    while isinstance(given, list | tuple):
        given = given[0]
    if isinstance(given, Image.Image):
        height, width = given.height, given.width
    elif isinstance(given, Tensor):
        height, width = given.shape[-2:]
    elif isinstance(given, np.ndarray):
        height, width = given.shape[:2] if given.ndim < 4 else given.shape[1:3]
    else:
        raise InvalidRequest(f"a picture is {type(given).__name__}; {_EXPECTED}")
    return height - height % _UNIT, width - width % _UNIT


def masks_of(given: Pictures | None, size: tuple[int, int], *, box: Box | None = None) -> Tensor:
    """Masks [B, 1, H, W], 1 where something is to be drawn and 0 elsewhere. Arguments as of `pictures_of`."""
    if isinstance(given, np.ndarray) and given.ndim == 2:
        given = given[None]
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


def pasted(drawn: Image.Image, into: Image.Image, mask: Image.Image, box: Box | None) -> Image.Image:
    """A picture with what was drawn of its `box`, or of all of it, in its place, where the mask is white."""
    base = drawn
    if box is not None:
        left, top, right, bottom = box
        base = Image.new("RGBA", into.size)
        base.paste(_cropped(drawn, (bottom - top, right - left)), (left, top))
    kept = Image.new("RGBa", into.size)
    kept.paste(into.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    base = base.convert("RGB").convert("RGBA")
    base.alpha_composite(kept.convert("RGBA"))
    return base.convert("RGB")


def finished(pictures: Tensor, output_type: str) -> Any:
    """Pictures [B, 3, H, W] in [-1, 1] as PIL images ("pil"), or in [0, 1] as an array [B, H, W, 3] ("np") or
    a tensor [B, 3, H, W] ("pt")."""
    if output_type == "pil":
        return to_images(pictures)
    pictures = (pictures / 2 + 0.5).clamp(0.0, 1.0)
    return pictures if output_type == "pt" else pictures.float().cpu().permute(0, 2, 3, 1).numpy()


class VaeImageProcessor:
    """Pictures on their way into the autoencoder and out of it, for programs with a loop of their own.

    Args:
        vae_scale_factor: how many pixels there are to a latent, along each side.
        do_normalize: the autoencoder's pictures are in [-1, 1]; otherwise, and of masks, in [0, 1].
        do_binarize, do_convert_grayscale: it is for masks; both or neither.

    Raises:
        InvalidRequest: something else than that.
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
                "pictures are processed in [-1, 1] or [0, 1], and masks in black and white, for "
                f"vae_scale_factor={_UNIT}; nothing else is offered"
            )
        self._normalize, self._masks = do_normalize, do_binarize

    def preprocess(self, image: Pictures, height: int | None = None, width: int | None = None) -> Tensor:
        """Pictures as a tensor [B, 3, H, W], or masks [B, 1, H, W]; what is given as of `pictures_of`."""
        own = size_of(image)
        size = height or own[0], width or own[1]
        if self._masks:
            return masks_of(image, size)
        return pictures_of(image, size) if self._normalize else pixels_of(image, size)

    def postprocess(
        self, image: Tensor, output_type: str = "pil", do_denormalize: Sequence[bool] | None = None
    ) -> Any:
        """Pictures [B, 3, H, W] in the form that is asked for: "pil", "np", "pt", or "latent" as they are.

        Args:
            do_denormalize: for each picture, whether it is in [-1, 1] rather than [0, 1].

        Raises:
            InvalidRequest: another form, or as many answers as pictures are needed.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise InvalidRequest(f"output_type is {output_type!r}; expected 'pil', 'np', 'pt' or 'latent'")
        if output_type == "latent":
            return image
        normal = [self._normalize] * len(image) if do_denormalize is None else do_denormalize
        if len(normal) != len(image):
            raise InvalidRequest(f"do_denormalize has {len(normal)} items for {len(image)} pictures")
        rows = [row if own else 2.0 * row - 1.0 for row, own in zip(image, normal, strict=True)]
        return finished(torch.stack(rows), output_type)

    @staticmethod
    def blur(image: Image.Image, blur_factor: int = 4) -> Image.Image:
        """A picture blurred by a Gaussian of so many pixels."""
        return image.filter(ImageFilter.GaussianBlur(blur_factor))

    @staticmethod
    def apply_overlay(
        mask: Image.Image, init_image: Image.Image, image: Image.Image, crop_coords: Box | None = None
    ) -> Image.Image:
        """`init_image` with `image`, which was drawn of it or of a box of it, where the mask is white."""
        return pasted(image, init_image, mask, crop_coords)


def load_image(image: str | Path | Image.Image) -> Image.Image:
    """A picture by its path or its address, in RGB and turned the way up that its EXIF says.

    Raises:
        InvalidRequest: there is no such file, or it is no picture.
        OSError: it cannot be fetched.
    """
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        with urlopen(Request(image, headers={"User-Agent": "limner"}), timeout=60) as answer:
            image = Image.open(io.BytesIO(answer.read()))
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).convert("RGB")
    return open_image(str(image)).convert("RGB")


def make_image_grid(
    images: Sequence[Image.Image], rows: int, cols: int, resize: int | None = None
) -> Image.Image:
    """Pictures of one size side by side, on one.

    Args:
        resize: the side of each on it, in pixels; None is as they are.

    Raises:
        InvalidRequest: rows times columns are not as many as there are pictures.
    """
    if len(images) != rows * cols:
        raise InvalidRequest(f"{len(images)} pictures do not fill {rows} rows of {cols}")
    shown = [image if resize is None else image.resize((resize, resize)) for image in images]
    width, height = shown[0].size
    grid = Image.new("RGB", (cols * width, rows * height))
    for number, image in enumerate(shown):
        grid.paste(image, (number % cols * width, number // cols * height))
    return grid


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
            raise InvalidRequest(f"a picture is {type(item).__name__}; {_EXPECTED}")
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
