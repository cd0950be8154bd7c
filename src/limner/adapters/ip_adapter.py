"""Files of IP-Adapters (Ye et al. 2023), and of the image encoders that they were trained with.

An adapter is a safetensors file or a pickle with tensors `image_proj.*` and `ip_adapter.*`. Their names tell
its form and their shapes its geometry; it is read whole or refused. An encoder is a folder in the layout of
transformers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from limner.catalogue.configs import read_config
from limner.catalogue.headers import read_infos
from limner.catalogue.ip_adapter import encoder_fits, read_ip_adapter_config
from limner.nn.clip import CLIPVisionModel
from limner.nn.clip_config import CLIPVisionConfig
from limner.nn.ip_adapter import IPAdapter
from limner.nn.ip_adapter_config import IPAdapterConfig
from limner.nn.unet_config import UNetConfig
from limner.weights.components import load_image_encoder
from limner.weights.load import build_on_meta, describe, load_module, refuse_unless_fitting
from limner.weights.pickles import read_pickle
from limner.weights.tensors import LazyTensor, open_tensors


@dataclass(frozen=True, eq=False)
class IPAdapterFile:
    """A checked file of an IP-Adapter, whose tensors are mapped or not read yet."""

    path: Path
    config: IPAdapterConfig
    tensors: Mapping[str, Tensor | LazyTensor]

    @cached_property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def load(self) -> IPAdapter:
        """The network with its weights, in the dtype of the file."""
        read = {name: t.read() if isinstance(t, LazyTensor) else t for name, t in self.tensors.items()}
        return load_module(lambda: IPAdapter(self.config), read, source=self.path)


@dataclass(frozen=True, eq=False)
class ImageEncoderFile:
    """The geometry of an image encoder, and the path of its weights, which need not be there yet."""

    path: Path
    config: CLIPVisionConfig

    @cached_property
    def parameters(self) -> int:
        """Number of weights, from the header. Raises as `read_infos`."""
        return sum(info.elements for info in read_infos(self.path).values())

    def load(self) -> CLIPVisionModel:
        """The network with its weights, in the dtype of the file. Raises as `load_image_encoder`."""
        return load_image_encoder(self.path.parent)

    def fits(self, adapter: IPAdapterConfig) -> bool:
        """As `encoder_fits`."""
        return encoder_fits(self.config, adapter)


def read_ip_adapter(path: Path, unet: UNetConfig) -> IPAdapterFile:
    """Read the file of an IP-Adapter for a U-Net.

    Raises:
        InvalidCheckpoint: The file is no IP-Adapter, or tensors are missing, of another shape, or unknown.
        UnsupportedModel: It is for another family of models, or does not take images.
        PickleRefused: A pickle of something else than tensors and plain values.
    """
    tensors: Mapping[str, Tensor | LazyTensor]
    tensors = open_tensors(path) if path.suffix == ".safetensors" else read_pickle(path).tensors
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    config = read_ip_adapter_config(path, shapes, unet)
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
