"""What a folder in the diffusers layout holds: a checkpoint in several variants, or one network."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.errors import InvalidCheckpoint, LimnerError
from limner.files import read_json

from .contents import FAMILIES, Contents, Kind
from .headers import files_of
from .layout import CONFIG, MODEL_INDEX, STEM, WEIGHT_STEMS, weight_variants

Read = Callable[[Path], Contents]
"""Safetensors file -> what it is. Raises LimnerError where its header is broken."""

_XL_VAE_SCALE = 0.13025


@dataclass(frozen=True)
class FolderContents:
    """What a folder holds.

    Attributes:
        contents: Its kind, family and number of weights.
        bytes: Size of the weight files.
        variant: Of the weight files; None for the plain ones.
        problem: Why it cannot be used, as far as configs and headers tell.
    """

    contents: Contents
    bytes: int = 0
    variant: str | None = None
    problem: str | None = None


def describe_folder(folder: Path, read: Read) -> list[FolderContents]:
    """What a folder with a `model_index.json` or a `config.json` holds: each variant of a checkpoint, or one
    network; nothing where it is of no kind that Limner uses."""
    if (folder / MODEL_INDEX).is_file():
        files = [file.relative_to(folder).as_posix() for file in folder.glob("*/*") if file.is_file()]
        parts = {part: weight_variants(files, f"{part}/{stem}") for part, stem in WEIGHT_STEMS.items()}
        variants = sorted({v for found in parts.values() for v in found}, key=lambda v: v or "")
        return [_checkpoint(folder, variant, parts, read) for variant in variants or [None]]
    found = _network(folder, read)
    return [] if found is None else [found]


def _checkpoint(
    folder: Path, variant: str | None, parts: dict[str, dict[str | None, str]], read: Read
) -> FolderContents:
    size = parameters = 0
    family, problem = "", None
    try:
        index = read_json(folder / MODEL_INDEX)
        family = _family(folder)
        for part in (part for part in WEIGHT_STEMS if index.get(part) not in (None, [None, None])):
            read_json(folder / part / CONFIG)
            files = parts[part]
            if not files:
                raise InvalidCheckpoint(f"{folder} has no weights of its {part}")
            for file in files_of(folder / (files.get(variant) or next(iter(files.values())))):
                parameters += read(file).parameters
                size += file.stat().st_size
    except LimnerError as error:
        problem = error.message
    except OSError as error:
        problem = f"{folder} cannot be read: {error.strerror}"
    return FolderContents(Contents("checkpoint", family, parameters), size, variant, problem)


def _family(folder: Path) -> str:
    unet = read_json(folder / "unet" / CONFIG)
    if unet.get("addition_embed_type") == "text_time":
        sizes = unet.get("projection_class_embeddings_input_dim"), unet.get("addition_time_embed_dim")
        pooled = read_json(folder / "text_encoder_2" / CONFIG).get("projection_dim")
        if all(isinstance(number, int) and number > 0 for number in (*sizes, pooled)):
            return "xl" if (sizes[0] - pooled) // sizes[1] == 6 else "xl_refiner"  # type: ignore[operator]
    family = _of_width(unet)
    return family if family in ("sd1", "sd2") else "custom"


def _network(folder: Path, read: Read) -> FolderContents | None:
    names = [file.name for file in folder.iterdir() if file.is_file()]
    found = weight_variants(names, STEM) or weight_variants(names, "model")
    weights = found.get(None) or next(iter(found.values()), None)
    pickle = f"{STEM}.bin"
    try:
        config = read_json(folder / CONFIG)
        kind, family = _kind_of(config)
        if kind is None:
            return None
        if weights is None:
            if pickle not in names:
                return None
            return FolderContents(Contents(kind, family), (folder / pickle).stat().st_size)
        files = files_of(folder / weights)
        parameters = sum(read(file).parameters for file in files)
        return FolderContents(Contents(kind, family, parameters), sum(file.stat().st_size for file in files))
    except (LimnerError, OSError):
        return None  # not known to be a network of ours


def _kind_of(config: dict[str, Any]) -> tuple[Kind | None, str]:
    match config.get("_class_name"), config.get("architectures"):
        case "ControlNetModel", _:
            return "controlnet", _of_width(config)
        case "T2IAdapter", _:
            return "t2i_adapter", "xl" if config.get("adapter_type") == "full_adapter_xl" else "sd1"
        case "AutoencoderKL", _:
            return "vae", "xl" if config.get("scaling_factor") == _XL_VAE_SCALE else ""
        case _, ["CLIPVisionModelWithProjection" | "CLIPVisionModel"]:
            return "image_encoder", ""
    return None, ""


def _of_width(config: dict[str, Any]) -> str:
    width = config.get("cross_attention_dim")
    return FAMILIES.get(width, "custom") if isinstance(width, int) else "custom"
