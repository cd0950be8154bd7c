"""ControlNets and T2I-Adapters: folders in the diffusers layout, and single files.

A single file is in the layout of its authors (lllyasviel, TencentARC) or has the hub's names, and has no
config: the geometry is read off the shapes of its tensors. Only headers are read until it is loaded.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from limner.catalogue.configs import block_count
from limner.catalogue.control import (
    ControlConfig,
    SingleControl,
    control_misfit,
    control_weights,
    has_config,
    read_control_config,
    read_single_control,
    refuse_others,
)
from limner.catalogue.headers import files_of
from limner.catalogue.layout import CONFIG
from limner.errors import InvalidCheckpoint, UnsupportedModel
from limner.nn.control_config import ControlNetConfig, T2IAdapterConfig
from limner.nn.controlnet import ControlNetModel
from limner.nn.t2i_adapter import T2IAdapter
from limner.nn.unet_config import UNetConfig

from .keymaps import controlnet_entries, parameter_shapes, t2i_adapter_entries
from .load import describe, load_module, refuse_unless_fitting
from .pickles import read_pickle
from .tensors import LazyTensor, lazy_tensors, open_tensors

# A tensor that only the layouts of `_described` have.
_FIRST = re.compile(
    r"controlnet_cond_embedding\.conv_in\.weight|(?:control_model\.)?input_hint_block\.0\.weight"
    r"|(?:adapter\.)?body\.0\.(?:(?:resnets|body)\.0\.)?block1\.weight"
)


@dataclass(frozen=True)
class ControlFile:
    """A checked ControlNet or T2I-Adapter.

    Attributes:
        path: The folder or file.
        weights: The file with the weights, or the index of its shards.
        config: Geometry of the network.
        keys: The hub's parameter name -> key in `weights`.
        parameters: Number of weights.
    """

    path: Path
    weights: Path
    config: ControlConfig
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
        """The hub's parameter name -> tensor, which is read when it is needed."""
        stored = _stored(self.weights)
        return {name: stored[key] for name, key in self.keys.items()}

    def misfit(self, unet: UNetConfig, downscale: int) -> str | None:
        """The reason why it does not fit a U-Net, as a clause; None if it fits.

        Args:
            downscale: Number of pixels per latent along each side.
        """
        return control_misfit(self.config, unet, downscale)


def read_control(path: Path) -> ControlFile:
    """Read the config and the keys of a ControlNet or T2I-Adapter; the cost does not depend on its size.

    Args:
        path: A folder with `config.json` and weights, of which the plain ones are preferred to a variant; a
            weight file of such a folder; or a single file (.safetensors, or a pickle, whose code is not run).

    Raises:
        ModelNotFound: There is no such file or folder, or it has no weights.
        InvalidCheckpoint: The file is broken, or tensors are missing, unexpected or of another shape; the
            message names them.
        UnsupportedModel: A network of another kind; the message names it.
        PickleRefused: A pickle that holds other objects than tensors.
    """
    try:
        weights = control_weights(path)
        if path.is_dir() or has_config(path):
            return _read_folder(path, weights)
        return _read_file(path)
    except OSError as error:
        raise InvalidCheckpoint(f"{path} cannot be read: {error.strerror}") from error


def is_control(keys: Collection[str]) -> bool:
    """Whether a file with these keys is one for `read_control`."""
    return any(_FIRST.fullmatch(key) for key in keys)


def single_keys(path: Path, config: ControlConfig) -> dict[str, str]:
    """The hub's parameter name -> key in a single file: the authors' keys, but the hub's for XL, as is usual.

    Args:
        path: Path of the file to write; its name may say that the network pools its conditions.

    Raises:
        UnsupportedModel: A single file, which has no config, would be read as another network.
    """
    if isinstance(config, T2IAdapterConfig):
        entries = t2i_adapter_entries(config)
    else:
        entries = controlnet_entries(config)
        if config.addition_embed_type is not None:
            entries = [replace(entry, single=entry.name) for entry in entries]
    derived = read_single_control(path, {entry.single: entry.shape for entry in entries}).config
    differing = [
        f"{field.name} {getattr(config, field.name)} as {getattr(derived, field.name, None)}"
        for field in fields(config)
        if getattr(config, field.name) != getattr(derived, field.name, None)
    ]
    if differing:
        raise UnsupportedModel(
            f"a single file has no config, and would be read as another network: {'; '.join(differing)}",
            hint="keep the folder; a name that ends in _shuffle stands for global_pool_conditions",
        )
    return {entry.name: entry.single for entry in entries}


def _read_folder(path: Path, weights: Path) -> ControlFile:
    stored, folder = _stored(weights), weights.parent
    refuse_others(path, stored)
    config = read_control_config(folder)
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
    return _checked(path, weights, config, named, stored, lambda key: False, model="its config.json")


def _read_file(path: Path) -> ControlFile:
    stored = _stored(path)
    single = read_single_control(path, {key: tensor.shape for key, tensor in stored.items()})
    try:
        expected = _expected(single)
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        reason = str(error).partition("\n")[0]  # torch adds its own stack trace
        raise InvalidCheckpoint(f"the shapes in {path} describe no network: {reason}") from error
    return _checked(
        path, path, single.config, expected, stored, single.is_unused, model="a network of these shapes"
    )


Expected = Mapping[str, tuple[str, tuple[int, ...]]]
"""The hub's parameter name -> key in the file, and shape."""


def _expected(single: SingleControl) -> Expected:
    """The tensors of a single file."""
    config, prefix = single.config, single.prefix
    if prefix is None:
        return {name: (name, shape) for name, shape in parameter_shapes(_network(config)).items()}
    if isinstance(config, ControlNetConfig):
        entries = controlnet_entries(config, prefix)
    else:
        entries = t2i_adapter_entries(config, prefix)
    return {entry.name: (entry.single, entry.shape) for entry in entries}


def _checked(
    path: Path,
    weights: Path,
    config: ControlConfig,
    expected: Expected,
    stored: Mapping[str, LazyTensor],
    harmless: Callable[[str], bool],
    *,
    model: str,
) -> ControlFile:
    places = dict(expected.values())
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


def _network(config: ControlConfig) -> Callable[[], ControlNetModel | T2IAdapter]:
    if isinstance(config, ControlNetConfig):
        return partial(ControlNetModel, config)
    return partial(T2IAdapter, config)


def _is_pickle(path: Path) -> bool:
    return path.suffix not in (".safetensors", ".json")


def _stored(path: Path) -> Mapping[str, LazyTensor]:
    """The tensors of a file, read when they are needed."""
    return read_pickle(path).model()[0] if _is_pickle(path) else lazy_tensors(path)
