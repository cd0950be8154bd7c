"""What comes back: finished pictures, on disk or on a sheet to choose from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from limner.errors import OutputError
from limner.request import GenerationRequest

from .metadata import Picture, write_picture

_GAP, _LABEL = 8, 18  # of a contact sheet, in pixels


@dataclass(frozen=True)
class GenerationResult:
    """Finished pictures.

    Attributes:
        images: PIL images; saving one as PNG, JPEG or WebP stores the request that draws it again.
        request: the request with every default filled in and the seed that was used.
        warnings: whatever was not done as asked, or may surprise.
    """

    images: tuple[Picture, ...]
    request: GenerationRequest
    warnings: tuple[str, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image."""
        return tuple(image.seed for image in self.images)

    def grid(self, columns: int | None = None) -> Image.Image:
        """All images on one sheet, row by row; by default about as many columns as rows."""
        return contact_sheet(self.images, columns or math.ceil(math.sqrt(len(self.images))))

    def save(self, folder: str | Path) -> list[Path]:
        """Write every image as a PNG named by its number and seed; nothing is overwritten.

        Raises:
            OutputError: the folder cannot be made or written.
        """
        return [save_new(image, Path(folder)) for image in self.images]


def save_new(picture: Picture, folder: Path) -> Path:
    """Write a picture as `00001-seed.png`, with the next free number; nothing is overwritten.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = [int(file.name[:5]) for file in folder.glob("[0-9][0-9][0-9][0-9][0-9]-*")]
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error
    path = folder / f"{max(taken, default=0) + 1:05d}-{picture.seed}.png"
    write_picture(picture, path)
    return path


def contact_sheet(pictures: Sequence[Picture], columns: int) -> Image.Image:
    """Pictures row by row, each above its seed."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    cell_width, cell_height = width + _GAP, height + _LABEL + _GAP
    sheet = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), "white")
    labels = [f"seed {picture.seed}" for picture in pictures]
    widest = max(ImageFont.load_default(12).getlength(label) for label in labels)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12 * min(1, width / widest))
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left, top = _GAP + index % columns * cell_width, _GAP + index // columns * cell_height
        sheet.paste(picture, (left, top))
        draw.text((left, top + height + 3), label, fill="black", font=font)
    return sheet
