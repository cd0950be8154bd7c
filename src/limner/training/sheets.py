"""Pictures by the sheet."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from limner.pipeline.images import to_images

from .data import Images, draw_block


def stacked(pictures: Images, count: int) -> Tensor:
    """The first `count` pictures, uint8 [count, size, size, 3] or, if gray, [count, size, size]; fewer where
    there are fewer."""
    return torch.from_numpy(draw_block(pictures, range(min(count, len(pictures)))))


def compared(pictures: Sequence[Tensor], columns: int = 8) -> Image.Image:
    """Pictures [B, 3, H, W] that belong together, row by row below each other."""
    rows = zip(*(torch.split(each, columns) for each in pictures), strict=True)
    return sheet(torch.cat([part for row in rows for part in row]), columns)


def sheet(pictures: Tensor, columns: int) -> Image.Image:
    """Float [B, 3, H, W] in [-1, 1] on one sheet with so many columns."""
    images = to_images(pictures)
    width, height = images[0].size
    paper = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for index, image in enumerate(images):
        paper.paste(image, (index % columns * width, index // columns * height))
    return paper
