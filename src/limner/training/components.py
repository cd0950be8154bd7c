"""Single networks in the hub's layout, read and written by training."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limner.catalogue.configs import read_config
from limner.catalogue.layout import WEIGHT_STEMS
from limner.diffusion.config import SchedulerConfig
from limner.errors import UnsupportedModel
from limner.files import whole_folder
from limner.nn.clip import CLIPTextModel
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet import UNet2DConditionModel
from limner.nn.unet_config import UNetConfig
from limner.nn.vae import AutoencoderKL
from limner.nn.vae_config import VAEConfig
from limner.prompts.tokenizer import Tokenizer
from limner.weights.checkpoint import Checkpoint, load_text_encoder, load_unet, load_vae
from limner.weights.load import load_module, text_encoder_name, unet_name, vae_name
from limner.weights.save import refuse_to_replace_others
from limner.weights.tensors import open_tensors, write_tensors
from limner.weights.tokenizers import read_tokenizers


def read_vae(folder: Path) -> AutoencoderKL:
    """An autoencoder, in fp32. Raises as `read_config` and `load_module`; so do the functions below."""
    config, source = read_config(folder / "config.json", VAEConfig), weights_file(folder, "vae")
    tensors = open_tensors(source)
    return load_module(
        lambda: AutoencoderKL(config), tensors, source=source, names=vae_name, dtype=torch.float32
    )


def read_unet(folder: Path) -> UNet2DConditionModel:
    """A U-Net, in fp32."""
    config, source = read_config(folder / "config.json", UNetConfig), weights_file(folder, "unet")
    tensors = open_tensors(source)
    return load_module(
        lambda: UNet2DConditionModel(config), tensors, source=source, names=unet_name, dtype=torch.float32
    )


def read_text_encoder(folder: Path) -> CLIPTextModel:
    """A text encoder, in fp32."""
    config, source = read_config(folder / "config.json", CLIPTextConfig), weights_file(folder, "text_encoder")
    tensors = open_tensors(source)
    return load_module(
        lambda: CLIPTextModel(config), tensors, source=source, names=text_encoder_name, dtype=torch.float32
    )


@dataclass(frozen=True)
class Networks:
    """The networks of a model that something is trained for, in fp32."""

    scheduler: SchedulerConfig
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: Tokenizer
    vae: AutoencoderKL


def read_networks(checkpoint: Checkpoint, model: str, trained: str) -> Networks:
    """The networks of a checkpoint.

    Args:
        model: Name of the model, for messages.
        trained: What is to be trained for it, for messages.

    Raises:
        UnsupportedModel: The U-Net takes more than a text (XL), or the noise schedule is unknown.
        InvalidCheckpoint: As `load_unet`.
    """
    if checkpoint.sizes:
        raise UnsupportedModel(
            f"{model} is of the family {checkpoint.family}, whose U-Net takes more than a text; "
            f"{trained} can be trained for 1.x, 2.x and models of their kind",
            hint="train it with sd-scripts or diffusers: Limner uses the file",
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


def weights_file(folder: Path, part: str = "unet") -> Path:
    """The one file of weights of a component, or the index if there are only shards."""
    whole = folder / f"{WEIGHT_STEMS[part]}.safetensors"
    index = whole.with_name(f"{whole.name}.index.json")
    return index if index.is_file() and not whole.is_file() else whole


def weights_digest(*modules: nn.Module) -> str:
    """SHA-256 of all weights of networks, in hexadecimal."""
    digest = hashlib.sha256()
    for weight in (weight for module in modules for weight in module.state_dict().values()):
        digest.update(weight.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def write_component(
    folder: Path, module: nn.Module, config: Mapping[str, Any], dtype: torch.dtype | None
) -> None:
    """Write one network, its weights in `dtype` or as they are; a network that `folder` holds is replaced.

    Raises:
        OutputError: The folder holds something else, or cannot be written.
    """
    refuse_to_replace_others(folder, "config.json")
    part = "text_encoder" if "model_type" in config else "unet"
    with whole_folder(folder, overwrite=True) as temporary:
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in module.state_dict().items()}
        write_tensors(weights_file(temporary, part), tensors, {"format": "pt"})
