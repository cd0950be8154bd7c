"""ControlNets and T2I-Adapters, told from configs and headers: their geometry, and the models that they fit.

A folder in the diffusers layout has a config. A single file is in the layout of its authors (lllyasviel,
TencentARC) or has the hub's names, and has no config: the geometry is read off the shapes of its tensors.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

from limner.errors import InvalidCheckpoint, InvalidRequest, ModelNotFound, PickleRefused, UnsupportedModel
from limner.files import FileStamp, read_json
from limner.nn.control_config import ControlNetConfig, T2IAdapterConfig
from limner.nn.unet_config import UNetConfig
from limner.request import Control
from limner.request.networks import UsedControl

from .configs import read_config
from .contents import Shapes
from .geometry import bounded, compvis_encoder, count_of, head_counts, hub_encoder
from .headers import PICKLE_HINT, read_infos
from .layout import CONFIG, PICKLE_SUFFIXES, STEM
from .pipelines import weights_in
from .single import WITHOUT_COUNTERPART

ControlConfig = ControlNetConfig | T2IAdapterConfig

# Networks of other kinds with similar files, by the prefixes of their keys.
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
_POOLED = re.compile(r"_shuffle(?:_fp16)?$")  # in the file's name, as its content does not say it
_OTHER_NETWORKS = re.compile(r"(?:model\.diffusion_model|first_stage_model|cond_stage_model)\..+|logvar")
# Prefix in the first ControlNets, published in one file with the model that they were trained with.
WITH_MODEL = "control_model."


@dataclass(frozen=True)
class SingleControl:
    """What a single file of a control network is.

    Attributes:
        config: Geometry of the network.
        prefix: Prefix of its keys in the authors' layout; None for the hub's names.
    """

    config: ControlConfig
    prefix: str | None

    def is_unused(self, key: str) -> bool:
        """Whether a key that the network does not have may be left, as it is of the model beside it."""
        known = _OTHER_NETWORKS.fullmatch(key) or WITHOUT_COUNTERPART.fullmatch(key)
        return self.prefix == WITH_MODEL and known is not None


def read_single_control(path: Path, shapes: Shapes) -> SingleControl:
    """What a single file with these tensors is.

    Args:
        path: The file, which need not exist; its name tells whether a ControlNet's outputs are pooled.

    Raises:
        InvalidCheckpoint: The shapes describe no network.
        UnsupportedModel: Something of another kind.
    """
    refuse_others(path, shapes)
    try:
        return _described(path, shapes)
    except KeyError as error:
        raise InvalidCheckpoint(f"{path} has no tensor {error}, which every such network has") from None
    except (ValueError, ArithmeticError, LookupError, TypeError) as error:
        raise InvalidCheckpoint(f"the shapes in {path} describe no network: {error}") from error


def read_control_config(folder: Path) -> ControlConfig:
    """The geometry of a control network in a folder. Raises as `read_config`."""
    match read_json(folder / CONFIG).get("_class_name"):
        case ControlNetConfig.network:
            return read_config(folder / CONFIG, ControlNetConfig)
        case T2IAdapterConfig.network:
            return read_config(folder / CONFIG, T2IAdapterConfig)
        case other:
            known = f"{ControlNetConfig.network} or {T2IAdapterConfig.network}"
            raise UnsupportedModel(f"{folder / CONFIG} describes a {other!r}, expected a {known}")


def control_weights(path: Path) -> Path:
    """The weights of the control network at a path: a folder with its config, or a file.

    Raises:
        ModelNotFound: There is nothing, or nothing with weights.
        UnsupportedModel: An InstantID, by its name.
    """
    if _INSTANT_ID.search(f"{path.absolute().parent.name}/{path.name}"):
        raise UnsupportedModel(f"{path} is an InstantID by its name, which uses a face in place of a text")
    if path.is_dir():
        pickle = path / f"{STEM}.bin"  # which may be read, as its code is not run
        try:
            return path / weights_in(path, STEM)
        except PickleRefused:
            if not pickle.is_file():
                raise
            return pickle
    if not path.is_file():
        raise ModelNotFound(f"there is no ControlNet or T2I-Adapter {path}")
    return path


def has_config(path: Path) -> bool:
    """Whether the file of a control network is out of a folder with its config."""
    return path.name.startswith(STEM) and (path.parent / CONFIG).is_file()


def describe_control(path: Path) -> tuple[ControlConfig, int]:
    """The geometry and the number of weights of a control network, from its config or header alone.

    Args:
        path: A folder or file.

    Raises:
        ModelNotFound, InvalidCheckpoint, UnsupportedModel: As `read_control` of `limner.weights`.
        PickleRefused: A pickle, whose network is known only once it is opened.
    """
    try:
        weights = control_weights(path)
        if weights.suffix.lower() in PICKLE_SUFFIXES:
            raise PickleRefused(
                f"{weights} is a pickle: what network it holds is known when it is opened", hint=PICKLE_HINT
            )
        infos = read_infos(weights)
    except OSError as error:
        raise InvalidCheckpoint(f"{path} cannot be read: {error.strerror}") from error
    shapes = {key: info.shape for key, info in infos.items()}
    if path.is_dir() or has_config(path):
        refuse_others(path, shapes)
        return read_control_config(weights.parent), sum(map(prod, shapes.values()))
    single = read_single_control(path, shapes)
    return single.config, sum(prod(shape) for key, shape in shapes.items() if not single.is_unused(key))


def use_control(
    stamp: FileStamp, config: ControlConfig, parameters: int, unet: UNetConfig, downscale: int
) -> UsedControl:
    """A control network for a model.

    Args:
        stamp: Of its folder or file, from before it was read.
        downscale: Number of pixels per latent along each side.

    Raises:
        InvalidRequest: It is for another family of models.
        UnsupportedModel: It reads something else than images in colour or gray.
    """
    if misfit := control_misfit(config, unet, downscale):
        raise InvalidRequest(
            f"{stamp.path} is not for this model: {misfit}",
            hint="name a network that was made for this family of models",
            fields=("controls",),
        )
    residuals, pooled = 0, False
    if isinstance(config, ControlNetConfig):
        residuals, pooled = len(config.skip_channels) + 1, config.global_pool_conditions
        channels = config.conditioning_channels
    else:
        channels = config.in_channels
    if channels not in (1, 3):
        raise UnsupportedModel(
            f"{stamp.path} reads images of {channels} channels, expected 3, or 1 for grayscale"
        )
    return UsedControl(stamp, residuals, pooled, channels, parameters)


def check_mode(control: Control, network: UsedControl) -> None:
    """Raise InvalidRequest for a mode that a control's network does not have."""
    if control.mode != "balanced" and not network.residuals:
        raise InvalidRequest(
            f"{control.model} is a T2I-Adapter, and the mode {control.mode} is for ControlNets",
            hint="leave the mode out",
            fields=("controls",),
        )


def control_misfit(config: ControlConfig, unet: UNetConfig, downscale: int) -> str | None:
    """The reason why a network does not fit a U-Net, as a clause; None if it fits.

    Args:
        downscale: Number of pixels per latent along each side.
    """
    differences = [
        f"its {what} is {given}, the model's {expected}"
        for what, given, expected in _facts(config, unet, downscale)
        if given != expected
    ]
    return "; ".join(differences) or None


def refuse_others(path: Path, shapes: Mapping[str, object]) -> None:
    """Raise UnsupportedModel for a file of another kind, told by its keys."""
    for key in shapes:
        for beginning, kind in _OTHERS.items():
            if key.startswith(beginning):
                raise UnsupportedModel(f"{path} is {kind}, which is not supported here ({ascii(key)[:80]})")


def _described(path: Path, shapes: Shapes) -> SingleControl:
    """The network whose tensors have these shapes, in any of the known layouts."""
    if "controlnet_cond_embedding.conv_in.weight" in shapes:
        embedding = "controlnet_cond_embedding."
        blocks = range(1, count_of(shapes, embedding + "blocks.{}.weight"), 2)
        layers = [f"{embedding}conv_in", *(f"{embedding}blocks.{index}" for index in blocks)]
        return SingleControl(_controlnet(path, shapes, hub_encoder(shapes), layers), None)
    for prefix in (WITH_MODEL, ""):
        if f"{prefix}input_hint_block.0.weight" in shapes:
            layers = [f"{prefix}input_hint_block.{index}" for index in range(0, 14, 4)]
            config = _controlnet(path, shapes, compvis_encoder(shapes, prefix), layers)
            return SingleControl(config, prefix)
    if "adapter.body.0.resnets.0.block1.weight" in shapes:
        return SingleControl(_adapter(shapes, "adapter.", blocks="resnets"), None)
    for prefix in ("", "adapter."):
        if {f"{prefix}body.0.block1.weight", f"{prefix}body.0.body.0.block1.weight"} & shapes.keys():
            return SingleControl(_adapter(shapes, prefix, blocks="body"), prefix)
    raise UnsupportedModel(
        f"{path} is no ControlNet or T2I-Adapter for Stable Diffusion 1.x, 2.x or XL",
        hint="models, LoRAs and embeddings have options of their own",
    )


def _controlnet(path: Path, shapes: Shapes, shared: dict[str, Any], layers: list[str]) -> ControlNetConfig:
    """The geometry of a ControlNet.

    Args:
        shared: Fields that it has in common with a U-Net.
        layers: The convolutions that reduce the control image to the size of the latents.
    """
    return ControlNetConfig(
        **shared,
        attention_head_dim=head_counts(shared),
        addition_time_embed_dim=256 if shared["addition_embed_type"] else None,
        conditioning_channels=shapes[f"{layers[0]}.weight"][1],
        conditioning_embedding_out_channels=tuple(shapes[f"{layer}.weight"][0] for layer in layers),
        global_pool_conditions=_POOLED.search(path.stem) is not None,
    )


def _adapter(shapes: Shapes, prefix: str, *, blocks: str) -> T2IAdapterConfig:
    """The geometry of a T2I-Adapter.

    Args:
        blocks: Name of the residual blocks of a level: "resnets" or "body". In the authors' files of full
            adapters the blocks of all levels are in one list; all published ones have four levels.
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
    # Pixel unshuffle turns squares of 16 x 16 pixels (XL) or 8 x 8, with one colour channel or three, into
    # channels.
    xl = first[1] in (16**2, 3 * 16**2)
    factor = 16 if xl else 8
    return T2IAdapterConfig(
        in_channels=first[1] // factor**2,
        channels=tuple(widths),
        num_res_blocks=inner,
        downscale_factor=factor,
        adapter_type="full_adapter_xl" if xl else "full_adapter",
    )


def _facts(config: ControlConfig, unet: UNetConfig, downscale: int) -> list[tuple[str, object, object]]:
    """Properties that must agree: name, value of the network, value that fits the U-Net."""
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
        # The feature of a level without attention is added after its downsampler; the last level has none.
        (channels, downscale * 2 ** (i + (kind == "DownBlock2D" and i < len(levels) - 1)))
        for i, (channels, kind) in enumerate(levels)
    ]
    if len(given) == len(expected) + 1:
        expected.append(expected[-1])  # of the middle
    return [("channels and pixels of the features", given, expected)]
