"""Cheap previews of latents: a linear map from their channels to RGB, without the autoencoder.

The maps of SD and XL are published. Other models have theirs in their card (`limner.json`): training a
U-Net writes it there, fitted by `LatentPreview.fit`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.request.facts import Family


@dataclass(frozen=True)
class LatentPreview:
    """A linear map from latents, as the U-Net knows them, to RGB in [-1, 1].

    Attributes:
        weights: Red, green and blue of each channel.
        bias: Red, green and blue where the latents are 0.
    """

    weights: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The map of a card: "weights", three numbers for each channel, and "bias", three numbers.

        Raises:
            ValueError, KeyError, TypeError: The values are malformed.
        """
        return cls(tuple(map(_colour, values["weights"])), _colour(values.get("bias", (0.0, 0.0, 0.0))))

    @classmethod
    def fit(cls, latents: Tensor, images: Tensor) -> "LatentPreview":
        """The map that is nearest to decoded images, by least squares.

        Args:
            latents: [N, C, h, w].
            images: The same, decoded: [N, 3, H, W] in [-1, 1].
        """
        small = F.interpolate(images.double(), latents.shape[2:], mode="area")
        rows = latents.double().movedim(1, -1).flatten(0, 2)  # [N, C, h, w] -> [N*h*w, C]
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.double)], dim=1)
        found = torch.linalg.lstsq(rows, small.movedim(1, -1).flatten(0, 2)).solution  # [C + 1, 3]
        *weights, bias = [(float(r), float(g), float(b)) for r, g, b in found]
        return cls(tuple(weights), bias)

    def to_dict(self) -> dict[str, Any]:
        """The map as `of` reads it, rounded to what is visible."""
        weights = [[round(value, 4) for value in channel] for channel in self.weights]
        return {"weights": weights, "bias": [round(value, 4) for value in self.bias]}

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to uint8 [B, h, w, 3]. Raises ValueError for another number of channels."""
        if latents.shape[1] != len(self.weights):
            raise ValueError(f"latents have {latents.shape[1]} channels; expected {len(self.weights)}")
        rgb = latents.float().cpu().movedim(1, -1) @ torch.tensor(self.weights) + torch.tensor(self.bias)
        return ((rgb.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


def _colour(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


_SD = LatentPreview(
    (
        (0.3512, 0.2297, 0.3227),
        (0.3250, 0.4974, 0.2350),
        (-0.2829, 0.1762, 0.2721),
        (-0.2120, -0.2616, -0.7177),
    )
)
_XL = LatentPreview(
    (
        (0.3651, 0.4232, 0.4341),
        (-0.2533, -0.0042, 0.1068),
        (0.1076, 0.1111, -0.0362),
        (-0.3165, -0.2492, -0.2188),
    ),
    (0.1084, -0.0175, -0.0011),
)

PREVIEWS: dict[Family, LatentPreview] = {"sd1": _SD, "sd2": _SD, "xl": _XL, "xl_refiner": _XL}
"""Maps of published families, from ComfyUI's latent_formats.py; `LatentPreview.fit` makes others."""
