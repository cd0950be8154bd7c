"""Checkpoints and their parts: the networks, each with its config and its tensors.

The tensors of a part are in files of the diffusers layout, in a single file, or in memory. Each form of a
part gives its config, and its tensors under the hub's names.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from limner.catalogue.architecture import Architecture
from limner.catalogue.configs import PartConfig, block_count
from limner.catalogue.headers import files_of, read_infos
from limner.catalogue.layout import TOKENIZER_OF
from limner.errors import InvalidCheckpoint
from limner.nn.clip import CLIPTextModel
from limner.nn.clip_config import CLIPTextConfig, CLIPVisionConfig
from limner.nn.unet import UNet2DConditionModel
from limner.nn.unet_config import UNetConfig
from limner.nn.vae import AutoencoderKL
from limner.nn.vae_config import VAEConfig
from limner.request.facts import Family, Kind

from .keymaps import Entry
from .load import Names, load_module, text_encoder_name, unet_name, vae_name
from .tensors import LazyTensor, lazy_tensors, open_tensors

NAMES: Mapping[str, Names] = {
    "unet": unet_name,
    "vae": vae_name,
    "text_encoder": text_encoder_name,
    "text_encoder_2": text_encoder_name,
}
"""Component -> the hub's name for a key of its files."""

C = TypeVar("C", bound=PartConfig | CLIPVisionConfig)
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Part(ABC):
    """One network of a checkpoint.

    Attributes:
        config: Geometry of the network.
        source: File, or index of shards, with its tensors; for tensors in memory, a name for messages.
    """

    config: PartConfig
    source: Path

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """Weight files; none for tensors in memory."""

    @property
    @abstractmethod
    def elements(self) -> int:
        """Number of weights, from the headers alone."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Tensors under the hub's names, memory-mapped from a file."""

    @abstractmethod
    def lazy_tensors(self) -> dict[str, LazyTensor]:
        """Tensors under the hub's names, each read into memory when it is needed."""


@dataclass(frozen=True)
class HubPart(Part):
    """A network in files of the diffusers layout.

    Attributes:
        names: Maps keys, also of older versions of the libraries, to the hub's names.
    """

    names: Names

    @property
    def files(self) -> tuple[Path, ...]:
        return files_of(self.source)

    @property
    def elements(self) -> int:
        return sum(info.elements for info in read_infos(self.source).values())

    def tensors(self) -> dict[str, Tensor]:
        return self._named(open_tensors(self.source))

    def lazy_tensors(self) -> dict[str, LazyTensor]:
        return self._named(lazy_tensors(self.source))

    def _named(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        named: dict[str, Any] = {}
        for key, tensor in stored.items():
            name = self.names(key)
            if name in named:
                raise InvalidCheckpoint(f"{self.source} holds {name} under two names")
            if name is not None:
                named[name] = tensor
        return named


@dataclass(frozen=True)
class SinglePart(Part):
    """A network within a single file.

    Attributes:
        entries: Name, key and layout of each of its tensors.
    """

    entries: tuple[Entry, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.source,)

    @property
    def elements(self) -> int:
        return sum(torch.Size(entry.shape).numel() for entry in self.entries)

    def tensors(self) -> dict[str, Tensor]:
        stored = open_tensors(self.source)
        return {entry.name: entry.from_single(stored[entry.single]) for entry in self.entries}

    def lazy_tensors(self) -> dict[str, LazyTensor]:
        stored = lazy_tensors(self.source)
        return {entry.name: entry.lazy_from_single(stored[entry.single]) for entry in self.entries}


@dataclass(frozen=True)
class MemoryPart(Part):
    """A network whose tensors are in memory.

    Attributes:
        held: Hub name -> tensor.
    """

    held: Mapping[str, Tensor] = field(repr=False)

    @property
    def files(self) -> tuple[Path, ...]:
        return ()

    @property
    def elements(self) -> int:
        return sum(tensor.numel() for tensor in self.held.values())

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.held)

    def lazy_tensors(self) -> dict[str, LazyTensor]:
        return {name: LazyTensor.of(tensor) for name, tensor in self.held.items()}


@dataclass(frozen=True)
class Checkpoint:
    """The networks of a model, with its scheduler config and tokenizers.

    Attributes:
        folder: Folder with `model_index.json`, or the single file.
        parts: "unet", "vae" and one or two text encoders, "text_encoder" and "text_encoder_2". With two, the
            U-Net attends to the hidden states of both, joined along the channels in this order.
        scheduler_config: `scheduler_config.json` as parsed; of a single file, its family's.
        tokenizers: Text encoder -> folder of its tokenizer's files.
        pad_tokens: Text encoder -> token that texts are padded with, where the tokenizer's files do not say.
        zero_negative: Whether the embedding without a negative prompt is all zeros, not that of an empty
            text.
        controlled: Whether it has ControlNets too, which are used only if a request names them.
        replaced: Part, tokenizer or scheduler in place of the checkpoint's own -> its files.
        unused: Keys of a single file that no network uses: EMA copies, schedule buffers, unused layers.
        warnings: Warnings about the choice of files, and about assumptions.
    """

    folder: Path
    parts: Mapping[str, Part]
    scheduler_config: Mapping[str, Any]
    tokenizers: Mapping[str, Path]
    pad_tokens: Mapping[str, str] = field(default_factory=dict)
    zero_negative: bool = False
    controlled: bool = False
    replaced: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @cached_property
    def unet_config(self) -> UNetConfig:
        """Geometry of the U-Net."""
        config = self.parts["unet"].config
        assert isinstance(config, UNetConfig)
        return config

    @cached_property
    def vae_config(self) -> VAEConfig:
        """Geometry of the autoencoder."""
        config = self.parts["vae"].config
        assert isinstance(config, VAEConfig)
        return config

    @cached_property
    def text_configs(self) -> dict[str, CLIPTextConfig]:
        """Text encoder -> its geometry."""
        configs = {part: self.parts[part].config for part in TOKENIZER_OF if part in self.parts}
        return {part: config for part, config in configs.items() if isinstance(config, CLIPTextConfig)}

    @cached_property
    def architecture(self) -> Architecture:
        """The networks, without their weights."""
        return Architecture(self.unet_config, self.vae_config, self.text_configs)

    @property
    def family(self) -> Family:
        """As `Architecture.family`."""
        return self.architecture.family

    @property
    def kind(self) -> Kind:
        """As `Architecture.kind`."""
        return self.architecture.kind

    @property
    def pooled_channels(self) -> int:
        """As `Architecture.pooled_channels`."""
        return self.architecture.pooled_channels

    @property
    def sizes(self) -> int:
        """As `Architecture.sizes`."""
        return self.architecture.sizes

    def tensors(self, part: str) -> dict[str, Tensor]:
        """A part's tensors under the hub's names."""
        return self.parts[part].tensors()

    @property
    def parameters(self) -> int:
        """Number of weights in all parts."""
        return sum(self.parameters_by_part.values())

    @cached_property
    def parameters_by_part(self) -> dict[str, int]:
        """Number of weights of each part."""
        return {name: part.elements for name, part in self.parts.items()}

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files, each once."""
        return tuple(dict.fromkeys(file for part in self.parts.values() for file in part.files))

    @property
    def size(self) -> int:
        """Bytes of the weight files."""
        return sum(file.stat().st_size for file in self.files)


def load_unet(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> UNet2DConditionModel:
    """The U-Net with its weights, in `dtype` or as stored. Raises as `load_module`."""
    return _load(checkpoint.parts["unet"], checkpoint.unet_config, UNet2DConditionModel, dtype)


def load_vae(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> AutoencoderKL:
    """The autoencoder with its weights, in `dtype` or as stored. Raises as `load_module`."""
    return _load(checkpoint.parts["vae"], checkpoint.vae_config, AutoencoderKL, dtype)


def load_text_encoder(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None, part: str = "text_encoder"
) -> CLIPTextModel:
    """A text encoder with its weights, in `dtype` or as stored. Raises as `load_module`."""
    return _load(checkpoint.parts[part], checkpoint.text_configs[part], CLIPTextModel, dtype)


def load_network(
    config: C,
    network: Callable[[C], M],
    tensors: Mapping[str, Tensor],
    source: Path,
    *,
    names: Names = unet_name,
    dtype: torch.dtype | None = None,
) -> M:
    """As `load_module`, for a config from an untrusted file.

    Raises:
        InvalidCheckpoint: as `load_module`, or the config describes no network.
    """
    try:
        # Modules cost time even on the meta device, so a config may not ask for millions of them.
        if block_count(config) > max(1000, len(tensors)):
            raise ValueError(f"{block_count(config)} blocks, but {source.name} holds {len(tensors)} tensors")
        return load_module(lambda: network(config), tensors, source=source, names=names, dtype=dtype)
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        reason = str(error).partition("\n")[0]  # torch adds its own stack trace
        raise InvalidCheckpoint(f"the config of {source} describes no network: {reason}") from error


def _load(part: Part, config: C, network: Callable[[C], M], dtype: torch.dtype | None) -> M:
    if isinstance(part, HubPart):  # messages name the keys of the file
        return load_network(
            config, network, open_tensors(part.source), part.source, names=part.names, dtype=dtype
        )
    return load_network(config, network, part.tensors(), part.source, dtype=dtype)
