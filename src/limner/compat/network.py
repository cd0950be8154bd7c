"""Base class of the network classes: configs, loading, saving."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from limner.errors import InvalidRequest, UnsupportedModel
from limner.files import read_json
from limner.weights.load import Names, load_module, unet_name
from limner.weights.save import write_json
from limner.weights.tensors import open_tensors, write_tensors

from .files import ComponentLocation, reject_pickles, reject_unsupported, single_file
from .values import Config


class NetworkConfig(Config):
    """The `config.json` of a network, with the defaults of its absent keys."""

    def __init__(self, values: Mapping[str, Any], known: Any) -> None:
        own = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(known).items()}
        super().__init__({**own, **{key: v for key, v in values.items() if v is not None or key not in own}})
        self._parsed = known

    def __getattr__(self, name: str) -> Any:
        return self[name] if name in self else getattr(self.__dict__["_parsed"], name)


class Network(nn.Module):
    """Base of the network classes: an `nn.Module` with diffusers' methods.

    Attributes:
        stem: Name of the weight file, without suffix.
        config: A dict whose keys are also attributes.
        path: Path of the weight file.
        version_as_read: `weights_version` right after loading; None for a network that was not loaded.
    """

    stem: ClassVar[str] = "diffusion_pytorch_model"
    config: Any
    path: Path
    version_as_read: tuple[tuple[int, int], ...] | None = None

    @staticmethod
    def names(key: str) -> str | None:
        """Map a key of the weight file to a parameter name, or None to skip it; see `load_module`."""
        return unet_name(key)

    @classmethod
    def geometry(cls, values: Mapping[str, Any]) -> Any:
        """Return the geometry in a `config.json`. Raises ValueError for settings that Limner does not
        support."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        variant: str | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        use_safetensors: bool | None = None,
        low_cpu_mem_usage: bool = True,
        **where: Any,
    ) -> Self:
        """Load the network from a folder or a hub id.

        Args:
            variant: Variant of the weight file, such as "fp16".
            torch_dtype, dtype: Dtype of the weights; None is float32.
            low_cpu_mem_usage: No effect: loading never needs much more memory than the weights.
            where: subfolder; for the hub also revision, cache_dir, token, local_files_only.

        Raises:
            ModelNotFound, InvalidCheckpoint, UnsupportedModel: There is no such network, or Limner cannot run
                it.
            InvalidRequest: Pickles were requested, or an argument is not supported.
        """
        reject_pickles(use_safetensors)
        location, strange = ComponentLocation.from_arguments(pretrained_model_name_or_path, where)
        reject_unsupported(strange, ())
        values = read_json(location.find("config.json"))
        path = location.find_weights(cls.stem, variant)
        return cls.build(values, open_tensors(path), path, torch_dtype or dtype or torch.float32, cls.names)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        *,
        config: str | Path | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        use_safetensors: bool | None = None,
        **where: Any,
    ) -> Self:
        """Load the network from a single file, which holds this network or a whole checkpoint.

        Args:
            pretrained_model_link_or_path: Path of a file, or its URL on the hub.
            config: Folder or hub id with a `config.json`, for settings that cannot be detected from the file.
            torch_dtype, dtype: Dtype of the weights; None is float32.
            where: subfolder of `config`; for the hub also revision, cache_dir, token, local_files_only.

        Raises:
            ModelNotFound, InvalidCheckpoint, UnsupportedModel, PickleRefused: As in `from_pretrained`.
        """
        reject_pickles(use_safetensors)
        path, more = single_file(pretrained_model_link_or_path, where)
        reject_unsupported(more, ("original_config", "disable_mmap"))
        values = None
        if config is not None:
            location, _ = ComponentLocation.from_arguments(
                config, {name: value for name, value in where.items() if name != "revision"}
            )
            values = read_json(location.find("config.json"))
        detected, tensors = cls._in_single_file(path, None if values is None else cls._read(values))
        return cls.build(values or detected.to_dict(), tensors, path, torch_dtype or dtype or torch.float32)

    @classmethod
    def _in_single_file(cls, path: Path, config: Any) -> tuple[Any, Mapping[str, Tensor]]:
        """Return the geometry of the network in a file, and its tensors under the hub's names.

        Args:
            config: The geometry if it is known, else None.
        """
        raise UnsupportedModel(f"{cls.__name__} is not read from single files")

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | Path, **where: Any) -> dict[str, Any]:
        """Read a `config.json`, for `from_config`. Arguments as in `from_pretrained`."""
        location, strange = ComponentLocation.from_arguments(pretrained_model_name_or_path, where)
        reject_unsupported(strange, ())
        return read_json(location.find("config.json"))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **where: Any) -> Self:
        """Return an untrained network.

        Raises:
            InvalidRequest: `config` is a name instead of a dict.
        """
        if not isinstance(config, Mapping):
            raise InvalidRequest(
                f"config is {config!r}, expected a dict", hint=f"give {cls.__name__}.load_config(…)"
            )
        reject_unsupported(where, ())
        known = cls._read(config)
        network = cls(known)
        network.config = NetworkConfig(config, known)
        return network

    @classmethod
    def build(
        cls,
        values: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        source: Path,
        dtype: torch.dtype,
        names: Names = unet_name,
    ) -> Self:
        """Build a network from a config and tensors; `names` as in `load_module`."""
        known = cls._read(values)
        network = load_module(lambda: cls(known), tensors, source=source, names=names, dtype=dtype)
        network.config = NetworkConfig(values, known)
        network.path, network.version_as_read = source, weights_version(network)
        return network.eval()

    @classmethod
    def _read(cls, values: Mapping[str, Any]) -> Any:
        try:
            return cls.geometry(values)
        except ValueError as error:
            raise UnsupportedModel(f"{cls.__name__}: {error}") from None

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write config and weights into a folder, which is created if necessary."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", self.config)
        write_tensors(folder / f"{self.stem}.safetensors", self.state_dict(), {"format": "pt"})

    def __getattr__(self, name: str) -> Any:
        config = self.__dict__.get("config")
        if isinstance(config, NetworkConfig) and name in config:
            return config[name]  # such as unet.in_channels
        return super().__getattr__(name)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def num_parameters(self) -> int:
        """Return the number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    def enable_gradient_checkpointing(self) -> None:
        """Save memory in training: recompute activations in the backward pass."""
        self.gradient_checkpointing = True

    def enable_xformers_memory_efficient_attention(self, attention_op: None = None) -> None:
        """No effect: attention never stores the full score matrix."""

    def set_default_attn_processor(self) -> None:
        """No effect: there is only one attention implementation."""

    def compile(self, *given: Any, **named: Any) -> None:
        """Not supported: a pipeline would not use the compiled network."""
        raise InvalidRequest(
            "a network of a pipeline is not compiled by itself", hint="limner.load(…, compiled=True)"
        )


def weights_version(network: nn.Module) -> tuple[tuple[int, int], ...]:
    """Return a value that changes when any weight is changed or replaced."""
    return tuple((id(p), 0 if p.is_inference() else p._version) for p in network.parameters())
