"""The autoencoder piece by piece, for images whose feature maps would not fit into memory whole.

Neighbouring tiles overlap, and each fades into the other over all of what they share: an autoencoder
normalises over what it sees, so that tiles differ a little in brightness where they meet.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from limner.request.estimate import TILE

_OVERLAP = 24  # at least so much of it is shared with its neighbour


def decode_in_tiles(
    decode: Callable[[Tensor], Tensor], latents: Tensor, scale: int, around: str = ""
) -> Tensor:
    """Decode latents tile by tile.

    Args:
        decode: latents [1, C, h, w] -> image [1, 3, scale * h, scale * w].
        latents: [1, C, h, w].
        around: the axes ("x", "y") in which the two ends meet; sides longer than a tile.

    Returns:
        [1, 3, scale * h, scale * w].
    """
    return _in_tiles(decode, latents, 1, scale, around)


def encode_in_tiles(
    encode: Callable[[Tensor], tuple[Tensor, Tensor]], picture: Tensor, scale: int, around: str = ""
) -> tuple[Tensor, Tensor]:
    """Encode an image tile by tile.

    Args:
        encode: image [1, 3, scale * h, scale * w] -> mean and log-variance, each [1, C, h, w].
        picture: [1, 3, scale * h, scale * w].
        around: as of `decode_in_tiles`.

    Returns:
        mean and log-variance, each [1, C, h, w].
    """
    moments = _in_tiles(lambda tile: torch.cat(encode(tile), dim=1), picture, scale, 1, around)
    mean, logvar = moments.chunk(2, dim=1)
    return mean, logvar


def whole_axes(height: int, width: int) -> str:
    """The axes of latents that one tile is as long as."""
    return "x" * (width <= TILE) + "y" * (height <= TILE)


def _in_tiles(run: Callable[[Tensor], Tensor], x: Tensor, given: int, made: int, around: str) -> Tensor:
    """Run something on tiles of x, and blend what it makes of them.

    Args:
        given, made: how many pixels of x, and of the result, a latent pixel is long.
    """
    height, width = x.shape[2] // given, x.shape[3] // given
    total = torch.zeros(1, 1, made * height, made * width)
    result = torch.zeros(())
    for rows in _spans(height, "y" in around):
        for columns in _spans(width, "x" in around):
            tile = run(x[:, :, _pixels(rows, given)[:, None], _pixels(columns, given)]).float().cpu()
            weight = _fading(made * len(rows), made)[:, None] * _fading(made * len(columns), made)
            if not result.ndim:
                result = torch.zeros(1, tile.shape[1], *total.shape[2:])
            place = (..., _pixels(rows, made)[:, None], _pixels(columns, made))
            result[place] += tile * weight
            total[place] += weight
    return result / total


def _spans(length: int, around: bool = False) -> list[Tensor]:
    """The places along one side that each tile takes: as few tiles as cover it, evenly spread."""
    if length <= TILE:
        return [torch.arange(length)]
    if around:
        number = -(-length // (TILE - _OVERLAP))
        starts = [index * length / number for index in range(number)]
    else:
        steps = -(-(length - TILE) // (TILE - _OVERLAP))  # between the first tile and the last
        starts = [index * (length - TILE) / steps for index in range(steps + 1)]
    return [(round(start) + torch.arange(TILE)) % length for start in starts]


def _pixels(places: Tensor, scale: int) -> Tensor:
    """All pixels of places that are `scale` pixels long."""
    return (scale * places[:, None] + torch.arange(scale)).flatten()


def _fading(length: int, scale: int) -> Tensor:
    """The weight of each pixel along a side of a tile: it falls towards both ends over the overlap."""
    position = torch.arange(length) + 0.5
    nearest = torch.minimum(position, length - position)
    return (nearest / (scale * _OVERLAP)).clamp(max=1.0)
