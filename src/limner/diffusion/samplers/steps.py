"""Functions shared by samplers."""

import math
from collections.abc import Callable, Generator, Sequence

from torch import Tensor

Steps = Generator[tuple[Tensor, float], Tensor, Tensor]
Noise = Callable[[], Tensor]
Legs = Sequence[tuple[float, float]]


def ancestral_step(sigma: float, sigma_next: float, eta: float = 1.0) -> tuple[float, float]:
    """Return the sigma to step down to and the standard deviation of fresh noise that together give
    `sigma_next`.

    At eta = 1 the noise is as large as that of the posterior of the diffusion process (Ho et al. 2020,
    equation 7); at eta = 0 there is none.
    """
    up = min(sigma_next, eta * sigma_next * math.sqrt(max(sigma**2 - sigma_next**2, 0.0)) / sigma)
    return math.sqrt(sigma_next**2 - up**2), up


def relabelled(x: Tensor, level: float, sigma: float) -> Tensor:
    """Rescale a latent at noise `level` to `sigma` so that it stays the same at unit variance."""
    return x if sigma == level else x * math.sqrt((sigma**2 + 1.0) / (level**2 + 1.0))


def phi_2(span: float) -> float:
    """(exp(-span) - 1) / span + 1: the weight of the prediction's slope in a step in log(sigma)."""
    return math.expm1(-span) / span + 1.0
