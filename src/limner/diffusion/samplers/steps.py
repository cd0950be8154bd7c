"""What samplers have in common."""

import math
from collections.abc import Callable, Generator, Sequence

from torch import Tensor

Steps = Generator[tuple[Tensor, float], Tensor, Tensor]
Noise = Callable[[], Tensor]
Legs = Sequence[tuple[float, float]]


def ancestral_step(sigma: float, sigma_next: float, eta: float = 1.0) -> tuple[float, float]:
    """How far down to step, and how much fresh noise to add, to arrive at `sigma_next`.

    At eta = 1 the noise is as large as that of the posterior of the diffusion process (Ho et al. 2020,
    equation 7); at eta = 0 there is none.
    """
    up = min(sigma_next, eta * sigma_next * math.sqrt(max(sigma**2 - sigma_next**2, 0.0)) / sigma)
    return math.sqrt(sigma_next**2 - up**2), up


def raised(
    sigma: float, steps: int, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf
) -> float:
    """Where one of so many steps begins with churn; arguments as in `euler`."""
    share = min(s_churn / steps, math.sqrt(2.0) - 1.0) if s_tmin <= sigma <= s_tmax else 0.0
    return sigma * (1.0 + share)


def relabelled(x: Tensor, level: float, sigma: float) -> Tensor:
    """A latent at noise `level`, taken for one at `sigma` without changing it at unit variance."""
    return x if sigma == level else x * math.sqrt((sigma**2 + 1.0) / (level**2 + 1.0))


def phi_2(span: float) -> float:
    """(exp(-span) - 1) / span + 1: what a step in log(sigma) gives to the slope of the prediction."""
    return math.expm1(-span) / span + 1.0
