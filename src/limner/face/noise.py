"""Noise in the order in which diffusers draws it: of a whole batch at once, or for each picture by its own
generator."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import torch
from torch import Tensor

from limner.errors import InvalidRequest

Generators = torch.Generator | Sequence[torch.Generator] | None


def draw(
    shape: Sequence[int],
    generator: Generators,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Unit normal noise.

    Args:
        shape: [B, …].
        generator: one for the whole batch, or a list with one for each row; None is torch's own.
        device: where the noise is wanted. A generator of the CPU draws there, so that its noise is the same
            on every device.

    Raises:
        InvalidRequest: as many generators as rows are needed.
    """
    if isinstance(generator, Sequence):
        if len(generator) != shape[0]:
            raise InvalidRequest(f"{len(generator)} generators were given for {shape[0]} pictures")
        rows = [draw((1, *shape[1:]), one, device, dtype) for one in generator]
        return torch.cat(rows)
    where = device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, device=where, dtype=dtype).to(device)


class SharedNoise:
    """The noise of pictures that are drawn in step with each other: each draw is of all of them at once.

    Args:
        draw: gives unit normal noise [B, C, h, w].
        pictures: B.
    """

    def __init__(self, draw: Callable[[], Tensor], pictures: int) -> None:
        self._draw, self._pictures = draw, pictures
        self._draws: dict[int, Tensor] = {}

    def of(self, row: int) -> Iterator[Tensor]:
        """The draws [1, C, h, w] of one picture. They take each in the order of their rows."""
        for number in count():
            if number not in self._draws:
                self._draws[number] = self._draw()
            noise = self._draws[number][row : row + 1]
            if row == self._pictures - 1:
                del self._draws[number]
            yield noise
