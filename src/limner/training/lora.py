"""Training a LoRA: low-rank changes of a model's layers, which learn what a set of images has in common."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from limner.adapters.targets import find_targets
from limner.adapters.trainable import attach_lora, write_lora
from limner.errors import InvalidRequest
from limner.nn.clip import CLIPTextModel
from limner.nn.unet import UNet2DConditionModel
from limner.weights.checkpoint import Checkpoint, weights_hash

from .components import read_networks
from .data import Dataset
from .unet import LatentSettings, LatentTask

ATTENTION = r".*\.attn[12]\.to_(q|k|v|out\.0)"
"""Names of the projections of the U-Net's attention (Hu et al. 2021)."""

_TEXT = r".*\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"  # the layers that sd-scripts changes
_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2"}  # sd-scripts' names for families


@dataclass(frozen=True)
class LoRASettings(LatentSettings):
    """What is trained.

    Attributes:
        rank: Number of channels between a layer's two factors.
        alpha: The factors' product is scaled by alpha / rank.
        targets: Regular expression for the whole names of the U-Net's layers to change, linear layers and
            convolutions.
        train_text_encoder: Whether the text encoder's layers are changed too.
    """

    rank: int = 4
    alpha: float = 4.0
    targets: str = ATTENTION
    train_text_encoder: bool = False


class LoRATask(LatentTask):
    """A LoRA for a model whose own weights do not change.

    Args:
        checkpoint: Checkpoint of the model.
        model: Name of the model, for the file's metadata.
        name: Name of the exported file, without its suffix.

    Raises:
        InvalidRequest: As `LatentTask`; or `targets` matches no layer, or one that a LoRA cannot change.
        UnsupportedModel, InvalidCheckpoint: As `read_networks`.
    """

    how: LoRASettings

    def __init__(
        self,
        settings: LoRASettings,
        checkpoint: Checkpoint,
        pictures: Dataset,
        fresh: Dataset,
        cache: Path,
        *,
        model: str,
        name: str,
    ) -> None:
        networks = read_networks(checkpoint, model, "a LoRA")
        unet, text, vae = networks.unet, networks.text_encoder, networks.vae
        super().__init__(
            settings, networks.scheduler, unet, text, networks.tokenizer, vae, pictures, fresh, cache
        )
        self.family, self.model, self.name = checkpoint.family, model, name
        self.base = weights_hash(checkpoint)

        parts: dict[str, UNet2DConditionModel | CLIPTextModel] = {"unet": unet, "text_encoder": text}
        patterns = {"unet": settings.targets}
        if settings.train_text_encoder:
            patterns["text_encoder"] = _TEXT
        self.targets = find_targets(parts)
        try:
            self.layers = {
                part: attach_lora(parts[part], pattern, rank=settings.rank, alpha=settings.alpha)
                for part, pattern in patterns.items()
            }
        except (ValueError, re.error) as error:
            raise InvalidRequest(
                f"targets are given as {settings.targets!r}: {error}",
                hint=f"a regular expression for whole names, such as {ATTENTION}",
            ) from None
        self.modules = {
            f"{part}.{module}.{side}": factor
            for part, layers in self.layers.items()
            for module, layer in layers.items()
            for side, factor in (("down", layer.down), ("up", layer.up))
        }
        self.frozen = {"vae": vae, **parts}
        self.identity = {
            "kind": "lora",
            "base": self.base,
            "rank": settings.rank,
            "targets": settings.targets,
            "train_text_encoder": settings.train_text_encoder,
        }

    def export(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """One file, `NAME.safetensors`, with the names and metadata of kohya's sd-scripts."""
        folder.mkdir(parents=True, exist_ok=True)
        write_lora(
            folder / f"{self.name}.safetensors",
            self.layers,
            self.targets,
            metadata=self._metadata(),
            dtype=dtype or torch.float32,
        )

    def _metadata(self) -> dict[str, str]:
        """The metadata that sd-scripts writes."""
        rank, alpha, size = self.how.rank, self.how.alpha, self.pictures.size
        layers = [layer for part in self.layers.values() for layer in part.values()]
        convolutions = any(isinstance(layer.base, nn.Conv2d) for layer in layers)
        return {
            "ss_base_model_version": _VERSIONS.get(self.family, self.model),
            "ss_new_sd_model_hash": self.base,
            "ss_sd_model_name": self.model,
            "ss_v2": str(self.family == "sd2"),
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(rank),
            "ss_network_alpha": str(alpha),
            "ss_network_args": json.dumps(
                {"conv_dim": str(rank), "conv_alpha": str(alpha)} if convolutions else {}
            ),
            "ss_output_name": self.name,
            "ss_num_train_images": str(len(self.pictures)),
            "ss_resolution": str((size, size)),
            "ss_seed": str(self.how.seed),
        }
