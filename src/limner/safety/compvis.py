"""CompVis' safety checker of Stable Diffusion 1.x: CLIP's image encoder and embeddings of 20 concepts.

An image is at fault where its embedding is nearer to one of 17 concepts than that concept's threshold; three
more, of special care, lower all thresholds after them by 0.01 (Rando et al. 2022,
https://arxiv.org/abs/2210.04610).
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from limner.catalogue.configs import parse_config
from limner.catalogue.hashes import file_hash
from limner.catalogue.headers import files_of
from limner.catalogue.layout import CONFIG
from limner.catalogue.pipelines import weights_in
from limner.errors import InvalidCheckpoint, InvalidRequest, ModelNotFound, NumericalError
from limner.files import read_json
from limner.images.pixels import clip_pixels
from limner.nn.clip import CLIPVisionModel
from limner.nn.clip_config import CLIPVisionConfig
from limner.weights.load import image_encoder_name
from limner.weights.parts import load_network
from limner.weights.tensors import open_tensors

from .checker_config import CONCEPTS, SPECIAL

_ADJUSTMENT = np.float32(0.01)
# transformers writes only what differs from its defaults, which are those of ViT-B/32.
_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": 32,
}
_DEFAULT_WIDTH = 512  # of the projection


class SafetyNetwork(CLIPVisionModel):
    """CLIP's image encoder with the concepts' embeddings and thresholds, named as on the hub."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        width = config.projection_dim
        self.concept_embeds = nn.Parameter(torch.ones(CONCEPTS, width))
        self.special_care_embeds = nn.Parameter(torch.ones(SPECIAL, width))
        self.concept_embeds_weights = nn.Parameter(torch.ones(CONCEPTS))
        self.special_care_embeds_weights = nn.Parameter(torch.ones(SPECIAL))

    def similarities(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines [B, 17] with the concepts, and [B, 3] with those of special care."""
        embeddings = F.normalize(self(pixels)[1])
        concepts, special = (F.normalize(one) for one in (self.concept_embeds, self.special_care_embeds))
        return embeddings @ concepts.T, embeddings @ special.T


class CompVis:
    """Scores of an image: by how much its cosines exceed the thresholds, rounded to 3 decimals.

    "nsfw" is the highest of the 17 concepts, and an image is at fault where it is above 0; "special_care" is
    the highest of the three others. "concept_0" to "concept_16" and "special_care_0" to "special_care_2" are
    each one's; what they depict was not published.

    Args:
        version: Hash of the weights and the device, as `version`.
    """

    def __init__(self, name: str, network: SafetyNetwork, version: str) -> None:
        self.name, self.version = name, version
        self._network = network.eval().requires_grad_(False)
        self._device = network.concept_embeds.device
        self._thresholds = network.concept_embeds_weights.float().cpu().numpy()
        self._special_thresholds = network.special_care_embeds_weights.float().cpu().numpy()

    @classmethod
    def load(cls, name: str, folder: Path, device: str = "cpu") -> "CompVis":
        """Read it from a folder with `config.json` and `model.safetensors`. It runs in fp32.

        Raises:
            ModelNotFound: There is no such folder, or no weights in it.
            InvalidCheckpoint, UnsupportedModel, PickleRefused: The files are no such checker.
            InvalidRequest: There is no such device.
        """
        if not folder.is_dir():
            raise ModelNotFound(
                f"there is no folder {folder} with a safety checker",
                hint="name the folder safety_checker of a Stable Diffusion 1.x model for diffusers",
            )
        path = folder / weights_in(folder, "model")
        config = _read_config(folder / CONFIG)
        network = load_network(
            config, SafetyNetwork, open_tensors(path), path, names=_name, dtype=torch.float32
        )
        try:
            network = network.to(device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            reason = str(error).partition("\n")[0]
            raise InvalidRequest(
                f"the image checker {name} cannot run on the device {device!r}: {reason}"
            ) from None
        hashes = [file_hash(file) for file in files_of(path)]
        digest = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        return cls(name, network, f"{digest[:12]} torch {torch.__version__} fp32 {device}")

    @torch.inference_mode()
    def check(self, images: Sequence[NDArray[np.uint8]]) -> list[dict[str, float]]:
        """As `ImageChecker.check`."""
        return [self._scores(image) for image in images]

    def _scores(self, image: NDArray[np.uint8]) -> dict[str, float]:
        pixels = clip_pixels(Image.fromarray(image), self._network.config.image_size)
        concepts, special = (
            one[0].float().cpu().numpy() for one in self._network.similarities(pixels.to(self._device))
        )
        if not (np.isfinite(concepts).all() and np.isfinite(special).all()):
            raise NumericalError(f"the image checker {self.name} returned NaN or infinity for an image")
        adjustment = np.float32(0)
        scores: dict[str, Any] = {}
        for number in range(SPECIAL):
            scores[f"special_care_{number}"] = np.round(
                special[number] - self._special_thresholds[number] + adjustment, 3
            )
            if scores[f"special_care_{number}"] > 0:
                adjustment = _ADJUSTMENT
        found = np.round(concepts - self._thresholds + adjustment, 3)
        named = {f"concept_{number}": score for number, score in enumerate(found)}
        scores = {"nsfw": found.max(), "special_care": max(scores.values()), **named, **scores}
        # float32 holds 3 decimals as the nearest binary fraction.
        return {name: round(float(score), 3) for name, score in scores.items()}


def _name(key: str) -> str | None:
    """The parameter's name for a key in a file: until transformers 5 with `vision_model.` twice."""
    if key.startswith("vision_model.vision_model."):
        key = key.removeprefix("vision_model.")
    return image_encoder_name(key)


def _read_config(path: Path) -> CLIPVisionConfig:
    """The geometry of the image encoder, from the `config.json` of a whole CLIP."""
    values = read_json(path)
    vision: dict[str, Any] = {**_DEFAULTS}
    for part in ("vision_config", "vision_config_dict"):  # the latter is of older versions, and wins there
        given = values.get(part) or {}
        if not isinstance(given, dict):
            raise InvalidCheckpoint(f"{path}: {part} is {given!r:.60}; expected an object")
        vision |= {name: value for name, value in given.items() if value is not None}
    vision["projection_dim"] = values.get("projection_dim", _DEFAULT_WIDTH)
    vision["architectures"] = ["CLIPVisionModelWithProjection"]
    return parse_config(path, vision, CLIPVisionConfig)
