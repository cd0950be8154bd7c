"""Contact sheets of images."""

from collections.abc import Sequence

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


def compared(pictures: Sequence[Tensor], columns: int = 8) -> Image.Image:
    """A sheet of batches [B, 3, H, W] of equal length: in each row of one, those of the others below it."""
    rows = zip(*(torch.split(each, columns) for each in pictures), strict=True)
    return sheet(torch.cat([part for row in rows for part in row]), columns)


def sheet(pictures: Tensor, columns: int) -> Image.Image:
    """Float [B, 3, H, W] in [-1, 1] on one sheet with `columns` columns."""
    images = to_images(pictures)
    width, height = images[0].size
    paper = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for index, image in enumerate(images):
        paper.paste(image, (index % columns * width, index // columns * height))
    return paper
