"""Guidance: which conditionings to evaluate at a sigma, and how to combine the predictions.

A guidance combines denoised latents, whatever the network predicts: for the same x, combinations whose
weights sum to 1 are equivalent for noise, v and x0. It receives x, sigma and the scalings, so it can convert
to the network's output where a method is defined on that. An implementation whose weights depend on more,
such as the sigmas of the run, holds that as fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from limner.diffusion.prediction import Scalings

if TYPE_CHECKING:
    from torch import Tensor


class Guidance(Protocol):
    """Interface of a guidance."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all conditionings that can be evaluated at some sigma, in row order."""

    def branches(self, sigma: float) -> tuple[str, ...]:
        """Return the names of the conditionings to evaluate at `sigma`, in row order."""

    def combine(
        self, denoised: Mapping[str, Tensor], x: Tensor, sigma: float, scalings: Scalings[float]
    ) -> Tensor:
        """Combine the denoised latents of `branches(sigma)`, each [B, C, h, w] like x, into one."""

    def unguided(self, denoised: Mapping[str, Tensor], sigma: float) -> Tensor | None:
        """Return the denoised latents that guidance moves away from; None where guidance is off."""


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """Classifier-free guidance between a negative and a positive conditioning (Ho & Salimans 2022,
    arXiv:2207.12598).

    denoised = negative + scale * (positive - negative)

    There may be several positive conditionings, each with a weight (Liu et al. 2022, arXiv:2206.01714,
    equation 15): denoised = negative + scale * sum of weight * (positive - negative).

    With Perp-Neg (Armandpour et al. 2023, arXiv:2304.04968) an empty conditioning replaces the negative
    one, and of the negative direction only the part perpendicular to the positive one is subtracted:

        denoised = empty + scale * (p - perpendicular * (n - p * <p, n> / <p, p>))

    with p = positive - empty, for the weighted sum of all positive conditionings, and n = negative - empty.

    Args:
        scale: Guidance scale. 1 is no guidance; the negative conditioning is then not evaluated.
        rescale: phi of Lin et al. 2023 (arXiv:2305.08891, equations 15 and 16), 0 to 1. Large scales make the
            network's output too large, and the image overexposed; this brings its standard deviation, for
            each image over all channels and pixels, back to that of the positive output by the share phi.
        interval: (low, high]: sigmas outside it are not guided (Kynkäänniemi et al. 2024, arXiv:2404.07724).
        weights: Weights of the positive conditionings, `positive`, `positive 2`, … With several, the scale is
            1 at sigmas without guidance.
        skipped: Further intervals (low, high] whose sigmas are not guided.
        perpendicular: Weight of the negative conditioning in Perp-Neg; None turns Perp-Neg off.
        paired: Whether to evaluate the negative conditioning even at scale 1, as CFG++ needs it.

    Raises:
        ValueError: for a number that is not finite or outside its range.
    """

    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, math.inf)
    weights: tuple[float, ...] = (1.0,)
    skipped: tuple[tuple[float, float], ...] = ()
    perpendicular: float | None = None
    paired: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0.0):
            raise ValueError(f"scale is {self.scale}; expected a number of at least 0")
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"rescale is {self.rescale}; expected 0 to 1")
        if not 0.0 <= self.interval[0] < self.interval[1]:
            raise ValueError(f"interval is {self.interval}; expected 0 <= low < high")
        if self.perpendicular is not None and not 0.0 <= self.perpendicular < math.inf:
            raise ValueError(f"perpendicular is {self.perpendicular}; expected a number of at least 0")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all conditionings; only the positive one if guidance is off."""
        if self.perpendicular is not None:
            return (*self._positive, "negative", "empty")
        guides = self.scale != 1.0 or self.weights != (1.0,) or self.paired
        return (*self._positive, "negative") if guides else self._positive

    @property
    def _base(self) -> str:
        return "negative" if self.perpendicular is None else "empty"

    @property
    def _positive(self) -> tuple[str, ...]:
        return tuple(f"positive {n}" if n > 1 else "positive" for n in range(1, len(self.weights) + 1))

    def branches(self, sigma: float) -> tuple[str, ...]:
        """Return all names within the interval. Outside it return `positive`, or with several positive ones
        these and the one that guidance moves away from."""
        if self._guides_at(sigma):
            return self.names
        return self._positive if self.weights == (1.0,) else (*self._positive, self._base)

    def _guides_at(self, sigma: float) -> bool:
        low, high = self.interval
        return low < sigma <= high and not any(a < sigma <= b for a, b in self.skipped)

    def combine(
        self, denoised: Mapping[str, Tensor], x: Tensor, sigma: float, scalings: Scalings[float]
    ) -> Tensor:
        """Return the guided denoised latents, from those of `branches(sigma)`, each [B, C, h, w] like x."""
        positive = denoised["positive"]
        if self._base not in denoised:
            return positive
        base = denoised[self._base]
        if self.weights != (1.0,):
            apart = [w * (denoised[n] - base) for n, w in zip(self._positive, self.weights, strict=True)]
            import torch  # here, as requests are resolved without it

            positive = base + torch.stack(apart).sum(0)
        if not self._guides_at(sigma):
            return positive
        guided = base + self.scale * (positive - base)
        if self.perpendicular is not None:
            away = _perpendicular(denoised["negative"] - base, positive - base)
            guided = guided - self.scale * self.perpendicular * away
        if self.rescale == 0.0:
            return guided
        # On the network's own output, as equation 15 and diffusers' rescale_noise_cfg have it: its standard
        # deviation is known from training, while that of the denoised latent is the image's contrast.
        output, reference = scalings.output(x, guided), scalings.output(x, positive)
        every = tuple(range(1, x.ndim))
        ratio = reference.std(every, keepdim=True) / output.std(every, keepdim=True)  # [B, 1, 1, 1]
        return scalings.denoised(x, output * (1.0 + self.rescale * (ratio - 1.0)))

    def unguided(self, denoised: Mapping[str, Tensor], sigma: float) -> Tensor | None:
        """Return the denoised latents of `negative`, or with Perp-Neg of `empty`; None where guidance is
        off."""
        return denoised.get(self._base) if self._guides_at(sigma) else None


def _perpendicular(vector: Tensor, direction: Tensor) -> Tensor:
    """Return the component of each vector perpendicular to its direction, both [B, C, h, w]."""
    import torch  # here, as requests are resolved without it

    every = tuple(range(1, vector.ndim))
    length = direction.square().sum(every, keepdim=True)
    along = (vector * direction).sum(every, keepdim=True) / length.clamp(min=torch.finfo(length.dtype).tiny)
    return vector - along * direction  # [B, C, h, w]


@dataclass(frozen=True)
class EditGuidance:
    """Guidance by a text and by an input image to edit (Brooks et al. 2023, arXiv:2211.09800, equation 3).

    denoised = negative + image_scale * (image - negative) + scale * (positive - image)

    The branch "image" is conditioned on the image but not on the text; "negative" on neither.

    Args:
        scale: Guidance scale of the text.
        image_scale: Guidance scale of the input image.
    """

    scale: float
    image_scale: float

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all three branches; only the first if both scales are 1."""
        return ("positive",) if self.scale == self.image_scale == 1.0 else ("positive", "image", "negative")

    def branches(self, sigma: float) -> tuple[str, ...]:
        """Return the same names at every sigma."""
        return self.names

    def combine(
        self, denoised: Mapping[str, Tensor], x: Tensor, sigma: float, scalings: Scalings[float]
    ) -> Tensor:
        """As `ClassifierFreeGuidance.combine`."""
        if "image" not in denoised:
            return denoised["positive"]
        positive, image, negative = (denoised[name] for name in ("positive", "image", "negative"))
        return negative + self.image_scale * (image - negative) + self.scale * (positive - image)

    def unguided(self, denoised: Mapping[str, Tensor], sigma: float) -> Tensor | None:
        """Return the denoised latents of `negative`."""
        return denoised.get("negative")
