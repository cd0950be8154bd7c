"""Pictures by the sheet."""

import torch
from PIL import Image
from torch import Tensor

from limner.pipeline.images import to_images

from .data import Pictures, draw_block


def stacked(pictures: Pictures, count: int) -> Tensor:
    """The first `count` pictures, uint8 [count, size, size, 3]; fewer where there are fewer."""
    return torch.from_numpy(draw_block(pictures, range(min(count, len(pictures)))))


def sheet(pictures: Tensor, columns: int) -> Image.Image:
    """Float [B, 3, H, W] in [-1, 1] on one sheet with so many columns."""
    images = to_images(pictures)
    width, height = images[0].size
    paper = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for index, image in enumerate(images):
        paper.paste(image, (index % columns * width, index // columns * height))
    return paper
