"""Key maps between the hub's names and those of single files, generated from a network's config.

A single file holds all networks under the names of the code they were trained with: CompVis
(https://github.com/CompVis/latent-diffusion) and SGM (https://github.com/Stability-AI/generative-models) for
U-Net and autoencoder, transformers or OpenCLIP (https://github.com/mlfoundations/open_clip) for text. Hub
names and shapes come from the network itself; this module only maps module paths to the other layout. The
same maps are used for loading, export and adapters.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from limner.catalogue.contents import Shape
from limner.nn.clip import CLIPTextModel
from limner.nn.clip_config import CLIPTextConfig
from limner.nn.control_config import ControlNetConfig, T2IAdapterConfig
from limner.nn.controlnet import ControlNetModel
from limner.nn.t2i_adapter import T2IAdapter
from limner.nn.unet import UNet2DConditionModel
from limner.nn.unet_config import EncoderConfig, UNetConfig
from limner.nn.vae import AutoencoderKL
from limner.nn.vae_config import VAEConfig

from .load import build_on_meta
from .tensors import LazyTensor

# Module within a block on the hub -> in a single file.
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTER = {  # of the U-Net, and of a ControlNet
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_cond_embedding.conv_out": "input_hint_block.14",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPENCLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPENCLIP_OUTER = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_IN_PROJ = ("q_proj", "k_proj", "v_proj")  # in the order of their rows


@dataclass(frozen=True)
class Entry:
    """The place of a network's tensor in a single file.

    Attributes:
        single: Key in the single file.
        part: "unet", "vae", "text_encoder", "text_encoder_2", "controlnet" or "t2i_adapter".
        name, shape: Name and shape of the hub's parameter.
        rows: Rows of the single file's tensor, if that holds several of the hub's (OpenCLIP's queries, keys
            and values); None for all rows.
        transform: Conversion to the hub's tensor: "conv1x1" drops the kernel axes of a 1x1 convolution, whose
            weight is a linear layer's; "transpose".
    """

    single: str
    part: str
    name: str
    shape: Shape
    rows: tuple[int, int] | None = None
    transform: Literal["same", "conv1x1", "transpose"] = "same"

    @property
    def single_shape(self) -> Shape:
        """Shape of the single file's tensor, or of this entry's rows of it."""
        match self.transform:
            case "conv1x1":
                return (*self.shape, 1, 1)
            case "transpose":
                return self.shape[::-1]
        return self.shape

    def from_single(self, tensor: Tensor) -> Tensor:
        """Return the hub's tensor, a view of the single file's."""
        if self.rows:
            tensor = tensor[slice(*self.rows)]
        return tensor.t() if self.transform == "transpose" else tensor.view(self.shape)

    def lazy_from_single(self, stored: LazyTensor) -> LazyTensor:
        """Return the hub's tensor, to be read when needed."""
        return LazyTensor(stored.dtype, self.shape, lambda: self.from_single(stored.read()))

    def to_single(self, tensor: Tensor) -> Tensor:
        """Return the single file's tensor, or this entry's rows of it: a view of the hub's."""
        return tensor.t() if self.transform == "transpose" else tensor.reshape(self.single_shape)


def unet_entries(config: UNetConfig, prefix: str = "model.diffusion_model.") -> list[Entry]:
    """Return the entries of a U-Net under the names of CompVis and SGM."""
    shapes = parameter_shapes(lambda: UNet2DConditionModel(config))
    return [Entry(prefix + _renamed(name, config), "unet", name, shape) for name, shape in shapes.items()]


def unet_modules(config: UNetConfig) -> dict[str, str]:
    """Hub module -> single file's module, for every module of a U-Net that has weights; no prefix."""
    names = parameter_shapes(lambda: UNet2DConditionModel(config))
    return {(hub := name.rpartition(".")[0]): _unet_module(hub, config) for name in names}


def controlnet_entries(config: ControlNetConfig, prefix: str = "control_model.") -> list[Entry]:
    """Return the entries of a ControlNet under its authors' names (https://github.com/lllyasviel/ControlNet)."""
    shapes = parameter_shapes(lambda: ControlNetModel(config))
    return [
        Entry(prefix + _renamed(name, config), "controlnet", name, shape) for name, shape in shapes.items()
    ]


def t2i_adapter_entries(config: T2IAdapterConfig, prefix: str = "") -> list[Entry]:
    """Return the entries of a T2I-Adapter under its authors' names (https://github.com/TencentARC/T2I-Adapter)."""
    shapes = parameter_shapes(lambda: T2IAdapter(config))
    return [
        Entry(prefix + _adapter_name(name, config), "t2i_adapter", name, shape)
        for name, shape in shapes.items()
    ]


def vae_entries(config: VAEConfig, prefix: str = "first_stage_model.") -> list[Entry]:
    """Return the entries of an autoencoder under the names of CompVis and SGM."""
    levels = len(config.block_out_channels)
    entries = []
    for name, shape in parameter_shapes(lambda: AutoencoderKL(config)).items():
        module, _, kind = name.rpartition(".")
        # The linear layers, all in attention, are 1x1 convolutions in single files.
        squeezed = kind == "weight" and len(shape) == 2
        single = f"{prefix}{_vae_module(module, levels)}.{kind}"
        entries.append(Entry(single, "vae", name, shape, transform="conv1x1" if squeezed else "same"))
    return entries


def clip_entries(config: CLIPTextConfig, part: str, prefix: str) -> list[Entry]:
    """Return the entries of a text encoder under the names of transformers."""
    shapes = parameter_shapes(lambda: CLIPTextModel(config))
    return [Entry(prefix + name, part, name, shape) for name, shape in shapes.items()]


def openclip_entries(config: CLIPTextConfig, part: str, prefix: str) -> list[Entry]:
    """Return the entries of a text encoder under OpenCLIP's names, with joint queries, keys and values."""
    entries = []
    for name, shape in parameter_shapes(lambda: CLIPTextModel(config)).items():
        if name in _OPENCLIP_OUTER:
            transform: Literal["same", "transpose"] = "transpose" if "projection" in name else "same"
            entries.append(Entry(prefix + _OPENCLIP_OUTER[name], part, name, shape, transform=transform))
            continue
        _, _, _, layer, *path, kind = name.split(".")
        block, module = f"{prefix}transformer.resblocks.{layer}.", ".".join(path)
        if path[-1] in _IN_PROJ:
            first = _IN_PROJ.index(path[-1]) * shape[0]
            rows = (first, first + shape[0])
            entries.append(Entry(f"{block}attn.in_proj_{kind}", part, name, shape, rows))
        else:
            entries.append(Entry(f"{block}{_OPENCLIP_LAYER[module]}.{kind}", part, name, shape))
    return entries


def by_single(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Return key of the single file -> the entries in its tensor, in the order of their rows."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.single, []).append(entry)
    return {key: sorted(held, key=lambda entry: entry.rows or (0, 0)) for key, held in found.items()}


def single_shapes(entries: Iterable[Entry]) -> dict[str, Shape]:
    """Return the keys and shapes of a single file with exactly these entries."""
    shapes: dict[str, Shape] = {}
    for key, held in by_single(entries).items():
        rest = held[0].single_shape[1:]
        shapes[key] = (sum(entry.single_shape[0] for entry in held), *rest)
    return shapes


def parameter_shapes(build: Callable[[], torch.nn.Module]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in build_on_meta(build).state_dict().items()}


def _renamed(name: str, config: EncoderConfig) -> str:
    module, _, kind = name.rpartition(".")
    return f"{_unet_module(module, config)}.{kind}"


def _unet_module(name: str, config: EncoderConfig) -> str:
    """Return the single-file path of a U-Net's module.

    Single files number blocks through all levels: on the way down each level's residual blocks, then its
    downsampling; on the way up one more residual block per level, the last of which includes upsampling.
    """
    layers = config.layers_per_block
    match name.split("."):
        case ["down_blocks", level, "downsamplers", _, _]:
            return f"input_blocks.{(int(level) + 1) * (layers + 1)}.0.op"
        case ["down_blocks", level, kind, index, *path]:
            return f"input_blocks.{1 + int(level) * (layers + 1) + int(index)}.{_within(kind, path)}"
        case ["mid_block", "attentions", _, *path]:
            return f"middle_block.1.{'.'.join(path)}"
        case ["mid_block", "resnets", index, *path]:
            return f"middle_block.{2 * int(index)}.{_RESNET['.'.join(path)]}"
        case ["up_blocks", level, "upsamplers", _, _]:
            assert isinstance(config, UNetConfig)  # a ControlNet has no up blocks
            column = 2 if config.up_block_types[int(level)] == "CrossAttnUpBlock2D" else 1
            return f"output_blocks.{int(level) * (layers + 1) + layers}.{column}.conv"
        case ["up_blocks", level, kind, index, *path]:
            return f"output_blocks.{int(level) * (layers + 1) + int(index)}.{_within(kind, path)}"
        case ["controlnet_down_blocks", index]:
            return f"zero_convs.{index}.0"
        case ["controlnet_cond_embedding", "blocks", index]:
            return f"input_hint_block.{2 * (int(index) + 1)}"  # activations between them are numbered too
    return _OUTER[name]


def _adapter_name(name: str, config: T2IAdapterConfig) -> str:
    """Return the single-file name: full adapters number residual blocks, light ones levels."""
    light = config.adapter_type == "light_adapter"
    match name.removeprefix("adapter.").split("."):
        case ["body", level, "resnets", index, *path] if light:
            return f"body.{level}.body.{index}.{'.'.join(path)}"
        case ["body", level, "resnets", index, *path]:
            return f"body.{int(level) * config.num_res_blocks + int(index)}.{'.'.join(path)}"
        case ["body", level, *path] if not light:
            return f"body.{int(level) * config.num_res_blocks}.{'.'.join(path)}"
    return name.removeprefix("adapter.")


def _within(kind: str, path: list[str]) -> str:
    return f"1.{'.'.join(path)}" if kind == "attentions" else f"0.{_RESNET['.'.join(path)]}"


def _vae_module(name: str, levels: int) -> str:
    """Return the single-file path of an autoencoder's module.

    Single files number the decoder's levels from the image, in reverse.
    """
    match name.split("."):
        case [coder, "mid_block", "attentions", _, *path]:
            return f"{coder}.mid.attn_1.{_VAE_ATTENTION['.'.join(path)]}"
        case [coder, "mid_block", "resnets", index, layer]:
            return f"{coder}.mid.block_{int(index) + 1}.{layer}"
        case [coder, "down_blocks" | "up_blocks" as way, number, kind, index, layer]:
            level = int(number) if way == "down_blocks" else levels - 1 - int(number)
            side = f"{coder}.{way.removesuffix('_blocks')}.{level}"
            if kind == "resnets":
                return f"{side}.block.{index}.{layer.replace('conv_shortcut', 'nin_shortcut')}"
            return f"{side}.{kind.removesuffix('rs')}.{layer}"  # "downsamplers" -> "downsample"
        case [coder, "conv_norm_out"]:
            return f"{coder}.norm_out"
    return name
