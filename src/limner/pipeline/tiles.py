"""Decoding a picture in tiles, for pictures whose feature maps would not fit into memory whole."""

from collections.abc import Callable

import torch
from torch import Tensor

TILE = 64  # side of a tile in latent pixels
_OVERLAP = 24  # at least so much of it is shared with its neighbour


def decode_in_tiles(decode: Callable[[Tensor], Tensor], latents: Tensor, scale: int) -> Tensor:
    """Decode latents tile by tile.

    Neighbours overlap, and each fades into the other over all of what they share: an autoencoder normalises
    over what it sees, so that tiles differ a little in brightness where they meet.

    Args:
        decode: latents [1, C, h, w] -> picture [1, 3, scale * h, scale * w].
        latents: [1, C, h, w].

    Returns:
        [1, 3, scale * h, scale * w].
    """
    height, width = latents.shape[2:]
    picture = torch.zeros(1, 3, scale * height, scale * width)
    whole = torch.zeros(1, 1, scale * height, scale * width)
    for top, rows in _spans(height):
        for left, columns in _spans(width):
            tile = decode(latents[:, :, top : top + rows, left : left + columns])
            weight = _fading(scale * rows, scale)[:, None] * _fading(scale * columns, scale)[None]
            place = (
                ...,
                slice(scale * top, scale * (top + rows)),
                slice(scale * left, scale * (left + columns)),
            )
            picture[place] += tile.float().cpu() * weight
            whole[place] += weight
    return picture / whole


def _spans(length: int) -> list[tuple[int, int]]:
    """Where tiles begin along one side and how long they are: as few as cover it, evenly spread."""
    if length <= TILE:
        return [(0, length)]
    steps = -(-(length - TILE) // (TILE - _OVERLAP))  # between the first tile and the last
    return [(round(index * (length - TILE) / steps), TILE) for index in range(steps + 1)]


def _fading(length: int, scale: int) -> Tensor:
    """The weight of each pixel along a side of a tile: it falls towards both ends over the overlap."""
    position = torch.arange(length) + 0.5
    nearest = torch.minimum(position, length - position)
    return (nearest / (scale * _OVERLAP)).clamp(max=1.0)
