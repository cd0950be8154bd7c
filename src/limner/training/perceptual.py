"""Perceptual distance between images, and the training of the network that it is measured in.

Two images are compared in the features of a small convolutional network (Johnson et al. 2016; Zhang et al.
2018), at several resolutions. The network learns from images alone: two overlapping crops of an image must
find each other among the crops of a batch (van den Oord et al. 2018). Crops are not blurred or recoloured in
training, since the features must notice both.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import InvalidCheckpoint, InvalidRequest
from limner.files import read_json
from limner.images.pixels import from_pixels
from limner.weights.load import load_module
from limner.weights.tensors import open_tensors

from .components import weights_file, write_component
from .data import Dataset, seed_of
from .loop import Batch, Task
from .sheets import Sheet, sheet

_TEMPERATURE = 0.1  # of the contrastive loss
_FRESH = 64  # images to validate on


@dataclass(frozen=True)
class FeatureConfig:
    """Geometry of the feature network.

    Attributes:
        widths: Channels of each stage; each stage but the first halves the resolution.
        projection: Width of the vector that is contrasted in training.
    """

    widths: tuple[int, ...] = (24, 48, 96, 128)
    projection: int = 128

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From `config.json`.

        Raises:
            ValueError: The values are not those of a feature network.
        """
        widths, projection = values.get("widths"), values.get("projection")
        if (
            values.get("_class_name") != "FeatureNetwork"
            or not isinstance(widths, list)
            or not widths
            or not all(isinstance(width, int) and width > 0 for width in (*widths, projection))
        ):
            raise ValueError(f"expected the config of a FeatureNetwork, with widths and projection: {values}")
        return cls(tuple(widths), int(values["projection"]))

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`."""
        return {"_class_name": "FeatureNetwork", **asdict(self), "widths": list(self.widths)}


class FeatureNetwork(nn.Module):
    """A plain convolutional network: one or two 3x3 convolutions a stage, without normalisation."""

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self.config = config
        first, *rest = config.widths
        self.stages = nn.ModuleList([nn.Sequential(nn.Conv2d(3, first, 3, padding=1), nn.ReLU())])
        for before, width in zip(config.widths, rest, strict=False):
            self.stages.append(
                nn.Sequential(
                    nn.Conv2d(before, width, 3, stride=2, padding=1),
                    nn.ReLU(),
                    nn.Conv2d(width, width, 3, padding=1),
                    nn.ReLU(),
                )
            )
        self.projection = nn.Linear(config.widths[-1], config.projection)

    def features(self, images: Tensor) -> list[Tensor]:
        """Features of each stage, [B, width, h, w], of images [B, 3, H, W] in [-1, 1]."""
        features = []
        for stage in self.stages:
            images = stage(images)
            features.append(images)
        return features

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Mean squared distance of unit-length features of images [B, 3, H, W], averaged over the stages.

        Between 0 and 2, a scalar: the unweighted form of LPIPS (Zhang et al. 2018, equation 1).
        """
        apart = [
            (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean()
            for a, b in zip(self.features(first), self.features(second), strict=True)
        ]
        return torch.stack(apart).mean()

    def forward(self, images: Tensor) -> Tensor:
        """Unit vectors [B, projection], float32, of images [B, 3, H, W] in [-1, 1]."""
        pooled = self.features(images)[-1].mean((2, 3))
        return F.normalize(self.projection(pooled).float(), dim=-1)


def read_features(folder: Path) -> FeatureNetwork:
    """The feature network in a folder that `limner train features` exported, in fp32.

    Raises:
        InvalidCheckpoint: The folder holds no feature network, or a broken one.
    """
    label, weights = folder / "config.json", weights_file(folder)
    try:
        config = FeatureConfig.from_dict(read_json(label))
    except ValueError as error:
        raise InvalidCheckpoint(f"{label}: {error}", hint="make one with `limner train features`") from None
    return load_module(
        lambda: FeatureNetwork(config), open_tensors(weights), source=weights, names=str, dtype=torch.float32
    )


@dataclass(frozen=True)
class FeatureSettings:
    """What is trained, and on what.

    Attributes:
        model: Geometry of the network.
        batch_size: Pairs of crops per step; two places of each image.
        crop: Side of the crops in pixels. The two of a pair are shifted against each other by up to a quarter
            of it each way.
        seed: Seed of weights and batches.
    """

    model: FeatureConfig = FeatureConfig()
    batch_size: int = 64
    crop: int = 64
    seed: int = 0


class FeatureTask(Task):
    """The feature network on pairs of overlapping crops.

    Args:
        pictures: Dataset to train on.
        fresh: Dataset to validate on; the first 64 are used.

    Raises:
        InvalidRequest: The crops do not fit into the images.
    """

    def __init__(self, settings: FeatureSettings, pictures: Dataset, fresh: Dataset) -> None:
        if settings.crop + settings.crop // 4 > pictures.size:
            raise InvalidRequest(
                f"crops of {settings.crop} pixels were asked for from images of {pictures.size}; expected "
                f"crops of at most {pictures.size * 4 // 5}, so that they can be shifted"
            )
        self.how, self.pictures, self.fresh = settings, pictures, fresh
        torch.manual_seed(seed_of(settings.seed))
        self.network = FeatureNetwork(settings.model)
        self.modules, self.frozen = {"features": self.network}, {}
        self.identity = {"kind": "features", "model": settings.model.to_dict()}
        self.settings = {
            "batch_size": settings.batch_size,
            "crop": settings.crop,
            "pictures": pictures.identity,
        }

    def prepare(self) -> None:
        self.pictures.pixels(0)  # fills a cache before the first batch waits for it

    def batch(self, index: int) -> Batch:
        """{"pairs": uint8 [2, B, crop, crop, 3]}."""
        rng = np.random.default_rng(seed_of(self.how.seed, index))
        indices = rng.integers(len(self.pictures), size=(self.how.batch_size + 1) // 2)
        return {"pairs": self._pairs(self.pictures, indices.repeat(2)[: self.how.batch_size].tolist(), rng)}

    def _pairs(self, pictures: Dataset, indices: list[int], rng: np.random.Generator) -> Tensor:
        """uint8 [2, len(indices), crop, crop, 3]."""
        size, shift = self.how.crop, self.how.crop // 4
        pairs = []
        for index in indices:
            picture = pictures.pixels(index)
            corner = rng.integers(picture.shape[0] - size - shift + 1, size=2)
            places = corner + rng.integers(shift + 1, size=(2, 2))
            pairs.append([picture[y : y + size, x : x + size] for y, x in places])
        return torch.from_numpy(np.stack(pairs, 1))

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        first, second = (self.network(from_pixels(crops)) for crops in batch["pairs"])
        logits = first @ second.T / _TEMPERATURE  # [B, B]
        truth = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
        return loss, {"accuracy": (logits.argmax(1) == truth).float().mean().detach()}

    @cached_property
    def _fresh_pairs(self) -> Tensor:
        """uint8 [2, B, crop, crop, 3] of fresh images."""
        rng = np.random.default_rng(0)
        return self._pairs(self.fresh, list(range(min(_FRESH, len(self.fresh)))), rng)

    def validate(self) -> dict[str, float]:
        """Share of fresh crops that find their partner."""
        first, second = (self.network(from_pixels(crops.to(self.device))) for crops in self._fresh_pairs)
        found = (first @ second.T).argmax(1).cpu()
        return {"accuracy": float((found == torch.arange(len(found))).float().mean())}

    def samples(self) -> Sheet:
        """Fresh crops; below each the one that the network finds for it."""
        firsts, seconds = self._fresh_pairs
        cosines = (
            self.network(from_pixels(firsts[:8].to(self.device)))
            @ self.network(from_pixels(seconds.to(self.device))).T
        )
        found = seconds[cosines.argmax(1).cpu()]
        return sheet(from_pixels(torch.cat([firsts[:8], found])), columns=min(8, len(firsts)))

    def export(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """`folder/features`: config.json and weights."""
        write_component(folder / "features", self.network, self.how.model.to_dict(), dtype)
