"""Between single files and folders in the diffusers layout.

Every tensor that has a counterpart comes out bit for bit as it went in, unless another dtype is asked for.
Tensors are read one by one, as they are written, so that memory holds no more than a few of them.
"""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import torch

from limner.diffusion.config import SchedulerConfig
from limner.errors import InvalidCheckpoint, InvalidRequest, OutputError, PickleRefused, UnsupportedModel
from limner.nn.clip import CLIPTextConfig
from limner.nn.unet import UNetConfig
from limner.nn.vae import VAEConfig

from .checkpoint import (
    CARD,
    MODEL_INDEX,
    TOKENIZER_OF,
    WEIGHT_STEMS,
    Family,
    Kind,
    read_checkpoint,
)
from .control import CONFIG, STEM, ControlFile, is_control, read_control, single_keys
from .files import whole_folder
from .hub import cached_clip_tokenizer
from .keymaps import Entry, by_single, single_shapes
from .load import refuse_unless_fitting, text_encoder_name, unet_name, vae_name
from .pickles import read_pickle
from .save import write_json
from .single import (
    MARKERS,
    PREDICTION,
    V_PREDICTION,
    ZERO_SNR,
    Prediction,
    SingleFile,
    describe,
    single_entries,
)
from .tensors import DTYPES, Header, LazyTensor, TensorInfo, lazy_tensors, read_header, write_tensors

Layout = Literal["folder", "single", "tensors"]

# In a folder: what a single file held beyond the networks, under its own keys, and its metadata.
EXTRAS = "extras.safetensors"

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_NAMES = {"unet": unet_name, "vae": vae_name, **dict.fromkeys(TOKENIZER_OF, text_encoder_name)}
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
# What a U-Net was trained on. The rest of a scheduler's config is how to sample, which no single file says.
_TRAINED_ON = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)


@dataclass(frozen=True)
class Conversion:
    """What became of what has no counterpart in the other layout.

    Attributes:
        kept: keys that were written all the same.
        left_out: keys, files and folders that were not.
        warnings: what was assumed, or is lacking.
    """

    kept: tuple[str, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Model:
    """A checkpoint of either layout; tensors by part and hub name."""

    family: Family
    kind: Kind
    unet_config: UNetConfig
    vae_config: VAEConfig
    text_configs: Mapping[str, CLIPTextConfig]
    tensors: Mapping[str, Mapping[str, LazyTensor]]
    scheduler_config: Mapping[str, Any]
    tokenizers: Mapping[str, Path]
    zero_negative: bool
    extras: Mapping[str, LazyTensor]
    metadata: Mapping[str, str]
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def v_prediction(self) -> bool:
        return self.scheduler_config.get("prediction_type") == "v_prediction"


def convert(
    source: Path,
    target: Path,
    *,
    to: Layout,
    dtype: torch.dtype | None = None,
    keep_extras: bool = False,
    prediction_type: Prediction | None = None,
    tokenizer: Path | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
) -> Conversion:
    """Write a checkpoint or a ControlNet in another layout, or a single file in another dtype.

    Args:
        source: a single file, or a folder in the diffusers layout.
        target: what is written, whole or not at all; nothing is overwritten.
        to: a folder, a single file, or (of a file that is no whole checkpoint) its tensors as they are named.
        dtype: for the networks' weights; None leaves each as it is.
        keep_extras: write also what has no counterpart (EMA weights, schedule buffers, unused layers …): in a
            folder, into `extras.safetensors`. A folder's extras are put back in any case.
        prediction_type: of the U-Net, whatever the source says.
        tokenizer: a folder with the `vocab.json` and `merges.txt` of CLIP's tokenizer, of which a single file
            has none. None is that of the hub's cache.
        variant: of a folder's weight files.
        allow_pickle: read the tensors of a pickle, and nothing else of it.

    Raises:
        InvalidRequest: a folder is asked of a folder, or its tensors; an option has no meaning here.
        UnsupportedModel: a geometry or noise schedule that is no family's, so that a single file, which has
            no configs, would be read as another model.
        InvalidCheckpoint, ModelNotFound, PickleRefused: the source cannot be read.
        OutputError: there is something at `target`, or it cannot be written.
    """
    if source.is_dir() and to != "single":
        raise InvalidRequest(f"{source} is a folder, which can be written as a single file; {to!r} was asked")
    if source.is_file() and variant is not None:
        raise InvalidRequest(f"variant {variant!r} of {source}: a file has no variants")
    if tokenizer is not None and to != "folder":
        raise InvalidRequest(f"a tokenizer was given, but of {to!r} and 'folder' only a folder has one")
    if target.exists():
        raise OutputError(f"{target} is there already", hint="choose another name, or remove it first")
    if source.is_dir() and (source / CONFIG).is_file() and not (source / MODEL_INDEX).is_file():
        _refuse_options_of_checkpoints(variant, prediction_type, tokenizer, keep_extras)
        return _convert_control(read_control(source), (), target, to, dtype)
    if source.is_dir():
        model = _read_folder(source, variant, prediction_type)
    else:
        file = _read_file(source, allow_pickle)
        if to == "tensors":
            tensors = {key: tensor.to(dtype) for key, tensor in file.tensors.items()}
            write_tensors(target, tensors, file.metadata)
            return Conversion((), file.left_out, ())
        if is_control(file.tensors):
            _refuse_options_of_checkpoints(variant, prediction_type, tokenizer, keep_extras)
            return _convert_control(read_control(source), file.tensors, target, to, dtype)
        model = _model(source, file, prediction_type, tokenizer or cached_clip_tokenizer())
    keep = keep_extras or source.is_dir()
    write = _write_folder if to == "folder" else _write_single
    warnings = write(model, target, dtype, keep)
    extras = tuple(key for key in model.extras if key not in MARKERS)
    metadata = ("__metadata__",) if model.metadata and to == "folder" else ()
    return Conversion(
        kept=extras if keep else (),
        left_out=model.left_out if keep else (*extras, *metadata, *model.left_out),
        warnings=(*model.warnings, *warnings),
    )


@dataclass(frozen=True)
class _File:
    """Tensors by their keys, and what a pickle held besides."""

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
    single = describe(path, _header(file.tensors, file.metadata), prediction_type=prediction_type)
    tensors: dict[str, dict[str, LazyTensor]] = {part: {} for part in single.parts}
    for entry in single.entries:
        tensors[entry.part][entry.name] = _from_single(entry, file.tensors[entry.single])
    return _Model(
        family=single.family,
        kind=single.kind,
        unet_config=single.unet_config,
        vae_config=single.vae_config,
        text_configs=single.text_configs,
        tensors=tensors,
        scheduler_config=single.scheduler_config,
        tokenizers=dict.fromkeys(single.text_configs, tokenizer) if tokenizer else {},
        zero_negative=single.zero_negative,
        extras={key: file.tensors[key] for key in single.without_counterpart},
        metadata=file.metadata,
        left_out=file.left_out,
        warnings=single.warnings,
    )


def _header(tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> Header:
    """Of a file that holds these."""
    infos = {
        key: TensorInfo(_DTYPE_NAMES[tensor.dtype], tensor.shape, 0, 0) for key, tensor in tensors.items()
    }
    return Header(infos, metadata, 0)


def _read_folder(folder: Path, variant: str | None, prediction_type: Prediction | None) -> _Model:
    checkpoint = read_checkpoint(folder, variant, prediction_type=prediction_type)
    tensors: dict[str, dict[str, LazyTensor]] = {part: {} for part in checkpoint.weights}
    left_out: list[str] = []
    for part, path in checkpoint.weights.items():
        for key, tensor in lazy_tensors(path).items():
            name = _NAMES[part](key)
            if name is None:
                left_out.append(f"{part}/{key}")
            elif name in tensors[part]:
                raise InvalidCheckpoint(f"{path} holds {name} under two names")
            else:
                tensors[part][name] = tensor
    known = {*checkpoint.weights, "scheduler", *TOKENIZER_OF.values()}
    left_out += sorted(
        f"{path.name}/" if path.is_dir() else path.name
        for path in folder.iterdir()
        if (path.is_dir() and path.name not in known) or path.name == CARD
    )
    extras = folder / EXTRAS
    return _Model(
        family=checkpoint.family,
        kind=checkpoint.kind,
        unet_config=checkpoint.unet_config,
        vae_config=checkpoint.vae_config,
        text_configs=checkpoint.text_configs,
        tensors=tensors,
        scheduler_config=checkpoint.scheduler_config,
        tokenizers=checkpoint.tokenizers,
        zero_negative=checkpoint.zero_negative,
        extras=lazy_tensors(extras) if extras.is_file() else {},
        metadata=read_header(extras).metadata if extras.is_file() else {},
        left_out=tuple(left_out),
        warnings=checkpoint.warnings,
    )


def _write_folder(model: _Model, target: Path, dtype: torch.dtype | None, keep: bool) -> list[str]:
    warnings = []
    with whole_folder(target, overwrite=False) as folder:
        write_json(folder / MODEL_INDEX, _model_index(model))
        (folder / "scheduler").mkdir()
        write_json(folder / "scheduler" / "scheduler_config.json", model.scheduler_config)
        for part, config in _configs(model).items():
            (folder / part).mkdir()
            values = config.to_dict()
            if part == "unet" and model.family == "sd2":
                values["upcast_attention"] = True  # without it diffusers overflows in float16
            write_json(folder / part / "config.json", values)
            tensors = {name: tensor.to(dtype) for name, tensor in model.tensors[part].items()}
            # transformers opens no file without this entry.
            write_tensors(folder / part / f"{WEIGHT_STEMS[part]}.safetensors", tensors, {"format": "pt"})
        for part, config in model.text_configs.items():
            if part in model.tokenizers:
                _write_tokenizer(model.tokenizers[part], folder / TOKENIZER_OF[part], config)
            else:
                warnings.append(
                    f"{target / TOKENIZER_OF[part]} is missing, as a single file holds no tokenizer: copy it "
                    "from another checkpoint, or name a folder with CLIP's vocab.json and merges.txt"
                )
        if keep and (model.extras or model.metadata):
            write_tensors(folder / EXTRAS, model.extras, model.metadata)
    return warnings


def _model_index(model: _Model) -> dict[str, Any]:
    xl = model.family in ("xl", "xl_refiner")
    name = "Img2ImgPipeline" if model.family == "xl_refiner" else _PIPELINES[model.kind]
    index: dict[str, Any] = {
        "_class_name": f"StableDiffusion{'XL' if xl else ''}{name}",
        "_diffusers_version": "0.30.0",  # diffusers opens no inpainting model without a version above 0.5
        "scheduler": ["diffusers", model.scheduler_config["_class_name"]],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for part, tokenizer in TOKENIZER_OF.items():
        config = model.text_configs.get(part)
        if config is not None:
            suffix = "WithProjection" if config.projection else ""
            index[part] = ["transformers", f"CLIPTextModel{suffix}"]
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
        elif xl:
            index[part] = index[tokenizer] = [None, None]
    if xl:
        index["force_zeros_for_empty_prompt"] = model.zero_negative
        if model.family == "xl_refiner":
            index["requires_aesthetics_score"] = True
    else:
        index |= {"feature_extractor": [None, None], "safety_checker": [None, None]}
        index["requires_safety_checker"] = False
        if model.kind == "depth":
            index["depth_estimator"] = [None, None]
    return dict(sorted(index.items()))


def _write_tokenizer(source: Path, folder: Path, config: CLIPTextConfig) -> None:
    """CLIP's vocabulary serves all families; they differ in what a text is padded with."""
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
    family, entries = single_entries(model.unet_config, model.vae_config, model.text_configs)
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
    metadata = _metadata(model, family, target)
    warnings = _check_told(model, target, tensors, metadata)
    write_tensors(target, tensors, metadata)
    return warnings


def _convert_control(
    control: ControlFile, held: Collection[str], target: Path, to: Layout, dtype: torch.dtype | None
) -> Conversion:
    """Write a ControlNet or T2I-Adapter in another layout.

    Args:
        held: keys of the file that it is in, which may hold more.
    """
    tensors = {name: tensor.to(dtype) for name, tensor in control.lazy_tensors().items()}
    if to == "folder":
        with whole_folder(target, overwrite=False) as folder:
            write_json(folder / CONFIG, control.config.to_dict())
            write_tensors(folder / f"{STEM}.safetensors", tensors, {"format": "pt"})
    else:
        keys = single_keys(target, control.config)
        write_tensors(target, {keys[name]: tensor for name, tensor in tensors.items()})
    used = set(control.keys.values())
    return Conversion(kept=(), left_out=tuple(key for key in held if key not in used), warnings=())


def _refuse_options_of_checkpoints(*given: object) -> None:
    if any(given):
        raise InvalidRequest(
            "a ControlNet or T2I-Adapter has no tokenizer, prediction type, variant or extras",
            hint="of a folder's variants name the file itself",
        )


def _from_single(entry: Entry, stored: LazyTensor) -> LazyTensor:
    return LazyTensor(stored.dtype, entry.shape, lambda: entry.from_single(stored.read()))


def _to_single(
    held: list[Entry], tensors: Mapping[str, Mapping[str, LazyTensor]], shape: tuple[int, ...]
) -> LazyTensor:
    parts = [(entry, tensors[entry.part][entry.name]) for entry in held]
    dtype = reduce(torch.promote_types, (tensor.dtype for _, tensor in parts))
    return LazyTensor(
        dtype, shape, lambda: torch.cat([entry.to_single(tensor.read()).to(dtype) for entry, tensor in parts])
    )


def _markers(model: _Model, family: Family) -> dict[str, LazyTensor]:
    """Empty tensors that tell other programs what a U-Net predicts; 2.x they tell by other means."""
    names = []
    if V_PREDICTION in model.extras or (family != "sd2" and model.metadata.get(PREDICTION) != "v"):
        names += [V_PREDICTION] if model.v_prediction else []
    if model.scheduler_config.get("rescale_betas_zero_snr"):
        names += [ZERO_SNR]
    empty = LazyTensor(torch.float32, (0,), lambda: torch.zeros(0))
    return {name: model.extras.get(name, empty) for name in names}


def _metadata(model: _Model, family: Family, target: Path) -> dict[str, str]:
    """ModelSpec's, without which nothing tells 2.x of 512 pixels from 2.x of 768."""
    given = {key: value for key, value in model.metadata.items() if key != "modelspec.predict_key"}
    size = {"sd2": "-768-v" if model.v_prediction else "-512"}.get(family, "")
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _ARCHITECTURES[family] + size,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": target.stem,
        **given,
        PREDICTION: "v" if model.v_prediction else "epsilon",
    }


def _check_told(
    model: _Model, target: Path, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]
) -> list[str]:
    """Read the file before it is written: a single file has no configs, and must tell of the same model.

    Raises:
        UnsupportedModel: it tells of another.
    """
    try:
        told = describe(target, _header(tensors, metadata))
    except InvalidCheckpoint as error:
        raise UnsupportedModel(f"as a single file this model could not be read: {error.message}") from error
    try:
        schedules = [SchedulerConfig.from_dict(each.scheduler_config) for each in (model, told)]
    except ValueError as error:
        raise UnsupportedModel(f"the scheduler's config cannot be read: {error}") from error
    ours = {**_facts(model), **{name: getattr(schedules[0], name) for name in _TRAINED_ON}}
    theirs = {**_facts(told), **{name: getattr(schedules[1], name) for name in _TRAINED_ON}}
    differences = [
        f"{name} {ours[name]} as {theirs.get(name)}" for name in ours if ours[name] != theirs.get(name)
    ]
    if differences:
        raise UnsupportedModel(
            f"a single file has no configs, and would be read as another model: {'; '.join(differences)}",
            hint="only the geometries that Stable Diffusion was published in can be told from a single file",
        )
    warnings = []
    if model.zero_negative != told.zero_negative:
        meaning = "zeros" if model.zero_negative else "an empty text"
        warnings.append(f"a single file cannot say that no negative prompt means {meaning} to this model")
    if any(config.vocab_size != CLIPTextConfig.vocab_size for config in model.text_configs.values()):
        warnings.append("its tokenizer is not CLIP's, and a single file holds none")
    return warnings


def _configs(model: _Model | SingleFile) -> dict[str, UNetConfig | VAEConfig | CLIPTextConfig]:
    return {"unet": model.unet_config, "vae": model.vae_config, **model.text_configs}


def _facts(model: _Model | SingleFile) -> dict[str, Any]:
    """Of the geometry, with one spelling of what has several, and without what is not part of a network."""
    unet = model.unet_config
    attends = [kind == "CrossAttnDownBlock2D" for kind in unet.down_block_types]
    attends[-1] = True  # the middle has the last level's depth
    spelled = {
        "unet attention_head_dim": unet.heads,
        "unet transformer_layers_per_block": [
            d for d, there in zip(unet.depths, attends, strict=True) if there
        ],
    }
    facts = {
        f"{part} {field.name}": getattr(config, field.name)
        for part, config in _configs(model).items()
        for field in fields(config)
        if field.name != "sample_size"
    }
    for part, config in model.text_configs.items():
        if not config.projection:
            del facts[f"{part} projection_dim"]
    return {**facts, **spelled}
