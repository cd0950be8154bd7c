"""ControlNets and T2I-Adapters: folders in the diffusers layout, and single files.

A single file is in the layout of its authors (lllyasviel, TencentARC) or has the hub's names, and has no
config: the geometry is read off the shapes of its tensors. Only headers are read until it is loaded.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch

from limner.errors import InvalidCheckpoint, ModelNotFound, UnsupportedModel
from limner.nn.controlnet import ControlNetConfig, ControlNetModel
from limner.nn.t2i_adapter import T2IAdapter, T2IAdapterConfig
from limner.nn.unet import UNetConfig

from .checkpoint import block_count, read_config, weight_variants
from .files import read_json
from .geometry import bounded, compvis_encoder, count_of, heads_of, hub_encoder
from .keymaps import Shapes, controlnet_entries, parameter_shapes, t2i_adapter_entries
from .load import describe, load_module, refuse_unless_fitting
from .pickles import read_pickle
from .single import WITHOUT_COUNTERPART
from .tensors import LazyTensor, files_of, lazy_tensors, open_tensors

Config = ControlNetConfig | T2IAdapterConfig

CONFIG, STEM = "config.json", "diffusion_pytorch_model"

# What else goes by such names, told by the beginnings of keys.
_OTHERS = {
    "lora_controlnet": "a Control-LoRA",
    "lllite_": "a ControlNet-LLLite",
    "task_embedding": "a ControlNet or adapter of several kinds in one (union)",
    "control_add_embedding.": "a ControlNet of several kinds in one (union)",
    "image_proj": "an IP-Adapter",
    "ip_adapter": "an IP-Adapter",
    "style_embedding": "a style adapter of T2I-Adapter",
    "difference": "the difference between a ControlNet and a model",
    "controlnet_x_embedder.": "a ControlNet for a diffusion transformer",
    "controlnet_blocks.": "a ControlNet for a diffusion transformer",
    "lora_unet_": "a LoRA",
    "unet.": "a LoRA",
}
_INSTANT_ID = re.compile(r"instant[_-]?id", re.IGNORECASE)
_POOLED = re.compile(r"_shuffle(?:_fp16)?$")  # in a name, as nothing within the file says it
_OTHER_NETWORKS = re.compile(r"(?:model\.diffusion_model|first_stage_model|cond_stage_model)\..+|logvar")
# A tensor that tells the layouts of `_described` from all else.
_FIRST = re.compile(
    r"controlnet_cond_embedding\.conv_in\.weight|(?:control_model\.)?input_hint_block\.0\.weight"
    r"|(?:adapter\.)?body\.0\.(?:(?:resnets|body)\.0\.)?block1\.weight"
)


@dataclass(frozen=True)
class ControlFile:
    """A checked ControlNet or T2I-Adapter.

    Attributes:
        path: the folder or file.
        weights: the file with the weights, or the index of its shards.
        keys: hub's parameter -> key in `weights`.
        parameters: how many numbers the weights are.
    """

    path: Path
    weights: Path
    config: Config
    keys: Mapping[str, str]
    parameters: int

    @property
    def kind(self) -> Literal["controlnet", "t2i_adapter"]:
        return "controlnet" if isinstance(self.config, ControlNetConfig) else "t2i_adapter"

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files."""
        return files_of(self.weights)

    def load(self, dtype: torch.dtype | None = None) -> ControlNetModel | T2IAdapter:
        """The network with its weights, in `dtype` or as stored. Raises as `load_module`."""
        if _is_pickle(self.weights):
            tensors = {name: lazy.read() for name, lazy in self.lazy_tensors().items()}
        else:
            mapped = open_tensors(self.weights)
            tensors = {name: mapped[key] for name, key in self.keys.items()}
        return load_module(_network(self.config), tensors, source=self.weights, dtype=dtype)

    def lazy_tensors(self) -> dict[str, LazyTensor]:
        """Hub's parameter -> tensor, of which nothing is read yet."""
        stored = _stored(self.weights)
        return {name: stored[key] for name, key in self.keys.items()}

    def misfit(self, unet: UNetConfig, downscale: int) -> str | None:
        """Why it is not for a U-Net, in a clause; None if it is.

        Args:
            downscale: how many pixels there are to one of its latents, along each side.
        """
        differences = [
            f"its {what} is {given}, the model's {expected}"
            for what, given, expected in _facts(self.config, unet, downscale)
            if given != expected
        ]
        return "; ".join(differences) or None


def read_control(path: Path) -> ControlFile:
    """Read what a ControlNet or T2I-Adapter is; cost does not depend on its size.

    Args:
        path: a folder with `config.json` and weights, of which the plain ones are preferred to a variant; or
            a file: one out of such a folder, or a single file (.safetensors, or a pickle, of which nothing is
            run).

    Raises:
        ModelNotFound: there is nothing, or nothing with weights.
        InvalidCheckpoint: broken, or tensors are missing, unexpected or of another shape; they are named.
        UnsupportedModel: something of another kind, by its name.
        PickleRefused: a pickle of something else than tensors.
    """
    if _INSTANT_ID.search(f"{path.absolute().parent.name}/{path.name}"):
        raise UnsupportedModel(f"{path} is an InstantID by its name, which takes faces in place of texts")
    try:
        if path.is_dir():
            return _read_folder(path, path, path / _weights_in(path))
        if not path.is_file():
            raise ModelNotFound(f"there is no ControlNet or T2I-Adapter {path}")
        if path.name.startswith(STEM) and (path.parent / CONFIG).is_file():
            return _read_folder(path, path.parent, path)
        return _read_file(path)
    except OSError as error:
        raise InvalidCheckpoint(f"{path} cannot be read: {error.strerror}") from error


def is_control(keys: Collection[str]) -> bool:
    """Whether a file with these keys is to be read by `read_control`."""
    return any(_FIRST.fullmatch(key) for key in keys)


def single_keys(path: Path, config: Config) -> dict[str, str]:
    """Hub's parameter -> key in a single file: the authors' own, but the hub's for XL, as the field has it.

    Args:
        path: of the file that is to be.

    Raises:
        UnsupportedModel: a single file has no config, and would be read as another network.
    """
    if isinstance(config, T2IAdapterConfig):
        entries = t2i_adapter_entries(config)
    else:
        entries = controlnet_entries(config)
        if config.addition_embed_type is not None:
            entries = [replace(entry, single=entry.name) for entry in entries]
    told, _ = _described(path, {entry.single: entry.shape for entry in entries})
    differing = [
        f"{field.name} {getattr(config, field.name)} as {getattr(told, field.name, None)}"
        for field in fields(config)
        if getattr(config, field.name) != getattr(told, field.name, None)
    ]
    if differing:
        raise UnsupportedModel(
            f"a single file has no config, and would be read as another network: {'; '.join(differing)}",
            hint="keep the folder; global_pool_conditions is told by a name that ends in _shuffle",
        )
    return {entry.name: entry.single for entry in entries}


def _weights_in(folder: Path) -> str:
    names = [file.name for file in folder.iterdir() if file.is_file()]
    if CONFIG not in names:
        raise ModelNotFound(
            f"{folder} has no {CONFIG}", hint="name a folder in the diffusers layout, or a file within it"
        )
    found = weight_variants(names, STEM)
    pickle = f"{STEM}.bin"
    if not found and pickle in names:
        return pickle
    if not found:
        raise ModelNotFound(f"{folder} has no weights: expected {STEM}.safetensors")
    return found.get(None) or next(iter(found.values()))


def _read_folder(path: Path, folder: Path, weights: Path) -> ControlFile:
    stored = _stored(weights)
    shapes = {key: tensor.shape for key, tensor in stored.items()}
    _refuse_others(path, shapes)
    config: Config
    match read_json(folder / CONFIG).get("_class_name"):
        case ControlNetConfig.network:
            config = read_config(folder / CONFIG, ControlNetConfig)
        case T2IAdapterConfig.network:
            config = read_config(folder / CONFIG, T2IAdapterConfig)
        case other:
            known = f"{ControlNetConfig.network} or {T2IAdapterConfig.network}"
            raise UnsupportedModel(f"{folder / CONFIG} describes a {other!r}, expected a {known}")
    # Modules cost time even on the meta device, so a config may not ask for millions of them.
    if block_count(config) > max(1000, len(stored)):
        raise InvalidCheckpoint(
            f"{folder / CONFIG} asks for {block_count(config)} blocks, but {weights.name} holds "
            f"{len(stored)} tensors"
        )
    try:
        expected = parameter_shapes(_network(config))
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        reason = str(error).partition("\n")[0]  # torch adds its own stack trace
        raise InvalidCheckpoint(f"{folder / CONFIG} describes no network: {reason}") from error
    named = {name: (name, shape) for name, shape in expected.items()}
    return _checked(path, weights, config, named, stored, model="its config.json")


def _read_file(path: Path) -> ControlFile:
    stored = _stored(path)
    shapes = {key: tensor.shape for key, tensor in stored.items()}
    _refuse_others(path, shapes)
    try:
        config, expected = _described(path, shapes)
    except KeyError as error:
        raise InvalidCheckpoint(f"{path} has no tensor {error}, which every such network has") from None
    except (ValueError, RuntimeError, ArithmeticError, LookupError, TypeError) as error:
        reason = str(error).partition("\n")[0]  # torch adds its own stack trace
        raise InvalidCheckpoint(f"the shapes in {path} describe no network: {reason}") from error
    return _checked(path, path, config, expected, stored, model="a network of these shapes")


Expected = Mapping[str, tuple[str, tuple[int, ...]]]
"""Hub's parameter -> key in the file, and shape."""


def _described(path: Path, shapes: Shapes) -> tuple[Config, Expected]:
    """By the names of the hub, or of the authors."""
    if "controlnet_cond_embedding.conv_in.weight" in shapes:
        embedding = "controlnet_cond_embedding."
        blocks = range(1, count_of(shapes, embedding + "blocks.{}.weight"), 2)
        layers = [f"{embedding}conv_in", *(f"{embedding}blocks.{index}" for index in blocks)]
        config: Config = _controlnet(path, shapes, hub_encoder(shapes), layers)
        return config, {n: (n, shape) for n, shape in parameter_shapes(_network(config)).items()}
    for prefix in ("control_model.", ""):
        if f"{prefix}input_hint_block.0.weight" in shapes:
            layers = [f"{prefix}input_hint_block.{index}" for index in range(0, 14, 4)]
            config = _controlnet(path, shapes, compvis_encoder(shapes, prefix), layers)
            return config, {e.name: (e.single, e.shape) for e in controlnet_entries(config, prefix)}
    if "adapter.body.0.resnets.0.block1.weight" in shapes:
        config = _adapter(shapes, "adapter.", blocks="resnets")
        return config, {n: (n, shape) for n, shape in parameter_shapes(_network(config)).items()}
    for prefix in ("", "adapter."):
        if {f"{prefix}body.0.block1.weight", f"{prefix}body.0.body.0.block1.weight"} & shapes.keys():
            config = _adapter(shapes, prefix, blocks="body")
            return config, {e.name: (e.single, e.shape) for e in t2i_adapter_entries(config, prefix)}
    raise UnsupportedModel(
        f"{path} is no ControlNet or T2I-Adapter for Stable Diffusion 1.x, 2.x or XL",
        hint="a model, a LoRA or an embedding is given in another place",
    )


def _controlnet(path: Path, shapes: Shapes, shared: dict[str, Any], layers: list[str]) -> ControlNetConfig:
    """Its geometry, by either names.

    Args:
        shared: fields that it has in common with a U-Net.
        layers: the modules that bring the picture to each of the sizes on the way to that of the latents.
    """
    widths = shared["block_out_channels"]
    return ControlNetConfig(
        **shared,
        # As published: 1.x has 8 heads, and its projections are convolutions.
        attention_head_dim=tuple(map(heads_of, widths)) if shared["use_linear_projection"] else 8,
        addition_time_embed_dim=256 if shared["addition_embed_type"] else None,
        conditioning_channels=shapes[f"{layers[0]}.weight"][1],
        conditioning_embedding_out_channels=tuple(shapes[f"{layer}.weight"][0] for layer in layers),
        global_pool_conditions=_POOLED.search(path.stem) is not None,
    )


def _adapter(shapes: Shapes, prefix: str, *, blocks: str) -> T2IAdapterConfig:
    """Its geometry, by either names.

    Args:
        blocks: what the residual blocks of a level are called; those of full ones by their authors are not
            apart by level, of which all that are published have four.
    """
    first = shapes.get(f"{prefix}conv_in.weight")
    if first is None:
        levels = bounded(count_of(shapes, prefix + "body.{}.out_conv.weight"))
        widths = [shapes[f"{prefix}body.{level}.out_conv.weight"][0] for level in range(levels)]
        channels = shapes[f"{prefix}body.0.in_conv.weight"][1]
        return T2IAdapterConfig(
            in_channels=channels // 8**2,
            channels=tuple(widths[:-1]),
            num_res_blocks=count_of(shapes, f"{prefix}body.0.{blocks}.{{}}.block1.weight"),
            adapter_type="light_adapter",
        )
    each = ".resnets.0" if blocks == "resnets" else ""
    bodies = bounded(count_of(shapes, f"{prefix}body.{{}}{each}.block1.weight"))
    inner = count_of(shapes, prefix + "body.0.resnets.{}.block1.weight") if each else bodies // 4
    step = 1 if each else inner
    widths = [shapes[f"{prefix}body.{index}{each}.block1.weight"][0] for index in range(0, bodies, step)]
    # Black and white or of three colours, in squares of 16 x 16 pixels for XL, else of 8 x 8.
    xl = first[1] in (16**2, 3 * 16**2)
    factor = 16 if xl else 8
    return T2IAdapterConfig(
        in_channels=first[1] // factor**2,
        channels=tuple(widths),
        num_res_blocks=inner,
        downscale_factor=factor,
        adapter_type="full_adapter_xl" if xl else "full_adapter",
    )


def _checked(
    path: Path,
    weights: Path,
    config: Config,
    expected: Expected,
    stored: Mapping[str, LazyTensor],
    *,
    model: str,
) -> ControlFile:
    places = dict(expected.values())
    # The first ControlNets were published with the model that they were trained beside.
    beside = any(key.startswith("control_model.") for key in places)

    def harmless(key: str) -> bool:
        return beside and bool(_OTHER_NETWORKS.fullmatch(key) or WITHOUT_COUNTERPART.fullmatch(key))

    refuse_unless_fitting(
        weights,
        {key: f"floating {list(shape)}" for key, shape in places.items()},
        {key: describe(tensor) for key, tensor in stored.items() if key in places},
        [key for key in stored if key not in places and not harmless(key)],
        model=model,
    )
    keys = {name: key for name, (key, _) in expected.items()}
    parameters = sum(torch.Size(shape).numel() for shape in places.values())
    return ControlFile(path, weights, config, keys, parameters)


def _network(config: Config) -> Callable[[], ControlNetModel | T2IAdapter]:
    if isinstance(config, ControlNetConfig):
        return partial(ControlNetModel, config)
    return partial(T2IAdapter, config)


def _is_pickle(path: Path) -> bool:
    return path.suffix not in (".safetensors", ".json")


def _stored(path: Path) -> Mapping[str, LazyTensor]:
    """What a file holds, of which nothing is read yet."""
    return read_pickle(path).model()[0] if _is_pickle(path) else lazy_tensors(path)


def _refuse_others(path: Path, shapes: Shapes) -> None:
    for key in shapes:
        for beginning, kind in _OTHERS.items():
            if key.startswith(beginning):
                raise UnsupportedModel(f"{path} is {kind}, which is not supported here ({ascii(key)[:80]})")


def _facts(config: Config, unet: UNetConfig, downscale: int) -> list[tuple[str, object, object]]:
    """What must agree: its name, and what it is for the network and for the U-Net."""
    if isinstance(config, ControlNetConfig):
        names = ("cross_attention_dim", "skip_channels", "projection_class_embeddings_input_dim")
        return [
            ("in_channels", config.in_channels, unet.out_channels),
            *((name, getattr(config, name), getattr(unet, name)) for name in names),
            ("number of pixels to a latent", config.downscale, downscale),
        ]
    halvings = accumulate(halved for _, _, halved in config.levels)
    given = [
        (channels, config.downscale_factor * 2**halved)
        for (_, channels, _), halved in zip(config.levels, halvings, strict=True)
    ]
    levels = list(zip(unet.block_out_channels, unet.down_block_types, strict=True))
    expected = [
        # Without attention it is behind the halving that its feature joins; the last level has none.
        (channels, downscale * 2 ** (i + (kind == "DownBlock2D" and i < len(levels) - 1)))
        for i, (channels, kind) in enumerate(levels)
    ]
    if len(given) == len(expected) + 1:
        expected.append(expected[-1])  # of the middle
    return [("channels and pixels of the features", given, expected)]
