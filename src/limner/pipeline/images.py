"""Pixels to tensors and back: the one place where value ranges change.

Inside, pictures are float tensors [B, 3, H, W] in [-1, 1]; outside, 8-bit RGB.
"""

import base64
import binascii
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError
from torch import Tensor

from limner.errors import InvalidRequest
from limner.preprocess import inpaint_condition, levels, preprocessed
from limner.request import Control, GenerationRequest

_DATA = "data:image/"
_LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # of red, green and blue, as Pillow weighs them
INPAINT = "inpaint"  # the preprocessor that is told a mask


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


@dataclass(frozen=True)
class Canvas:
    """The picture that a drawing begins with, and what of it is drawn anew.

    Attributes:
        whole: RGB, as it will be returned.
        mask: of the same size, 255 where the picture is drawn anew and 0 where it stays; None is all anew.
        hard: the mask before its edges were softened, of any size.
        box: left, top, right, bottom of the part that is drawn.
        size: width and height at which that is done.
    """

    whole: Image.Image
    mask: Image.Image | None
    hard: Image.Image | None
    box: tuple[int, int, int, int]
    size: tuple[int, int]

    @property
    def pixels(self) -> Tensor:
        """What the drawing begins with: [1, 3, H, W] in [-1, 1]."""
        return to_tensor([self.part(self.whole)])

    @property
    def masked(self) -> Tensor | None:
        """Where it is drawn anew: [1, 1, H, W] in [0, 1]."""
        return None if self.mask is None else _gray(self.part(self.mask))

    def finished(self, drawn: Tensor) -> Tensor:
        """The whole picture [1, 3, H, W] with what was drawn in its place; where the mask is 0, pixels keep
        their bits."""
        if self.mask is None:
            return drawn
        left, top, right, bottom = self.box
        if drawn.shape[2:] != (bottom - top, right - left):
            [image] = to_images(drawn)
            drawn = to_tensor([image.resize((right - left, bottom - top), Image.Resampling.LANCZOS)])
        share = _gray(self.mask)[:, :, top:bottom, left:right]
        picture = to_tensor([self.whole])
        part = picture[:, :, top:bottom, left:right]
        picture[:, :, top:bottom, left:right] = part + share * (drawn.clamp(-1.0, 1.0) - part)
        return picture

    def part(
        self, image: Image.Image, resampling: Image.Resampling = Image.Resampling.LANCZOS
    ) -> Image.Image:
        """What of a picture, which shows the same as the whole one, is in the box; of `size`."""
        cropped = _resized(image, self.whole.size, resampling).crop(self.box)
        return _resized(cropped, self.size, resampling)


def canvas_of(request: GenerationRequest) -> Canvas | None:
    """The canvas of a resolved request; None if it begins with no picture.

    Raises:
        InvalidRequest: a picture that cannot be read, or a mask that is all 0.
    """
    if request.image is None:
        return None
    assert request.width is not None
    assert request.height is not None
    size = request.width, request.height
    whole = _extended(_on_white(open_image(request.image)), request.extend)
    mask = None if request.mask is None else open_image(request.mask).convert("L")
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
        raise InvalidRequest("the mask is black: there is nothing to draw", hint="make some of it white")
    box = (0, 0, *whole.size)
    if request.inpaint_area == "masked":
        box = _around(found, request.mask_padding, whole.size, size)
    return Canvas(whole, mask, hard, box, size)


def _extended(image: Image.Image, by: tuple[int, int, int, int]) -> Image.Image:
    """A picture with room at its left, top, right and bottom, filled from its edges."""
    left, top, right, bottom = by
    if not any(by):
        return image
    return Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge"))


def _border(size: tuple[int, int], by: tuple[int, int, int, int]) -> Image.Image:
    """White in the room that `_extended` made."""
    left, top, right, bottom = by
    mask = Image.new("L", size, 255)
    mask.paste(0, (left, top, size[0] - right, size[1] - bottom))
    return mask


def _around(
    found: tuple[int, int, int, int], padding: int, whole: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The box around one in a picture of the size `whole`, with padding, in the proportions of `size` if the
    picture is large enough."""
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
    """A span moved, and if need be cut, to lie within a length."""
    low, high = span
    low, high = (0, high - low) if low < 0 else (low, high)
    low, high = (low - (high - length), length) if high > length else (low, high)
    return max(0, low), high


def read_gray(source: str, request: GenerationRequest) -> Tensor:
    """A depth map that a request names, at the request's size: [1, 1, H, W] in [0, 1]."""
    assert request.width is not None
    assert request.height is not None
    image, size = open_image(source), (request.width, request.height)
    if not image.mode.startswith("I"):
        image = image.convert("L")
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(levels(image)[None, None] / 255.0)


# The means and standard deviations of CLIP's training pictures, in [0, 1].
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_SPREAD = (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(image: Image.Image, side: int) -> Tensor:
    """What CLIP's image encoder is given of a picture, on white where it is transparent: the middle square,
    [1, 3, side, side], normalised."""
    image = _on_white(image)
    shorter = min(image.size)
    width, height = (int(side * length / shorter) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    pixels = (to_tensor([image.crop((left, top, left + side, top + side))]) + 1.0) / 2.0
    mean, spread = (torch.tensor(values)[:, None, None] for values in (_CLIP_MEAN, _CLIP_SPREAD))
    return (pixels - mean) / spread


def control_picture(
    control: Control, request: GenerationRequest, channels: int, canvas: Canvas | None = None
) -> Tensor:
    """What a control network is given at the size of a resolved request: [1, channels, H, W] in [0, 1].

    Args:
        channels: 3, or 1 for shades of gray.
        canvas: of the request; where a part of it is drawn, the control picture's same part is taken, and
            where room is made around it, the picture for `INPAINT` may be the one without.
    """
    assert request.width is not None
    assert request.height is not None
    image = open_image(control.image)
    if image.mode in ("1", "P"):
        image = image.convert("RGBA")  # Pillow would resize a palette by its nearest pixels
    if _lacks_room(image, request):
        image = _extended(image.convert("RGBA"), request.extend)
    if canvas is None:
        image = _resized(image, (request.width, request.height), Image.Resampling.LANCZOS)
    else:
        image = canvas.part(image)
    if control.preprocessor == INPAINT:
        assert canvas is not None
        assert canvas.hard is not None
        told = inpaint_condition(image, canvas.part(canvas.hard, Image.Resampling.NEAREST))
        picture = torch.from_numpy(told).permute(2, 0, 1)[None]
    else:
        picture = to_tensor([preprocessed(image, control.preprocessor)]) * 0.5 + 0.5
    return picture if channels == 3 else (picture * _LUMA).sum(1, keepdim=True)


def _lacks_room(image: Image.Image, request: GenerationRequest) -> bool:
    """Whether a control picture shows what the request extends, without the room around it."""
    assert request.image is not None or not any(request.extend)
    return any(request.extend) and image.size == open_image(str(request.image)).size


def check_control(control: Control, request: GenerationRequest) -> None:
    """Raise InvalidRequest where the control picture could not be made."""
    if control.preprocessor == INPAINT:
        if request.mask is None and not any(request.extend):
            raise InvalidRequest(
                "the preprocessor inpaint needs to know what is drawn anew",
                hint="give a mask with --mask, or make room with --extend",
            )
        return
    preprocessed(Image.new("RGB", (8, 8)), control.preprocessor)  # its options may be at fault too
    if any(request.extend) and _lacks_room(image := open_image(control.image), request):
        left, top, right, bottom = request.extend
        whole = image.width + left + right, image.height + top + bottom
        raise InvalidRequest(
            f"a control picture is {image.width} x {image.height}, as is the picture that is extended, and "
            "says nothing of the room around it",
            hint=f"give one of the whole, {whole[0]} x {whole[1]}",
        )


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


def _on_white(image: Image.Image) -> Image.Image:
    """RGB, on white where it is transparent."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _resized(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, resampling)


def _gray(image: Image.Image) -> Tensor:
    """[1, 1, H, W] in [0, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32)[None, None] / 255.0)
