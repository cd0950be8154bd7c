"""Contact sheets of images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from limner.images.pixels import to_images

from .cache import draw_block
from .data import Images


def stacked(pictures: Images, count: int) -> Tensor:
    """The first `count` images, or all if there are fewer: uint8 [count, size, size, 3], without the last
    axis if they are gray."""
    return torch.from_numpy(draw_block(pictures, range(min(count, len(pictures)))))


@dataclass(frozen=True)
class Sheet:
    """Images in rows, from left to right.

    Attributes:
        images: RGB images of one size.
        columns: Number of images in a row.
    """

    images: tuple[Image.Image, ...]
    columns: int

    def image(self) -> Image.Image:
        """All of them as one image."""
        width, height = self.images[0].size
        rows = -(-len(self.images) // self.columns)
        paper = Image.new("RGB", (self.columns * width, rows * height), "white")
        for index, image in enumerate(self.images):
            paper.paste(image, (index % self.columns * width, index // self.columns * height))
        return paper


def compared(pictures: Sequence[Tensor], columns: int = 8) -> Sheet:
    """A sheet of batches [B, 3, H, W] of equal length: in each row of one, those of the others below it."""
    rows = zip(*(torch.split(each, columns) for each in pictures), strict=True)
    return sheet(torch.cat([part for row in rows for part in row]), columns)


def sheet(pictures: Tensor, columns: int) -> Sheet:
    """Float [B, 3, H, W] in [-1, 1] as a sheet with `columns` columns."""
    return Sheet(tuple(to_images(pictures)), columns)
