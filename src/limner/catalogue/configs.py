"""The `config.json` of a network, read from an untrusted file."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from limner.errors import InvalidCheckpoint, UnsupportedModel
from limner.files import read_json
from limner.nn.clip_config import CLIPTextConfig, CLIPVisionConfig
from limner.nn.control_config import ControlNetConfig, T2IAdapterConfig
from limner.nn.unet_config import EncoderConfig, UNetConfig
from limner.nn.vae_config import VAEConfig

NetworkConfig = (
    UNetConfig | VAEConfig | CLIPTextConfig | CLIPVisionConfig | ControlNetConfig | T2IAdapterConfig
)
PartConfig = UNetConfig | VAEConfig | CLIPTextConfig
C = TypeVar("C", UNetConfig, VAEConfig, CLIPTextConfig, CLIPVisionConfig, ControlNetConfig, T2IAdapterConfig)


def read_config(path: Path, config: type[C]) -> C:
    """Geometry of a network from its `config.json`.

    Raises:
        InvalidCheckpoint: the file is missing or malformed.
        UnsupportedModel: it asks for a feature that the network does not have.
    """
    return parse_config(path, read_json(path), config)


def parse_config(path: Path, values: Mapping[str, Any], config: type[C]) -> C:
    """As `read_config`, for values that come from a file."""
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


def block_count(config: NetworkConfig) -> int:
    """Number of blocks that a network is built of, roughly."""
    if isinstance(config, CLIPTextConfig | CLIPVisionConfig):
        return config.num_hidden_layers
    if isinstance(config, T2IAdapterConfig):
        return len(config.channels) * config.num_res_blocks
    depth = max(config.depths) if isinstance(config, EncoderConfig) else 1
    return len(config.block_out_channels) * config.layers_per_block * depth
