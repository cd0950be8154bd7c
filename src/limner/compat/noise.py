"""Noise in diffusers' order of draws: a whole batch at once, or each image from its own generator."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import torch
from torch import Tensor

from limner.errors import InvalidRequest

Generators = torch.Generator | Sequence[torch.Generator] | None


def randn_tensor(
    shape: Sequence[int],
    generator: Generators,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return unit normal noise of `shape` [B, …].

    Args:
        generator: One generator for the whole batch, or a list with one per row. None is torch's global
            generator.
        device: Device of the result. A CPU generator draws on the CPU, so that it gives the same noise for
            every device.

    Raises:
        InvalidRequest: The number of generators is not B.
    """
    if isinstance(generator, Sequence):
        if len(generator) != shape[0]:
            raise InvalidRequest(f"{len(generator)} generators were given for {shape[0]} images")
        rows = [randn_tensor((1, *shape[1:]), one, device, dtype) for one in generator]
        return torch.cat(rows)
    where = device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, device=where, dtype=dtype).to(device)


class SharedNoise:
    """The noise of a batch whose images are sampled in lockstep: each draw is one tensor for the whole batch.

    Args:
        draw: Returns unit normal noise [B, C, h, w].
        pictures: B.
    """

    def __init__(self, draw: Callable[[], Tensor], pictures: int) -> None:
        self._draw, self._pictures = draw, pictures
        self._draws: dict[int, Tensor] = {}

    def for_image(self, row: int) -> Iterator[Tensor]:
        """Yield the draws [1, C, h, w] of one image. Rows must take each draw in order; the last row frees
        it."""
        for number in count():
            if number not in self._draws:
                self._draws[number] = self._draw()
            noise = self._draws[number][row : row + 1]
            if row == self._pictures - 1:
                del self._draws[number]
            yield noise
