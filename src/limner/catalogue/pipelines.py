"""The configs of a checkpoint in the diffusers layout: a `model_index.json`, and a folder for each component.

Every JSON file is parsed and checked; weights are found, and not opened.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limner.diffusion.config import CLASS_SPECIFIC
from limner.errors import InvalidCheckpoint, ModelNotFound, PickleRefused, UnsupportedModel
from limner.files import read_json
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet_config import UNetConfig
from limner.nn.vae_config import VAEConfig

from .configs import PartConfig, read_config
from .headers import PICKLE_HINT
from .layout import (
    CONFIG,
    MODEL_INDEX,
    PICKLE_SUFFIXES,
    TOKENIZER_OF,
    WEIGHT_STEMS,
    how_to_give,
    weight_variants,
)

SCHEDULER_CONFIG = Path("scheduler") / "scheduler_config.json"

_PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLInstructPix2PixPipeline",
    "LatentConsistencyModelPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLControlNetImg2ImgPipeline",
    "StableDiffusionXLControlNetInpaintPipeline",
)
# Pipelines that correct the scheduler's config when they are made.
_CORRECTING_CLIPPING = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
_CORRECTING_OFFSETS = (*_CORRECTING_CLIPPING, "StableDiffusionInpaintPipeline")
_WITHOUT_OFFSET = ("DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler")  # have no such setting
_TEXT_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection")
_TOKENIZER_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
_COMPONENT_CLASSES: Mapping[str, tuple[str, ...] | None] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": _TEXT_CLASSES,
    "text_encoder_2": _TEXT_CLASSES,
    "tokenizer": _TOKENIZER_CLASSES,
    "tokenizer_2": _TOKENIZER_CLASSES,
    "controlnet": ("ControlNetModel", "MultiControlNetModel"),
    "scheduler": None,  # any class: which of them a sampler stands for is not a question of files
}
_NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder", "depth_estimator")


@dataclass(frozen=True)
class ModelIndex:
    """The content of a `model_index.json`.

    Attributes:
        pipeline: Name of diffusers' class.
        parts: The components with weights: "unet", "vae", and "text_encoder", "text_encoder_2" or both.
        tokenizers: The tokenizers: "tokenizer", "tokenizer_2" or both.
        zero_negative: An empty negative prompt is an all-zero embedding, not that of an empty text.
        controlled: There are ControlNets too, which are used only where a request names them.
    """

    pipeline: str
    parts: tuple[str, ...]
    tokenizers: tuple[str, ...]
    zero_negative: bool = False
    controlled: bool = False


def read_model_index(path: Path, replaced: Collection[str] = ()) -> ModelIndex:
    """Read a `model_index.json`, which must describe a Stable Diffusion pipeline that Limner can run.

    Args:
        replaced: Components that come from elsewhere, which the folder need not have.

    Raises:
        UnsupportedModel: another pipeline, or a component of another class.
        InvalidCheckpoint: a component is missing, or the file is malformed.
    """
    index = read_json(path)
    pipeline = index.get("_class_name")
    if pipeline not in _PIPELINES:
        raise UnsupportedModel(f"{path} describes a {pipeline!r}, expected {' or '.join(_PIPELINES)}")
    # Besides components there are only settings such as "requires_safety_checker": false.
    components = {name: value for name, value in index.items() if isinstance(value, list)}
    given = {name: value for name, value in components.items() if value != [None, None]}
    for name, value in given.items():
        if name in _NOT_LOADED or name in replaced:
            continue
        if name not in _COMPONENT_CLASSES:
            raise UnsupportedModel(f"{path} has a component {name!r} ({value}), which Limner does not know")
        classes = _COMPONENT_CLASSES[name]
        if classes is not None and value[-1:] not in [[cls] for cls in classes]:
            raise UnsupportedModel(f"{path}: {name!r} is {value}, expected {' or '.join(classes)}")
    needed = {"unet", "vae", "scheduler"}
    for encoder, tokenizer in TOKENIZER_OF.items():
        if encoder in given or tokenizer in given:
            needed |= {encoder, tokenizer}
    if not needed & TOKENIZER_OF.keys():
        needed |= {"text_encoder", "tokenizer"}
    for name in sorted(needed - given.keys() - set(replaced)):
        raise InvalidCheckpoint(f"{path} names no {name!r}, which a {pipeline} needs", hint=how_to_give(name))
    return ModelIndex(
        pipeline,
        tuple(part for part in WEIGHT_STEMS if part in given and part not in replaced),
        tuple(name for name in TOKENIZER_OF.values() if name in given and name not in replaced),
        "XL" in pipeline and index.get("force_zeros_for_empty_prompt", True) is True,
        "controlnet" in given,
    )


def choose_weights(
    files: Collection[str], parts: Collection[str], variant: str | None, *, source: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Choose the weight file of each component among the files of a folder or of a repository.

    Args:
        files: paths within the checkpoint, such as "unet/diffusion_pytorch_model.fp16.safetensors".
        parts: the components.
        variant: a component that has no file of it takes its plain one, with a warning.
        source: names the checkpoint in messages.

    Returns:
        component -> file, and the warnings.

    Raises:
        ModelNotFound, PickleRefused, InvalidCheckpoint: as `read_checkpoint`.
    """
    there = {part: weight_variants(files, f"{part}/{WEIGHT_STEMS[part]}") for part in parts}
    _refuse_pickles(files, there, source)
    variants = sorted({v for found in there.values() for v in found if v is not None})
    if variant is not None and variant not in variants:
        has = f"has only {', '.join(variants)}" if variants else "has no variants"
        raise ModelNotFound(
            f"{source} has no variant {variant!r}: it {has}", hint="leave out the variant, or name another"
        )
    chosen: dict[str, str] = {}
    warnings: list[str] = []
    for part, found in there.items():
        if variant in found:
            chosen[part] = found[variant]
        elif None in found:
            chosen[part] = found[None]
            warnings.append(f"{source} has no {variant!r} variant of its {part}; the plain weights are used")
        elif found:
            names = ", ".join(str(v) for v in found)
            raise ModelNotFound(
                f"{source} has its {part} only in the variant {names}, expected {variant or 'plain weights'}",
                hint=f'ask for variant "{next(iter(found))}"',
            )
        else:
            raise InvalidCheckpoint(
                f"{source} has no weights of its {part}: expected {part}/{WEIGHT_STEMS[part]}.safetensors",
                hint="the folder is incomplete: download or copy it again",
            )
    return chosen, tuple(warnings)


def variants_of(folder: Path) -> list[str | None]:
    """The variants that weights in a checkpoint's folder come in; None is the plain files."""
    files = _weight_files(folder)
    stems = (f"{part}/{stem}" for part, stem in WEIGHT_STEMS.items())
    found = {variant for stem in stems for variant in weight_variants(files, stem)}
    return sorted(found, key=lambda variant: variant or "")


@dataclass(frozen=True)
class Pipeline:
    """A checkpoint's folder, as its configs describe it.

    Attributes:
        index: Its `model_index.json`.
        configs: Part -> geometry of its network.
        weights: Part -> the file of its weights, or the index of their shards.
        scheduler_config: The scheduler's config, as diffusers' pipeline takes it.
        warnings: About the choice of files, and what was corrected.
    """

    index: ModelIndex
    configs: Mapping[str, PartConfig]
    weights: Mapping[str, Path]
    scheduler_config: Mapping[str, Any]
    warnings: tuple[str, ...]


def read_pipeline(
    folder: Path, variant: str | None, replaced: Collection[str] = (), scheduler: Path | None = None
) -> Pipeline:
    """Read the configs of a folder in the diffusers layout, and find its weights.

    Args:
        variant: Variant of the weight files, such as "fp16" (`model.fp16.safetensors`); None: plain files.
        replaced: Components that come from elsewhere, which are left out.
        scheduler: A `scheduler_config.json` in place of the folder's own.

    Raises:
        ModelNotFound: There are weights, but not of this variant.
        PickleRefused: The only weights are pickles.
        InvalidCheckpoint: A file is missing or malformed.
        UnsupportedModel: A pipeline or component that Limner cannot run.
    """
    if not (folder / MODEL_INDEX).is_file():
        raise _no_checkpoint(folder)
    index = read_model_index(folder / MODEL_INDEX, replaced)
    weights, warnings = choose_weights(_weight_files(folder), index.parts, variant, source=str(folder))
    configs = {part: read_part_config(part, (folder / file).parent) for part, file in weights.items()}
    unet = configs.get("unet")
    if isinstance(unet, UNetConfig) and (size := _old_sample_size(folder / "unet" / CONFIG)):
        configs["unet"] = replace(unet, sample_size=64)
        warnings += (
            f"{folder / 'unet' / CONFIG} gives the sample_size {size}, which diffusers before 0.9 wrote by "
            "mistake; as in diffusers, 64 is taken",
        )
    scheduler_config, changes = read_scheduler_config(scheduler or folder / SCHEDULER_CONFIG, index.pipeline)
    files = {part: folder / file for part, file in weights.items()}
    return Pipeline(index, configs, files, scheduler_config, warnings + changes)


def read_part_config(part: str, folder: Path) -> PartConfig:
    """The geometry of a network in a folder of its own. Raises as `read_config`."""
    match part:
        case "unet":
            return read_config(folder / CONFIG, UNetConfig)
        case "vae":
            return read_config(folder / CONFIG, VAEConfig)
    return read_config(folder / CONFIG, CLIPTextConfig)


def _old_sample_size(path: Path) -> int | None:
    """The `sample_size` of a U-Net's config, if it is one that diffusers before 0.9 wrote by mistake.

    Those versions took the wrong field for it, and wrote 32 for 1.x (diffusers #1408).
    """
    values = read_json(path)
    version = re.match(r"(\d+)\.(\d+)", str(values.get("_diffusers_version")))
    size = values.get("sample_size")
    old = version is not None and (int(version[1]), int(version[2])) < (0, 9)
    return size if old and isinstance(size, int) and size < 64 else None


def read_scheduler_config(path: Path, pipeline: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A scheduler's config as diffusers' pipeline takes it, and warnings of what it corrects.

    Configs of 2022 lack what keeps schedulers from ending at timestep 0 and from clipping latents as if they
    were pixels. Pipelines correct them.
    """
    config, warnings = read_json(path), []
    offset = config.get("steps_offset", 0)
    has_offset = "steps_offset" in config or config.get("_class_name") not in _WITHOUT_OFFSET
    if pipeline in _CORRECTING_OFFSETS and has_offset and offset != 1:
        config["steps_offset"] = 1
        warnings.append(f"the scheduler's steps_offset is {offset}; as in diffusers, {pipeline} takes 1")
    clips = CLASS_SPECIFIC["clip_sample"].get(str(config.get("_class_name")))
    if pipeline in _CORRECTING_CLIPPING and clips is not None and config.get("clip_sample", clips) is True:
        said = "true" if "clip_sample" in config else "not given, which means true"
        config["clip_sample"] = False
        warnings.append(f"the scheduler's clip_sample is {said}; as in diffusers, {pipeline} takes false")
    return config, tuple(warnings)


def weights_in(folder: Path, stem: str, variant: str | None = None) -> str:
    """Name of the weight file, or index of shards, of a network in a folder of its own.

    Args:
        variant: The variant to prefer; without one, and where there is none, the plain file, or any.

    Raises:
        ModelNotFound: the folder has no `config.json`, or no weights.
        PickleRefused: its only weights are a pickle.
    """
    names = [file.name for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
    if CONFIG not in names:
        raise ModelNotFound(
            f"{folder} has no {CONFIG}", hint="name a folder in the diffusers layout, or a file within it"
        )
    found = weight_variants(names, stem)
    if not found:
        pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
        if pickles:
            raise PickleRefused(f"the weights in {folder} are a pickle ({pickles[0]})", hint=PICKLE_HINT)
        raise ModelNotFound(f"{folder} has no weights: expected {stem}.safetensors")
    return found.get(variant) or found.get(None) or next(iter(found.values()))


def _refuse_pickles(
    files: Collection[str], there: Mapping[str, Mapping[str | None, str]], source: str
) -> None:
    for part, found in there.items():
        pickles = sorted(
            file for file in files if file.startswith(f"{part}/") and file.endswith(PICKLE_SUFFIXES)
        )
        if pickles and not found:
            raise PickleRefused(f"{source} has its {part} only as a pickle ({pickles[0]})", hint=PICKLE_HINT)


def _no_checkpoint(folder: Path) -> InvalidCheckpoint:
    files = _files_in(folder)
    pickles = sorted(path.name for path in files if path.suffix in PICKLE_SUFFIXES)
    single = sorted(path.name for path in files if path.suffix == ".safetensors")
    if single:
        hint = (
            f"{single[0]} may be a whole checkpoint in one file; a folder in the diffusers layout is needed"
        )
        return InvalidCheckpoint(f"{folder} has no {MODEL_INDEX}", hint=hint)
    if pickles:
        return PickleRefused(
            f"{folder} has no {MODEL_INDEX}, and its weights are a pickle ({pickles[0]})", hint=PICKLE_HINT
        )
    inside = sorted(path.parent.name for path in folder.glob(f"*/{MODEL_INDEX}"))
    hint = (
        f"there is one in {', '.join(inside[:5])}" if inside else "a folder in the diffusers layout is needed"
    )
    return InvalidCheckpoint(f"{folder} has no {MODEL_INDEX}", hint=hint)


def _weight_files(folder: Path) -> list[str]:
    return [f"{part}/{path.name}" for part in WEIGHT_STEMS for path in _files_in(folder / part)]


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
