"""A Stable Diffusion checkpoint: a folder in the diffusers layout, or a single file.

A folder has a `model_index.json` and one folder per component, each with its config and its weights. Reading
one parses and checks every JSON file, and finds the weights without opening them. Of a single file the header
alone is read.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from limner.errors import InvalidCheckpoint, ModelNotFound, PickleRefused, UnsupportedModel
from limner.nn.clip import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel
from limner.nn.controlnet import ControlNetConfig
from limner.nn.t2i_adapter import T2IAdapterConfig
from limner.nn.unet import EncoderConfig, UNet2DConditionModel, UNetConfig
from limner.nn.vae import AutoencoderKL, VAEConfig

from .files import read_json
from .hashes import file_hash
from .load import Names, image_encoder_name, load_module, text_encoder_name, unet_name, vae_name
from .single import Prediction, SingleFile, read_single_file, read_vae_file
from .tensors import PICKLE_HINT, files_of, open_tensors, read_infos

Family = Literal["sd1", "sd2", "xl", "xl_refiner", "custom"]
Kind = Literal["text", "inpainting", "edit", "depth"]

MODEL_INDEX = "model_index.json"
CARD = "limner.json"  # what Limner knows of a model beyond what diffusers does
# Component -> the stem of its weight files, as diffusers and transformers name them.
WEIGHT_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
_NAMES: Mapping[str, Names] = {
    "unet": unet_name,
    "vae": vae_name,
    "text_encoder": text_encoder_name,
    "text_encoder_2": text_encoder_name,
}
TOKENIZER_OF = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

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

K = TypeVar("K", UNetConfig, VAEConfig, CLIPTextConfig, CLIPVisionConfig, ControlNetConfig, T2IAdapterConfig)
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class ModelIndex:
    """What a `model_index.json` says.

    Attributes:
        parts: the components with weights: "unet", "vae", and "text_encoder", "text_encoder_2" or both.
        zero_negative: no negative prompt means an embedding of zeros, not that of an empty text.
        controlled: there are ControlNets too, which are no part of a model: requests name those they want.
    """

    parts: tuple[str, ...]
    zero_negative: bool = False
    controlled: bool = False

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Those of the parts that read texts."""
        return tuple(part for part in self.parts if part in TOKENIZER_OF)


@dataclass(frozen=True)
class Checkpoint:
    """A checked folder or file.

    Attributes:
        folder: with `model_index.json`; or the single file.
        text_configs: text encoder ("text_encoder", "text_encoder_2") -> its geometry. Where there are two,
            the U-Net sees the hidden states of the first beside those of the second.
        scheduler_config: `scheduler/scheduler_config.json` as it stands.
        tokenizers: text encoder -> the folder of its tokenizer's files.
        weights: component -> safetensors file, or index of its shards.
        zero_negative, controlled: as in `ModelIndex`.
        single: what a single file says, if it is one.
        vae_file: a file of its own with another autoencoder.
        warnings: what the caller should know about the choice of files.
        held: component -> tensors in memory that take the place of its file's, by the network's names.
    """

    folder: Path
    unet_config: UNetConfig
    vae_config: VAEConfig
    text_configs: Mapping[str, CLIPTextConfig]
    scheduler_config: Mapping[str, Any]
    tokenizers: Mapping[str, Path]
    weights: Mapping[str, Path]
    zero_negative: bool = False
    controlled: bool = False
    single: SingleFile | None = None
    vae_file: Path | None = None
    warnings: tuple[str, ...] = ()
    held: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def family(self) -> Family:
        """SD 1.x and 2.x differ in their text encoders; "custom" is any other geometry."""
        if self.sizes:
            return "xl" if self.sizes == 6 else "xl_refiner"
        families: dict[int, Family] = {768: "sd1", 1024: "sd2"}
        return families.get(self.unet_config.cross_attention_dim, "custom")

    @property
    def kind(self) -> Kind:
        """What the U-Net is given beside the noisy latents: nothing, a mask and the masked picture, a picture
        to edit, or a depth map."""
        latent = self.vae_config.latent_channels
        kinds: dict[int, Kind] = {0: "text", latent + 1: "inpainting", latent: "edit", 1: "depth"}
        return kinds[self.unet_config.in_channels - latent]

    @property
    def pooled_channels(self) -> int:
        """Width of the pooled text embedding that the U-Net is given; 0 for none."""
        if self.unet_config.addition_embed_type is None:
            return 0
        last = list(self.text_configs.values())[-1]
        return last.projection_dim if last.projection else last.hidden_size

    @property
    def sizes(self) -> int:
        """How many sizes the U-Net is told: 6, 5 (the refiner of XL) or 0."""
        unet = self.unet_config
        if unet.addition_embed_type is None:
            return 0
        rest = (unet.projection_class_embeddings_input_dim or 0) - self.pooled_channels
        return rest // (unet.addition_time_embed_dim or 1)

    def tensors(self, part: str) -> dict[str, Tensor]:
        """A component's tensors, mapped, by the names that its network has for them."""
        if part in self.held:
            return dict(self.held[part])
        if part == "vae" and self.vae_file is not None:
            return read_vae_file(self.vae_file, self.vae_config)
        if self.single is not None:
            return self.single.tensors(part)
        names = _NAMES[part]
        named = {names(key): tensor for key, tensor in open_tensors(self.weights[part]).items()}
        return {name: tensor for name, tensor in named.items() if name is not None}

    @property
    def parameters(self) -> int:
        """Number of weights in all components, from the headers."""
        return sum(self.parameters_by_part.values())

    @cached_property
    def parameters_by_part(self) -> dict[str, int]:
        """Number of weights of each component."""
        if self.single is not None:
            return {part: sum(t.numel() for t in self.tensors(part).values()) for part in self.weights}
        return {
            part: sum(t.numel() for t in self.held[part].values())
            if part in self.held
            else sum(info.elements for info in read_infos(path).values())
            for part, path in self.weights.items()
        }

    @property
    def size(self) -> int:
        """Bytes of the weight files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files, each once."""
        others = () if self.vae_file is None else (self.vae_file,)
        own = (path for part, path in self.weights.items() if part != "vae" or not others)
        return tuple(dict.fromkeys([*(file for path in own for file in files_of(path)), *others]))

    def pad_token(self, part: str) -> str | None:
        """What the texts of an encoder are padded with, if its tokenizer's files do not say.

        OpenCLIP, which 2.x and the second encoder of XL come from, pads with 0: "!".
        """
        text = self.text_configs[part]
        return "!" if self.single is not None and text.hidden_act == "gelu" else None


def read_checkpoint(
    folder: Path,
    variant: str | None = None,
    *,
    tokenizer: Path | None = None,
    prediction_type: Prediction | None = None,
    vae_file: Path | None = None,
) -> Checkpoint:
    """Read the configs of a checkpoint and find its weights.

    Args:
        folder: holds `model_index.json`; or a single file.
        variant: of the weight files, such as "fp16" (`model.fp16.safetensors`); None is the plain files.
        tokenizer: the files of CLIP's tokenizer, for a single file, which holds none.
        prediction_type: what the U-Net predicts, whatever the files say.
        vae_file: an autoencoder in a file of its own, to take the place of the checkpoint's.

    Raises:
        ModelNotFound: there are weights, but not of this variant.
        PickleRefused: the only weights are pickles.
        InvalidCheckpoint: a file is missing or malformed, or two configs contradict each other.
        UnsupportedModel: a pipeline or component that Limner cannot run.
    """
    try:
        if folder.is_file():
            assert tokenizer is not None
            checkpoint = _of_single_file(read_single_file(folder, prediction_type=prediction_type), tokenizer)
        else:
            checkpoint = _read_folder(folder, variant)
    except OSError as error:
        raise InvalidCheckpoint(f"{folder} cannot be read: {error.strerror}") from error
    if prediction_type is not None:
        config = {**checkpoint.scheduler_config, "prediction_type": prediction_type}
        checkpoint = replace(checkpoint, scheduler_config=config)
    if vae_file is not None:
        read_vae_file(vae_file, checkpoint.vae_config)
        checkpoint = replace(checkpoint, vae_file=vae_file)
    _check_together(checkpoint)
    return checkpoint


def load_unet(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> UNet2DConditionModel:
    """The U-Net with its weights, in `dtype` or as stored. Raises as `load_module`."""
    return _load(checkpoint, "unet", checkpoint.unet_config, UNet2DConditionModel, dtype)


def load_vae(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> AutoencoderKL:
    """The autoencoder with its weights, in `dtype` or as stored. Raises as `load_module`."""
    return _load(checkpoint, "vae", checkpoint.vae_config, AutoencoderKL, dtype)


def load_text_encoder(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None, part: str = "text_encoder"
) -> CLIPTextModel:
    """A text encoder with its weights, in `dtype` or as stored. Raises as `load_module`."""
    return _load(checkpoint, part, checkpoint.text_configs[part], CLIPTextModel, dtype)


def load_image_encoder(folder: Path, dtype: torch.dtype | None = None) -> CLIPVisionModel:
    """The image encoder in a folder as the hub has them, in `dtype` or as stored.

    Raises:
        InvalidCheckpoint, UnsupportedModel: as `read_config` and `load_module`.
    """
    described, path = folder / "config.json", folder / "model.safetensors"
    return _load_module(
        read_config(described, CLIPVisionConfig),
        CLIPVisionModel,
        open_tensors(path),
        path,
        names=image_encoder_name,
        dtype=dtype,
        described=described,
    )


def weights_hash(checkpoint: Checkpoint) -> str:
    """SHA-256, in hex, over the names and SHA-256 of the checkpoint's weight files; of a single file its own.

    Hashes of files are kept in the user's cache, by path, size and time of change, as reading gigabytes
    takes seconds.
    """
    if checkpoint.single is not None and checkpoint.vae_file is None:
        return file_hash(checkpoint.folder)  # as everybody else names it
    lines = []
    for file in checkpoint.files:
        own = file.is_relative_to(checkpoint.folder) and file != checkpoint.folder
        name = file.relative_to(checkpoint.folder).as_posix() if own else file.name
        lines.append(f"{name} {file_hash(file)}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def read_model_index(path: Path) -> ModelIndex:
    """Read a `model_index.json`, which must describe a Stable Diffusion pipeline that Limner can run.

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
        if name in _NOT_LOADED:
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
    for name in sorted(needed - given.keys()):
        raise InvalidCheckpoint(f"{path} names no {name!r}, which a {pipeline} needs")
    return ModelIndex(
        tuple(part for part in WEIGHT_STEMS if part in given),
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


def _read_folder(folder: Path, variant: str | None) -> Checkpoint:
    if not (folder / MODEL_INDEX).is_file():
        raise _no_checkpoint(folder)
    index = read_model_index(folder / MODEL_INDEX)
    weights, warnings = choose_weights(_weight_files(folder), index.parts, variant, source=str(folder))
    return Checkpoint(
        folder=folder,
        unet_config=read_config(folder / "unet" / "config.json", UNetConfig),
        vae_config=read_config(folder / "vae" / "config.json", VAEConfig),
        text_configs={
            part: read_config(folder / part / "config.json", CLIPTextConfig) for part in index.text_encoders
        },
        scheduler_config=read_json(folder / "scheduler" / "scheduler_config.json"),
        tokenizers={part: folder / TOKENIZER_OF[part] for part in index.text_encoders},
        weights={part: folder / file for part, file in weights.items()},
        zero_negative=index.zero_negative,
        controlled=index.controlled,
        warnings=warnings,
    )


def _of_single_file(single: SingleFile, tokenizer: Path) -> Checkpoint:
    return Checkpoint(
        folder=single.path,
        unet_config=single.unet_config,
        vae_config=single.vae_config,
        text_configs=single.text_configs,
        scheduler_config=single.scheduler_config,
        tokenizers=dict.fromkeys(single.text_configs, tokenizer),
        weights=dict.fromkeys(single.parts, single.path),
        zero_negative=single.zero_negative,
        single=single,
        warnings=single.warnings,
    )


def weight_variants(files: Collection[str], stem: str) -> dict[str | None, str]:
    """Variant -> weight file or index among files, of a stem; None stands for the plain one."""
    pattern = re.compile(
        rf"{stem}(?:\.(?P<file>[\w-]+))?\.safetensors|{stem}\.safetensors\.index(?:\.(?P<index>[\w-]+))?\.json"
    )
    found: dict[str | None, str] = {}
    for file in sorted(files):  # the index of a sharded file sorts after the file itself, which wins
        match = pattern.fullmatch(file)
        if match and not re.search(r"-\d+-of-\d+", file):
            found.setdefault(match["file"] or match["index"], file)
    return found


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


def read_config(path: Path, config: type[K]) -> K:
    """A network's geometry from its `config.json`.

    Raises:
        InvalidCheckpoint: the file is missing or malformed.
        UnsupportedModel: it asks for what the network cannot stand for.
    """
    values = read_json(path)
    try:
        read = config.from_dict(values)
        for field in fields(read):
            value = getattr(read, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                is_number = isinstance(number, (int, float)) and not isinstance(field.default, bool)
                if is_number and not 0 < number < 2**31:
                    raise TypeError(f"{field.name} is {value}, expected a positive number")
        return read
    except ValueError as error:
        raise UnsupportedModel(f"{path}: {error}") from error
    except (TypeError, ArithmeticError, LookupError, AttributeError) as error:
        raise InvalidCheckpoint(f"{path} holds a value that no network has: {error}") from error


def _check_together(checkpoint: Checkpoint) -> None:
    folder, unet, vae = checkpoint.folder, checkpoint.unet_config, checkpoint.vae_config
    latent = vae.latent_channels
    texts = checkpoint.text_configs.values()
    for what, given, expected in (
        ("U-Net out_channels and VAE latent_channels", unet.out_channels, latent),
        (
            "U-Net cross_attention_dim and the text encoders' hidden_size",
            unet.cross_attention_dim,
            sum(text.hidden_size for text in texts),
        ),
    ):
        if given != expected:
            raise InvalidCheckpoint(f"{folder}: {what} must agree, but are {given} and {expected}")
    if unet.in_channels - latent not in (0, 1, latent, latent + 1):
        raise UnsupportedModel(
            f"{folder}: the U-Net takes {unet.in_channels} channels, a latent has {latent}",
            hint=f"expected {latent}, {latent + 1} (depth), {2 * latent} (editing) or {2 * latent + 1} "
            "(inpainting)",
        )
    if unet.addition_embed_type is not None:
        joint, one = unet.projection_class_embeddings_input_dim or 0, unet.addition_time_embed_dim or 0
        pooled = checkpoint.pooled_channels
        if one <= 0 or joint not in (pooled + 5 * one, pooled + 6 * one):
            raise InvalidCheckpoint(
                f"{folder}: the U-Net takes {joint} numbers beside the timestep, expected those of the "
                f"pooled text, {pooled}, and 5 or 6 times addition_time_embed_dim, {one}"
            )
    elif len(texts) > 1:
        raise UnsupportedModel(f"{folder} has two text encoders, but not the U-Net of XL")
    for tokenizer in checkpoint.tokenizers.values():
        if not (tokenizer / "tokenizer.json").is_file():
            for name in ("vocab.json", "merges.txt"):
                if not (tokenizer / name).is_file():
                    there = "expected tokenizer.json, or vocab.json and merges.txt"
                    raise InvalidCheckpoint(f"{tokenizer / name} is missing: {there}")


def _load(
    checkpoint: Checkpoint,
    part: str,
    config: K,
    network: Callable[[K], M],
    dtype: torch.dtype | None,
) -> M:
    path, names = checkpoint.weights[part], _NAMES[part]
    own_names = checkpoint.single is not None or (part == "vae" and checkpoint.vae_file is not None)
    if own_names or part in checkpoint.held:
        tensors, names = checkpoint.tensors(part), unet_name
    else:
        tensors = open_tensors(path)
    described = checkpoint.folder / part / "config.json"
    return _load_module(config, network, tensors, path, names=names, dtype=dtype, described=described)


def _load_module(
    config: K,
    network: Callable[[K], M],
    tensors: Mapping[str, Tensor],
    path: Path,
    *,
    names: Names,
    dtype: torch.dtype | None,
    described: Path,
) -> M:
    """As `load_module`, for a config that nobody vouches for."""
    try:
        # Modules cost time even on the meta device, so a config may not ask for millions of them.
        if block_count(config) > max(1000, len(tensors)):
            raise ValueError(f"{block_count(config)} blocks, but {path.name} holds {len(tensors)} tensors")
        return load_module(lambda: network(config), tensors, source=path, names=names, dtype=dtype)
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        reason = str(error).partition("\n")[0]  # torch adds its own stack trace
        raise InvalidCheckpoint(f"{described} describes no network of this file: {reason}") from error


def block_count(
    config: EncoderConfig | VAEConfig | CLIPTextConfig | CLIPVisionConfig | T2IAdapterConfig,
) -> int:
    """How many blocks a network is built of, roughly."""
    if isinstance(config, CLIPTextConfig | CLIPVisionConfig):
        return config.num_hidden_layers
    if isinstance(config, T2IAdapterConfig):
        return len(config.channels) * config.num_res_blocks
    depth = max(config.depths) if isinstance(config, EncoderConfig) else 1
    return len(config.block_out_channels) * config.layers_per_block * depth
