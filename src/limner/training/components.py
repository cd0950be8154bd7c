"""Single networks in the hub's layout, as training reads and writes them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limner.diffusion.config import SchedulerConfig
from limner.errors import UnsupportedModel
from limner.nn.clip import CLIPTextConfig, CLIPTextModel
from limner.nn.unet import UNet2DConditionModel, UNetConfig
from limner.nn.vae import AutoencoderKL, VAEConfig
from limner.pipeline.loading import read_tokenizers
from limner.prompts.tokenizer import Tokenizer
from limner.weights.checkpoint import (
    WEIGHT_STEMS,
    Checkpoint,
    load_text_encoder,
    load_unet,
    load_vae,
    read_config,
)
from limner.weights.files import whole_folder
from limner.weights.load import load_module, text_encoder_name, unet_name, vae_name
from limner.weights.tensors import open_tensors, write_tensors


def read_vae(folder: Path) -> AutoencoderKL:
    """An autoencoder, in fp32. It and the others raise as `read_config` and `load_module` do."""
    config, source = read_config(folder / "config.json", VAEConfig), _weights(folder, "vae")
    tensors = open_tensors(source)
    return load_module(
        lambda: AutoencoderKL(config), tensors, source=source, names=vae_name, dtype=torch.float32
    )


def read_unet(folder: Path) -> UNet2DConditionModel:
    """A U-Net, in fp32."""
    config, source = read_config(folder / "config.json", UNetConfig), _weights(folder, "unet")
    tensors = open_tensors(source)
    return load_module(
        lambda: UNet2DConditionModel(config), tensors, source=source, names=unet_name, dtype=torch.float32
    )


def read_text_encoder(folder: Path) -> CLIPTextModel:
    """A text encoder, in fp32."""
    config, source = read_config(folder / "config.json", CLIPTextConfig), _weights(folder, "text_encoder")
    tensors = open_tensors(source)
    return load_module(
        lambda: CLIPTextModel(config), tensors, source=source, names=text_encoder_name, dtype=torch.float32
    )


@dataclass(frozen=True)
class Networks:
    """A whole model for training to work beside, all in fp32."""

    scheduler: SchedulerConfig
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: Tokenizer
    vae: AutoencoderKL


def read_networks(checkpoint: Checkpoint, model: str, trained: str) -> Networks:
    """What a checkpoint holds.

    Args:
        model: its name, and `trained`: what is to be trained for it; for messages.

    Raises:
        UnsupportedModel: the U-Net is told more than a text (XL), or the noise schedule is unknown.
        InvalidCheckpoint: as `load_unet`.
    """
    if checkpoint.sizes:
        raise UnsupportedModel(
            f"{model} is of the family {checkpoint.family}, whose U-Net is told more than a text; "
            f"{trained} is trained for 1.x, 2.x and models of their kind",
            hint="train it with sd-scripts or diffusers: the file can be used here",
        )
    try:
        scheduler = SchedulerConfig.from_dict(checkpoint.scheduler_config)
    except ValueError as error:
        raise UnsupportedModel(f"{model}: {error}") from None
    return Networks(
        scheduler,
        load_unet(checkpoint, torch.float32),
        load_text_encoder(checkpoint, torch.float32),
        read_tokenizers(checkpoint)["text_encoder"],
        load_vae(checkpoint, torch.float32),
    )


def _weights(folder: Path, part: str) -> Path:
    """The one file, or the index where there are only shards."""
    whole = folder / f"{WEIGHT_STEMS[part]}.safetensors"
    index = whole.with_name(f"{whole.name}.index.json")
    return index if index.is_file() and not whole.is_file() else whole


def write_component(
    folder: Path, module: nn.Module, config: Mapping[str, Any], dtype: torch.dtype | None
) -> None:
    """Write one network, its weights in `dtype` or as they are, over what `folder` holds."""
    part = "text_encoder" if "model_type" in config else "unet"
    with whole_folder(folder, overwrite=True) as temporary:
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in module.state_dict().items()}
        write_tensors(_weights(temporary, part), tensors, {"format": "pt"})
