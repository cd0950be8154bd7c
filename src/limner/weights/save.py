"""Saves checkpoints and ControlNets in the diffusers layout."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.catalogue.configs import NetworkConfig
from limner.catalogue.layout import CARD, CONFIG, MODEL_INDEX, STEM, WEIGHT_STEMS
from limner.errors import InvalidCheckpoint, OutputError
from limner.files import whole_folder
from limner.nn.clip import CLIPTextModel
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.controlnet import ControlNetModel
from limner.nn.t2i_adapter import T2IAdapter
from limner.nn.unet import UNet2DConditionModel
from limner.nn.vae import AutoencoderKL

from .tensors import write_tensors
from .tokenizers import TOKENIZER_FILES

_Network = UNet2DConditionModel | AutoencoderKL | CLIPTextModel | ControlNetModel | T2IAdapter


def save_checkpoint(
    folder: Path,
    *,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: Path,
    scheduler_config: Mapping[str, Any],
    card: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    max_file_bytes: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write a folder that `StableDiffusionPipeline.from_pretrained` opens, completely or not at all.

    Args:
        folder: Folder to write; its parents are created. A checkpoint in it is replaced if `overwrite` is
            true; any other content is an error.
        tokenizer: Folder whose tokenizer files are copied.
        scheduler_config: Content of `scheduler_config.json`, with the `_class_name` of a diffusers scheduler.
        card: Content of `limner.json`: "defaults" of requests, all "words" of a small vocabulary, "preview".
        dtype: Dtype of floating-point weights; None keeps their own.
        max_file_bytes: Largest size of a weight file; larger ones are split.

    Raises:
        OutputError: The folder has other content, or cannot be written.
        InvalidCheckpoint: `tokenizer` holds no tokenizer.
        ValueError: `scheduler_config` has no `_class_name`, or one tensor alone exceeds `max_file_bytes`.
    """
    if not isinstance(scheduler_config.get("_class_name"), str):
        raise ValueError("scheduler_config needs the '_class_name' of a diffusers scheduler")
    tokenizer_files = [tokenizer / name for name in TOKENIZER_FILES if (tokenizer / name).is_file()]
    if not tokenizer_files:
        raise InvalidCheckpoint(
            f"{tokenizer} holds no tokenizer: expected {' or '.join(TOKENIZER_FILES[:2])}"
        )
    text_class = "CLIPTextModelWithProjection" if text_encoder.config.projection else "CLIPTextModel"
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler_config["_class_name"]],
        "text_encoder": ["transformers", text_class],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if overwrite:
        refuse_to_replace_others(folder, MODEL_INDEX)
    networks: dict[str, _Network] = {
        "unet": unet,
        "vae": vae,
        "text_encoder": text_encoder,
    }
    with whole_folder(folder, overwrite=overwrite) as temporary:
        write_json(temporary / MODEL_INDEX, index)
        if card is not None:
            write_json(temporary / CARD, card)
        (temporary / "scheduler").mkdir()
        write_json(temporary / "scheduler" / "scheduler_config.json", scheduler_config)
        (temporary / "tokenizer").mkdir()
        for path in tokenizer_files:
            shutil.copyfile(path, temporary / "tokenizer" / path.name)
        for part, network in networks.items():
            (temporary / part).mkdir()
            _write_network(temporary / part, WEIGHT_STEMS[part], network, dtype, max_file_bytes)


def save_control(
    folder: Path,
    network: ControlNetModel | T2IAdapter,
    *,
    dtype: torch.dtype | None = None,
    max_file_bytes: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write a folder that `read_control` and diffusers open, completely or not at all.

    Args:
        folder: Folder to write; its parents are created. A network in it is replaced if `overwrite` is true;
            any other content is an error.
        dtype, max_file_bytes: As in `save_checkpoint`.

    Raises:
        OutputError: The folder has other content, or cannot be written.
        ValueError: One tensor alone exceeds `max_file_bytes`.
    """
    if overwrite:
        refuse_to_replace_others(folder, CONFIG)
    with whole_folder(folder, overwrite=overwrite) as temporary:
        _write_network(temporary, STEM, network, dtype, max_file_bytes)


def refuse_to_replace_others(folder: Path, mark: str) -> None:
    """Raise OutputError if a folder holds files, but not `mark`, which every folder of this kind has."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise OutputError(f"{folder} holds something else than a checkpoint, so it is not overwritten")


def _write_network(
    folder: Path,
    stem: str,
    network: _Network,
    dtype: torch.dtype | None,
    max_file_bytes: int | None,
) -> None:
    write_json(folder / CONFIG, config_of(network.config))
    tensors = {
        name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    _write_weights(folder, stem, tensors, max_file_bytes)


def config_of(config: NetworkConfig) -> dict[str, Any]:
    """The `config.json` of a network."""
    values: dict[str, Any] = config.to_dict()
    if isinstance(config, CLIPTextConfig):
        # Without a dtype, transformers 5 loads weights as they are stored, and diffusers in float32: the text
        # encoder and the U-Net of a pipeline of float16 files would have different dtypes.
        values["torch_dtype"] = "float32"
    return values


def _write_weights(
    folder: Path, stem: str, tensors: Mapping[str, Tensor], max_file_bytes: int | None
) -> None:
    metadata = {"format": "pt"}  # transformers opens no file without it
    shards = _split(tensors, max_file_bytes)
    if len(shards) == 1:
        write_tensors(folder / f"{stem}.safetensors", tensors, metadata)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        write_tensors(folder / file, {name: tensors[name] for name in names}, metadata)
        weight_map |= dict.fromkeys(names, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json(
        folder / f"{stem}.safetensors.index.json",
        {"metadata": {"total_size": size}, "weight_map": weight_map},
    )


def _split(tensors: Mapping[str, Tensor], max_file_bytes: int | None) -> list[list[str]]:
    """Names in groups that fit into files of the given size, in order."""
    if max_file_bytes is None:
        return [list(tensors)]
    shards: list[list[str]] = []
    room = 0
    for name, tensor in tensors.items():
        # With the tensor's entry in the header, which takes at most some 150 bytes besides the name.
        size = tensor.numel() * tensor.element_size() + len(json.dumps(name)) + 150
        if size > max_file_bytes - 100:
            raise ValueError(f"{name} takes {size} bytes, more than max_file_bytes = {max_file_bytes} allows")
        if size > room:
            shards.append([])
            room = max_file_bytes - 100  # the header's own length and metadata
        shards[-1].append(name)
        room -= size
    return shards


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a config or an index."""
    # Short lists on one line, for readability.
    text = json.dumps(values, indent=2, ensure_ascii=False)
    text = re.sub(r"\[\s+([^\[\]{}]{0,60}?)\s+\]", lambda m: f"[{re.sub(chr(10) + ' *', ' ', m[1])}]", text)
    path.write_text(text + "\n", encoding="utf-8")
