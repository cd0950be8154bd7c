"""Converts between single files and folders in the diffusers layout.

Tensors with a counterpart keep their bits, unless another dtype is requested. They are read and written one
by one, so that only a few are in memory.
"""

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import torch

from limner.catalogue.headers import Header, TensorInfo, read_header, read_infos
from limner.catalogue.inference_config import Prediction
from limner.catalogue.layout import CARD, CONFIG, MODEL_INDEX, STEM, TOKENIZER_OF, WEIGHT_STEMS
from limner.catalogue.single import (
    MARKERS,
    PREDICTION,
    RESOLUTION,
    SCHEDULER,
    V_PREDICTION,
    ZERO_SNR,
    is_whole,
    scheduler_of,
    side_of,
)
from limner.diffusion.config import TRAINED_ON, SchedulerConfig
from limner.errors import InvalidCheckpoint, InvalidRequest, OutputError, PickleRefused, UnsupportedModel
from limner.files import whole_folder
from limner.nn.clip_config import CLIPTextConfig
from limner.request.facts import Family, Kind

from .checkpoint import read_checkpoint
from .control import ControlFile, is_control, read_control, single_keys
from .hub import cached_clip_tokenizer
from .keymaps import Entry, by_single, single_shapes
from .load import refuse_unless_fitting
from .parts import NAMES, Checkpoint, SinglePart
from .pickles import read_pickle
from .save import config_of, write_json
from .single import checkpoint_of, family_of, single_entries
from .tensors import DTYPES, LazyTensor, lazy_tensors, write_tensors

Layout = Literal["folder", "single", "tensors"]

# File in a folder with the other tensors of a single file, under its keys, and with its metadata.
EXTRAS = "extras.safetensors"

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PIPELINES: Mapping[Kind, str] = {
    "text": "Pipeline",
    "inpainting": "InpaintPipeline",
    "edit": "InstructPix2PixPipeline",
    "depth": "Depth2ImgPipeline",
}
_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2",
    "xl": "stable-diffusion-xl-v1-base",
    "xl_refiner": "stable-diffusion-xl-v1-refiner",
}


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        kept: Keys without a counterpart in the other layout that were written.
        left_out: Keys, files and folders without a counterpart that were not written.
        warnings: Warnings about assumptions and missing files.
    """

    kept: tuple[str, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Model:
    """A checkpoint to convert.

    Attributes:
        tensors: Part -> hub name -> tensor.
        extras: Key -> tensor that no network has.
        metadata: Metadata of a single file.
        left_out: Keys, files and folders that fit neither layout.
    """

    checkpoint: Checkpoint
    tensors: Mapping[str, Mapping[str, LazyTensor]]
    extras: Mapping[str, LazyTensor]
    metadata: Mapping[str, str]
    left_out: tuple[str, ...] = ()

    @property
    def v_prediction(self) -> bool:
        return self.checkpoint.scheduler_config.get("prediction_type") == "v_prediction"


def convert(
    source: Path,
    target: Path,
    *,
    to: Layout | None = None,
    dtype: torch.dtype | None = None,
    keep_extras: bool = False,
    prediction_type: Prediction | None = None,
    tokenizer: Path | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
) -> Conversion:
    """Write a checkpoint or a ControlNet in another layout, or a single file in another dtype.

    Args:
        source: A single file, or a folder in the diffusers layout.
        target: File or folder to write, completely or not at all; nothing is overwritten.
        to: A folder, a single file, or, for a file that is neither a checkpoint nor a ControlNet, its tensors
            under their own keys. None: A folder becomes a single file. A checkpoint or ControlNet in a file
            becomes a single file if `target` ends in .safetensors, else a folder. Of any other file, the
            tensors are written.
        dtype: Dtype of the networks' weights; None keeps that of each.
        keep_extras: Also write tensors without a counterpart (EMA weights, schedule buffers, unused layers
            …), in a folder to `extras.safetensors`. From there, they are always written back to a single
            file.
        prediction_type: Prediction type of the U-Net, in place of the source's.
        tokenizer: Folder with the `vocab.json` and `merges.txt` of CLIP's tokenizer, which a single file does
            not have. None is that of the hub's cache.
        variant: Variant of a folder's weight files.
        allow_pickle: Read the tensors of a pickle, without running its code.

    Raises:
        InvalidRequest: A folder is to become a folder or tensors; or an option does not apply to the source.
        UnsupportedModel: No family has this geometry or noise schedule, so that a single file, which has no
            configs, would be read as another model.
        InvalidCheckpoint, ModelNotFound, PickleRefused: The source cannot be read.
        OutputError: `target` exists, or cannot be written.
    """
    if source.is_dir() and to not in (None, "single"):
        raise InvalidRequest(f"{source} is a folder, which can be written as a single file; {to!r} was asked")
    if source.is_file() and variant is not None:
        raise InvalidRequest(f"variant {variant!r} of {source}: a file has no variants")
    single = source.is_dir() or target.suffix == ".safetensors"
    layout: Layout = to or ("single" if single else "folder")
    if tokenizer is not None and layout != "folder":
        raise InvalidRequest(f"a tokenizer was given, but of {layout!r} and 'folder' only a folder has one")
    if target.exists():
        raise OutputError(f"{target} is there already", hint="choose another name, or remove it first")
    if source.is_dir() and (source / CONFIG).is_file() and not (source / MODEL_INDEX).is_file():
        _refuse_options_of_checkpoints(variant, prediction_type, tokenizer, keep_extras)
        return _convert_control(read_control(source), (), target, layout, dtype)
    if source.is_dir():
        model = _read_folder(source, variant, prediction_type)
    else:
        file = _read_file(source, allow_pickle)
        control, whole = is_control(file.tensors), is_whole(file.tensors)
        if to == "tensors" or (to is None and not control and not whole):
            tensors = {key: tensor.to(dtype) for key, tensor in file.tensors.items()}
            write_tensors(target, tensors, file.metadata, overwrite=False)
            return Conversion((), file.left_out, ())
        if control:
            _refuse_options_of_checkpoints(variant, prediction_type, tokenizer, keep_extras)
            return _convert_control(read_control(source), file.tensors, target, layout, dtype)
        model = _model(source, file, prediction_type, tokenizer or cached_clip_tokenizer())
    keep = keep_extras or source.is_dir()
    write = _write_folder if layout == "folder" else _write_single
    warnings = write(model, target, dtype, keep)
    extras = tuple(key for key in model.extras if key not in MARKERS)
    metadata = ("__metadata__",) if model.metadata and layout == "folder" else ()
    return Conversion(
        kept=extras if keep else (),
        left_out=model.left_out if keep else (*extras, *metadata, *model.left_out),
        warnings=(*model.checkpoint.warnings, *warnings),
    )


@dataclass(frozen=True)
class _File:
    """The tensors of a file by their keys, its metadata, and other contents of a pickle."""

    tensors: Mapping[str, LazyTensor]
    metadata: Mapping[str, str]
    left_out: tuple[str, ...] = ()


def _read_file(path: Path, allow_pickle: bool) -> _File:
    try:
        return _File(lazy_tensors(path), read_header(path).metadata)
    except PickleRefused:
        if not allow_pickle:
            raise
    held = read_pickle(path)
    tensors, others = held.model()
    return _File(tensors, {}, (*others, *held.values))


def _model(path: Path, file: _File, prediction_type: Prediction | None, tokenizer: Path | None) -> _Model:
    header = _header(file.tensors, file.metadata)
    checkpoint = checkpoint_of(path, header, prediction_type=prediction_type, tokenizer=tokenizer)
    return _Model(
        checkpoint,
        tensors={
            name: {entry.name: entry.lazy_from_single(file.tensors[entry.single]) for entry in part.entries}
            for name, part in checkpoint.parts.items()
            if isinstance(part, SinglePart)
        },
        extras={key: file.tensors[key] for key in checkpoint.unused},
        metadata=file.metadata,
        left_out=file.left_out,
    )


def _header(tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> Header:
    """Return the header of a file with these tensors."""
    infos = {
        key: TensorInfo(_DTYPE_NAMES[tensor.dtype], tensor.shape, 0, 0) for key, tensor in tensors.items()
    }
    return Header(infos, metadata, 0)


def _read_folder(folder: Path, variant: str | None, prediction_type: Prediction | None) -> _Model:
    checkpoint = read_checkpoint(folder, variant, prediction_type=prediction_type)
    left_out: list[str] = []
    for name, part in checkpoint.parts.items():
        left_out += (f"{name}/{key}" for key in read_infos(part.source) if NAMES[name](key) is None)
    known = {*checkpoint.parts, "scheduler", *TOKENIZER_OF.values()}
    left_out += sorted(
        f"{path.name}/" if path.is_dir() else path.name
        for path in folder.iterdir()
        if (path.is_dir() and path.name not in known) or path.name == CARD
    )
    extras = folder / EXTRAS
    return _Model(
        checkpoint,
        tensors={name: part.lazy_tensors() for name, part in checkpoint.parts.items()},
        extras=lazy_tensors(extras) if extras.is_file() else {},
        metadata=read_header(extras).metadata if extras.is_file() else {},
        left_out=tuple(left_out),
    )


def _write_folder(model: _Model, target: Path, dtype: torch.dtype | None, keep: bool) -> list[str]:
    warnings = []
    checkpoint = model.checkpoint
    family = family_of(checkpoint.text_configs)
    with whole_folder(target, overwrite=False) as folder:
        write_json(folder / MODEL_INDEX, _model_index(checkpoint, family))
        (folder / "scheduler").mkdir()
        write_json(folder / "scheduler" / "scheduler_config.json", checkpoint.scheduler_config)
        for name, part in checkpoint.parts.items():
            (folder / name).mkdir()
            values = config_of(part.config)
            if name == "unet" and family == "sd2":
                values["upcast_attention"] = True  # without it diffusers overflows in float16
            write_json(folder / name / CONFIG, values)
            tensors = {key: tensor.to(dtype) for key, tensor in model.tensors[name].items()}
            # transformers opens no file without this entry.
            write_tensors(folder / name / f"{WEIGHT_STEMS[name]}.safetensors", tensors, {"format": "pt"})
        for name, config in checkpoint.text_configs.items():
            if name in checkpoint.tokenizers:
                _write_tokenizer(checkpoint.tokenizers[name], folder / TOKENIZER_OF[name], config)
            else:
                warnings.append(
                    f"{target / TOKENIZER_OF[name]} is missing, as a single file holds no tokenizer: copy it "
                    "from another checkpoint, or name a folder with CLIP's vocab.json and merges.txt"
                )
        if keep and (model.extras or model.metadata):
            write_tensors(folder / EXTRAS, model.extras, model.metadata)
    return warnings


def _model_index(checkpoint: Checkpoint, family: Family) -> dict[str, Any]:
    xl = family in ("xl", "xl_refiner")
    name = "Img2ImgPipeline" if family == "xl_refiner" else _PIPELINES[checkpoint.kind]
    index: dict[str, Any] = {
        "_class_name": f"StableDiffusion{'XL' if xl else ''}{name}",
        "_diffusers_version": "0.30.0",  # diffusers opens no inpainting model without a version above 0.5
        "scheduler": ["diffusers", checkpoint.scheduler_config["_class_name"]],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for part, tokenizer in TOKENIZER_OF.items():
        config = checkpoint.text_configs.get(part)
        if config is not None:
            suffix = "WithProjection" if config.projection else ""
            index[part] = ["transformers", f"CLIPTextModel{suffix}"]
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
        elif xl:
            index[part] = index[tokenizer] = [None, None]
    if xl:
        index["force_zeros_for_empty_prompt"] = checkpoint.zero_negative
        if family == "xl_refiner":
            index["requires_aesthetics_score"] = True
    else:
        index |= {"feature_extractor": [None, None], "safety_checker": [None, None]}
        index["requires_safety_checker"] = False
        if checkpoint.kind == "depth":
            index["depth_estimator"] = [None, None]
    return dict(sorted(index.items()))


def _write_tokenizer(source: Path, folder: Path, config: CLIPTextConfig) -> None:
    """Write a tokenizer: CLIP's vocabulary for all families, with the padding token of this one."""
    folder.mkdir()
    for name in ("vocab.json", "merges.txt"):
        if not (source / name).is_file():
            raise InvalidCheckpoint(f"{source / name} is missing: expected the files of CLIP's tokenizer")
        shutil.copyfile(source / name, folder / name)
    end = "<|endoftext|>"
    specials = {
        "bos_token": "<|startoftext|>",
        "eos_token": end,
        "unk_token": end,
        "pad_token": "!" if config.hidden_act == "gelu" else end,  # OpenCLIP pads with 0
    }
    write_json(folder / "special_tokens_map.json", specials)
    length = config.max_position_embeddings
    values = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **specials}
    write_json(folder / "tokenizer_config.json", values)


def _write_single(model: _Model, target: Path, dtype: torch.dtype | None, keep: bool) -> list[str]:
    checkpoint = model.checkpoint
    texts = checkpoint.text_configs
    family = family_of(texts)
    entries = single_entries(model.checkpoint.unet_config, model.checkpoint.vae_config, texts)
    for part, tensors in model.tensors.items():
        refuse_unless_fitting(
            Path(part),
            {entry.name: str(list(entry.shape)) for entry in entries if entry.part == part},
            {name: str(list(tensor.shape)) for name, tensor in tensors.items()},
            (),
        )
    shapes = single_shapes(entries)
    networks = {
        key: _to_single(held, model.tensors, shapes[key]).to(dtype)
        for key, held in by_single(entries).items()
    }
    others = {key: tensor for key, tensor in model.extras.items() if keep and key not in MARKERS}
    tensors = {**networks, **others, **_markers(model, family)}
    metadata = _metadata(model, family, target) | _sampling(model.checkpoint, family)
    warnings = _check_reading(model.checkpoint, target, tensors, metadata)
    write_tensors(target, tensors, metadata, overwrite=False)
    return warnings


def _convert_control(
    control: ControlFile, held: Collection[str], target: Path, to: Layout, dtype: torch.dtype | None
) -> Conversion:
    """Write a ControlNet or T2I-Adapter in another layout.

    Args:
        held: All keys of its file, which may have other tensors.
    """
    tensors = {name: tensor.to(dtype) for name, tensor in control.lazy_tensors().items()}
    if to == "folder":
        with whole_folder(target, overwrite=False) as folder:
            write_json(folder / CONFIG, control.config.to_dict())
            write_tensors(folder / f"{STEM}.safetensors", tensors, {"format": "pt"})
    else:
        keys = single_keys(target, control.config)
        write_tensors(target, {keys[name]: tensor for name, tensor in tensors.items()}, overwrite=False)
    used = set(control.keys.values())
    return Conversion(kept=(), left_out=tuple(key for key in held if key not in used), warnings=())


def _refuse_options_of_checkpoints(*given: object) -> None:
    if any(given):
        raise InvalidRequest(
            "a ControlNet or T2I-Adapter has no tokenizer, prediction type, variant or extras",
            hint="of a folder's variants name the file itself",
        )


def _to_single(
    held: list[Entry], tensors: Mapping[str, Mapping[str, LazyTensor]], shape: tuple[int, ...]
) -> LazyTensor:
    parts = [(entry, tensors[entry.part][entry.name]) for entry in held]
    dtype = reduce(torch.promote_types, (tensor.dtype for _, tensor in parts))
    return LazyTensor(
        dtype, shape, lambda: torch.cat([entry.to_single(tensor.read()).to(dtype) for entry, tensor in parts])
    )


def _markers(model: _Model, family: Family) -> dict[str, LazyTensor]:
    """Empty tensors by which other programs find the prediction type; for 2.x they use the metadata."""
    names = []
    if V_PREDICTION in model.extras or (family != "sd2" and model.metadata.get(PREDICTION) != "v"):
        names += [V_PREDICTION] if model.v_prediction else []
    if model.checkpoint.scheduler_config.get("rescale_betas_zero_snr"):
        names += [ZERO_SNR]
    empty = LazyTensor(torch.float32, (0,), lambda: torch.zeros(0))
    return {name: model.extras.get(name, empty) for name in names}


def _metadata(model: _Model, family: Family, target: Path) -> dict[str, str]:
    """Metadata by ModelSpec, which is the only difference between 2.x of 512 and of 768 pixels."""
    given = {key: value for key, value in model.metadata.items() if key != "modelspec.predict_key"}
    size = {"sd2": "-768-v" if model.v_prediction else "-512"}.get(family, "")
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _ARCHITECTURES[family] + size,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": target.stem,
        **given,
        **_resolution(model),
        PREDICTION: "v" if model.v_prediction else "epsilon",
    }


def _resolution(model: _Model) -> dict[str, str]:
    """The model's default size, unless the source gives a resolution that is no such size."""
    if (given := model.metadata.get(RESOLUTION)) is not None and side_of(given) is None:
        return {}
    side = model.checkpoint.unet_config.sample_size * model.checkpoint.vae_config.downscale
    resolution = f"{side}x{side}"
    return {} if side_of(resolution) is None else {RESOLUTION: resolution}


def _sampling(checkpoint: Checkpoint, family: Family) -> dict[str, str]:
    """Metadata with the checkpoint's scheduler config, if that is not the one of its family."""
    given = checkpoint.scheduler_config
    prediction: Prediction = "v_prediction" if given.get("prediction_type") == "v_prediction" else "epsilon"
    usual = scheduler_of(family, prediction, zero_snr=bool(given.get("rescale_betas_zero_snr")))
    try:
        if SchedulerConfig.from_dict(given) == SchedulerConfig.from_dict({**usual, **_trained(given)}):
            return {}
    except ValueError as error:
        raise UnsupportedModel(f"the scheduler's config cannot be read: {error}") from error
    values = {key: value for key, value in given.items() if key not in TRAINED_ON}
    return {SCHEDULER: json.dumps(values, sort_keys=True)}


def _trained(scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in scheduler_config.items() if key in TRAINED_ON}


def _check_reading(
    checkpoint: Checkpoint,
    target: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
) -> list[str]:
    """Check before writing that the single file, which has no configs, is read as the same model.

    Raises:
        UnsupportedModel: It is read as another model.
    """
    try:
        found = checkpoint_of(target, _header(tensors, metadata))
    except InvalidCheckpoint as error:
        raise UnsupportedModel(f"as a single file this model could not be read: {error.message}") from error
    try:
        ours, theirs = (_facts(each) | _training(each) for each in (checkpoint, found))
    except ValueError as error:
        raise UnsupportedModel(f"the scheduler's config cannot be read: {error}") from error
    differences = [
        f"{name} {ours[name]} as {theirs.get(name)}" for name in ours if ours[name] != theirs.get(name)
    ]
    if differences:
        raise UnsupportedModel(
            f"a single file has no configs, and would be read as another model: {'; '.join(differences)}",
            hint="only the published geometries of Stable Diffusion can be derived from a single file",
        )
    warnings = []
    if checkpoint.unet_config.sample_size != found.unet_config.sample_size:
        sides = [one.unet_config.sample_size * one.vae_config.downscale for one in (checkpoint, found)]
        warnings.append(
            f"the default size is {sides[0]}, which a single file cannot express; it becomes {sides[1]}"
        )
    if checkpoint.zero_negative != found.zero_negative:
        meaning = "zeros" if checkpoint.zero_negative else "an empty text"
        warnings.append(f"a single file cannot express that no negative prompt means {meaning} to this model")
    if any(config.vocab_size != CLIPTextConfig.vocab_size for config in checkpoint.text_configs.values()):
        warnings.append("its tokenizer is not CLIP's, and a single file holds none")
    return warnings


def _training(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of the scheduler's config that the U-Net was trained on."""
    config = SchedulerConfig.from_dict(checkpoint.scheduler_config)
    return {name: getattr(config, name) for name in TRAINED_ON}


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Fields of the networks' configs, in one spelling where there are several, without those of training."""
    unet = checkpoint.unet_config
    attends = [kind == "CrossAttnDownBlock2D" for kind in unet.down_block_types]
    attends[-1] = True  # the middle has the last level's depth
    spelled = {
        "unet attention_head_dim": unet.heads,
        "unet transformer_layers_per_block": [
            d for d, there in zip(unet.depths, attends, strict=True) if there
        ],
    }
    facts = {
        f"{name} {field.name}": getattr(part.config, field.name)
        for name, part in checkpoint.parts.items()
        for field in fields(part.config)
        if field.name != "sample_size"
    }
    for name, config in checkpoint.text_configs.items():
        if not config.projection:
            del facts[f"{name} projection_dim"]
    return {**facts, **spelled}
