"""Noise of an image from its seed: as torch draws it on CPUs or on CUDA GPUs, and variations of it.

All of it is computed on the CPU, so the same seed gives the same noise on every device and in every batch.
"""

import math

import torch
from torch import Tensor

from limner.diffusion.samplers import Noise

Shape = tuple[int, ...]

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57  # of Philox4x32 (Salmon et al. 2011)
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_WORD = 0xFFFFFFFF
_TO_UNIT = 2.3283064e-10  # 2**-32, as float32 has it
_PARALLEL = 0.9995  # cosine above which two directions count as equal


def cpu_noise(seed: int, shape: Shape) -> Noise:
    """Unit normal noise as `torch.Generator("cpu")` draws it."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator)


def gpu_noise(seed: int, shape: Shape) -> Noise:
    """Unit normal noise as `torch.randn` draws it on CUDA GPUs: Philox4x32-10, one counter for each number,
    then Box and Muller's transform."""
    count, drawn = math.prod(shape), 0

    def draw() -> Tensor:
        nonlocal drawn
        counter = torch.zeros(4, count, dtype=torch.int64)
        counter[0] = drawn
        counter[2] = torch.arange(count)
        drawn += 1
        x, y, *_ = _philox(counter, seed).float()
        radius = torch.sqrt(-2.0 * torch.log(x * _TO_UNIT + _TO_UNIT / 2))
        turn = _TO_UNIT * 6.2831855
        return (radius * torch.sin(y * turn + turn / 2)).reshape(shape)

    return draw


def varied(noise: Noise, other: Noise, strength: float) -> Noise:
    """Return noise whose first draw is a spherical interpolation between two sources; later draws are
    `noise`'s.

    Args:
        strength: Position between them: 0 is `noise`, 1 is `other`.
    """
    first = [_between(noise(), other(), strength)]
    return lambda: first.pop() if first else noise()


def _philox(counter: Tensor, seed: int) -> Tensor:
    """Four random words of 32 bits for each counter of four, [4, N] in int64."""
    key = [seed & _WORD, seed >> 32 & _WORD]
    for _ in range(_ROUNDS):
        # The product of two words fills 64 bits; the masks make the sign bit of int64 irrelevant.
        even, odd = counter[0] * _MULTIPLIERS[0], counter[2] * _MULTIPLIERS[1]
        counter = torch.stack(
            [
                (odd >> 32 & _WORD) ^ counter[1] ^ key[0],
                odd & _WORD,
                (even >> 32 & _WORD) ^ counter[3] ^ key[1],
                even & _WORD,
            ]
        )
        key = [(word + step) & _WORD for word, step in zip(key, _WEYL, strict=True)]
    return counter


def _between(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Interpolate spherically between two tensors [1, C, h, w], per column as AUTOMATIC1111's webui does."""
    cosine = (torch.nn.functional.normalize(one, dim=2) * torch.nn.functional.normalize(other, dim=2)).sum(2)
    if float(cosine.mean()) > _PARALLEL:
        return one * (1.0 - share) + other * share
    angle = torch.acos(cosine)[:, :, None]
    return (torch.sin((1.0 - share) * angle) * one + torch.sin(share * angle) * other) / torch.sin(angle)
