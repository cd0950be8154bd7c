"""The result of a request: finished images, and how they are saved."""

import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from limner.errors import OutputError
from limner.files import free_numbers
from limner.request import GenerationRequest

from .picture import Encode, Picture, encode, write_new_picture
from .sheets import contact_sheet


@dataclass(frozen=True)
class GenerationResult:
    """Finished images.

    Attributes:
        images: PIL images that keep their record when they are saved.
        request: Resolved request, with the seed that was used.
        warnings: What was not done as asked, or may surprise.
        cancelled: Numbers of the images that are missing, from 1: cancelled one by one, or withheld by the
            safety policy.
    """

    images: tuple[Picture, ...]
    request: GenerationRequest
    warnings: tuple[str, ...] = ()
    cancelled: tuple[int, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image."""
        return tuple(image.seed for image in self.images)

    def grid(self, columns: int | None = None) -> Image.Image:
        """A contact sheet of all images, row by row. Default: about as many columns as rows."""
        return contact_sheet(self.images, columns or math.ceil(math.sqrt(len(self.images))))

    def save(self, folder: str | Path) -> list[Path]:
        """Write every image as a PNG named by its number and seed; nothing is overwritten.

        Raises:
            OutputError: The folder cannot be made or written.
        """
        return [save_new(image, Path(folder)) for image in self.images]


def save_new(picture: Picture, folder: Path, encode: Encode = encode) -> Path:
    """Write an image as `00001-seed.png`, with the next free number; nothing is overwritten.

    Args:
        encode: Makes the bytes of the file.

    Raises:
        OutputError: The folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror or error}") from error
    names = (f"{number:05d}-{picture.seed}.png" for number in free_numbers(folder))
    return write_new_picture(picture, (folder / name for name in names), encode)
