"""Files of IP-Adapters (Ye et al. 2023), and of the image encoders that they were trained with.

An adapter is a safetensors file or a pickle of tensors, `image_proj.*` and `ip_adapter.*`. Its form is told
by their names and its geometry by their shapes; then it is read whole or refused. An encoder is a folder as
the hub has them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from limner.errors import InvalidCheckpoint, UnsupportedModel
from limner.nn.clip import CLIPVisionConfig, CLIPVisionModel
from limner.nn.ip_adapter import HEAD, IPAdapter, IPAdapterConfig, attended_layers
from limner.nn.unet import UNetConfig
from limner.weights.checkpoint import load_image_encoder, read_config
from limner.weights.load import build_on_meta, describe, load_module, refuse_unless_fitting
from limner.weights.pickles import read_pickle
from limner.weights.tensors import LazyTensor, open_tensors, read_infos

_FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


@dataclass(frozen=True, eq=False)
class IPAdapterFile:
    """A file that was checked, and whose tensors are mapped or not read yet."""

    path: Path
    config: IPAdapterConfig
    tensors: Mapping[str, Tensor | LazyTensor]

    @cached_property
    def parameters(self) -> int:
        """How many numbers the weights are."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def load(self) -> IPAdapter:
        """The network with its weights, as they are stored."""
        read = {name: t.read() if isinstance(t, LazyTensor) else t for name, t in self.tensors.items()}
        return load_module(lambda: IPAdapter(self.config), read, source=self.path)


@dataclass(frozen=True, eq=False)
class ImageEncoderFile:
    """The weights of an image encoder, which are not read or even fetched yet, and its geometry."""

    path: Path
    config: CLIPVisionConfig

    @cached_property
    def parameters(self) -> int:
        """How many numbers the weights are, by the header. Raises as `read_infos`."""
        return sum(info.elements for info in read_infos(self.path).values())

    def load(self) -> CLIPVisionModel:
        """The network with its weights, as they are stored. Raises as `load_image_encoder`."""
        return load_image_encoder(self.path.parent)

    def fits(self, adapter: IPAdapterConfig) -> bool:
        """Whether it gives what an adapter takes."""
        pooled = self.config.projection_dim if self.config.projection else self.config.hidden_size
        given = pooled if adapter.form == "linear" else self.config.hidden_size
        return given == adapter.image_channels


def read_ip_adapter(path: Path, unet: UNetConfig) -> IPAdapterFile:
    """Read what a file holds, for a U-Net.

    Raises:
        InvalidCheckpoint: the file is no IP-Adapter, or tensors are missing, of another shape, or of no known
            use.
        UnsupportedModel: it is for another family of models, or takes something else than pictures.
        PickleRefused: a pickle of something else than tensors and plain values.
    """
    tensors: Mapping[str, Tensor | LazyTensor]
    tensors = open_tensors(path) if path.suffix == ".safetensors" else read_pickle(path).tensors
    if not any(name.startswith("image_proj.") for name in tensors):
        raise InvalidCheckpoint(
            f"{path} is no IP-Adapter: it has no tensors image_proj.*",
            hint="a LoRA is another kind of adapter",
        )
    if _takes_faces(tensors):
        raise UnsupportedModel(
            f"{path} is a FaceID IP-Adapter, which needs InsightFace's embedding of a face",
            hint="use one that takes pictures, such as ip-adapter-plus-face_sd15.safetensors",
        )
    try:
        config = _read_config(tensors, unet)
    except ValueError as error:
        raise InvalidCheckpoint(
            f"{path}: {error}", hint="the file is damaged, or of a form that is not known"
        ) from None
    if config.context_channels != unet.cross_attention_dim:
        family = _FAMILIES.get(config.context_channels, "another family")
        raise UnsupportedModel(
            f"{path} has tokens of {config.context_channels} channels, which is for {family}; this model's "
            f"U-Net attends to {unet.cross_attention_dim}"
        )
    expected = build_on_meta(lambda: IPAdapter(config)).state_dict()
    refuse_unless_fitting(
        path,
        {name: describe(tensor) for name, tensor in expected.items()},
        {name: describe(tensor) for name, tensor in tensors.items() if name in expected},
        tensors.keys() - expected.keys(),
        model="an IP-Adapter for this model",
    )
    return IPAdapterFile(path, config, tensors)


def read_image_encoder(folder: Path) -> ImageEncoderFile:
    """Read the config of an image encoder. Raises as `read_config`."""
    config = read_config(folder / "config.json", CLIPVisionConfig)
    return ImageEncoderFile(folder / "model.safetensors", config)


def _takes_faces(tensors: Mapping[str, Tensor | LazyTensor]) -> bool:
    """FaceID projects a vector of a face by two layers and a norm beside them, and FaceID Plus lets it read
    CLIP's hidden states; most bring a LoRA along."""
    names = tensors.keys()
    vector = {"image_proj.proj.0.weight", "image_proj.norm.weight"} <= names
    return vector or any("perceiver_resampler." in name or "_lora." in name for name in names)


def _read_config(tensors: Mapping[str, Tensor | LazyTensor], unet: UNetConfig) -> IPAdapterConfig:
    """Raises ValueError for a file that has not what tells its geometry."""

    def shape(name: str, dimensions: int = 2) -> tuple[int, ...]:
        name = f"image_proj.{name}"
        if name not in tensors:
            raise ValueError(f"{name} is missing")
        found = tuple(tensors[name].shape)
        if len(found) != dimensions or 0 in found:
            raise ValueError(f"{name} is {list(found)}, expected {dimensions} dimensions, none of them 0")
        return found

    widths = tuple(attended_layers(unet).values())
    if "image_proj.proj.weight" in tensors:
        out, into = shape("proj.weight")
        [context] = shape("norm.weight", 1)
        return IPAdapterConfig("linear", into, context, widths, tokens=out // context)
    if "image_proj.proj.3.weight" in tensors:
        context, into = shape("proj.2.weight")
        return IPAdapterConfig("mlp", into, context, widths)
    if "image_proj.latents" in tensors:
        _, tokens, channels = shape("latents", 3)
        context, _ = shape("proj_out.weight")
        _, into = shape("proj_in.weight")
        inner, _ = shape("layers.0.0.to_q.weight")
        depth = len({name.split(".")[2] for name in tensors if name.startswith("image_proj.layers.")})
        return IPAdapterConfig(
            "resampler", into, context, widths, tokens, channels, heads=inner // HEAD, depth=depth
        )
    raise ValueError("image_proj has neither proj.weight, proj.3.weight nor latents")
