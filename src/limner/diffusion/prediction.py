"""Prediction types of a network, as scalings around it (Karras et al. 2022, arXiv:2206.00364, section 5).

For every prediction type of the network F, the denoised latent is

    denoised = c_skip * x + c_out * F(c_in * x, timestep)

with x = x0 + sigma * noise. All networks here were trained on x / sqrt(sigma**2 + 1), so c_in is the same for
all of them; `limner.diffusion.schedule` maps sigmas to timesteps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample"]
"""epsilon: the noise. v_prediction: sqrt(a) * noise - sqrt(1 - a) * x0, with a = 1 / (sigma**2 + 1)
(Salimans & Ho 2022, arXiv:2202.00512). sample: x0 itself."""

S = TypeVar("S", float, "Tensor")


@dataclass(frozen=True)
class Scalings(Generic[S]):
    """The three factors at one sigma for all rows, or at one sigma per row ([B, 1, 1, 1])."""

    c_in: S
    c_skip: S
    c_out: S

    def denoised(self, x: Tensor, output: Tensor) -> Tensor:
        """Return the denoised latent, from the network's output for `c_in * x`."""
        return self.c_skip * x + self.c_out * output

    def output(self, x: Tensor, denoised: Tensor) -> Tensor:
        """Return the network's output for a denoised latent: the inverse of `denoised`."""
        return (denoised - self.c_skip * x) / self.c_out


def scalings(prediction_type: PredictionType, sigma: S) -> Scalings[S]:
    """Return the scalings at `sigma`.

    Args:
        sigma: positive and finite; a float, or a tensor that broadcasts against the latents. A float gives
            factors that are exact to float64. To get the same bits in every batch size, compute the factors
            from floats and put those into tensors.

    Raises:
        ValueError: for an unknown prediction type.
    """
    norm = (sigma**2 + 1.0) ** 0.5 if isinstance(sigma, float | int) else (sigma**2 + 1.0).sqrt()
    if prediction_type == "epsilon":
        return Scalings(c_in=1.0 / norm, c_skip=sigma**0, c_out=-sigma)
    if prediction_type == "v_prediction":
        return Scalings(c_in=1.0 / norm, c_skip=1.0 / norm**2, c_out=-sigma / norm)
    if prediction_type == "sample":
        return Scalings(c_in=1.0 / norm, c_skip=sigma * 0, c_out=sigma**0)
    raise ValueError(f"prediction_type is {prediction_type!r}; expected epsilon, v_prediction or sample")
