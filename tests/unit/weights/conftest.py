"""Single files of small networks, of every family."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limner.nn.clip_config import CLIPTextConfig
from limner.nn.unet_config import UNetConfig
from limner.nn.vae_config import VAEConfig
from limner.weights.keymaps import clip_entries, openclip_entries, single_shapes, unet_entries, vae_entries

FAMILIES = ("sd1", "sd2", "xl", "xl_refiner")

_VAE = VAEConfig(block_out_channels=(32, 64), layers_per_block=1)
_CLIP = CLIPTextConfig(64, 96, 2, 1, projection_dim=64, vocab_size=514, max_position_embeddings=16)
_OPENCLIP = CLIPTextConfig(
    64, 96, 3, 1, "gelu", projection_dim=48, vocab_size=514, max_position_embeddings=16, projection=True
)
_LEVELS = {
    "block_out_channels": (64, 128),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
}
_XL = {
    "block_out_channels": (64, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
}
_UNETS = {
    "sd1": UNetConfig(**_LEVELS, cross_attention_dim=64),
    "sd2": UNetConfig(
        **_LEVELS, cross_attention_dim=64, attention_head_dim=(1, 2), use_linear_projection=True
    ),
    "xl": UNetConfig(
        **_XL,
        cross_attention_dim=128,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=48 + 6 * 32,
    ),
    "xl_refiner": UNetConfig(
        **_XL,
        cross_attention_dim=64,
        transformer_layers_per_block=3,
        projection_class_embeddings_input_dim=48 + 5 * 32,
    ),
}
_TEXTS = {
    "sd1": [(clip_entries, _CLIP, "cond_stage_model.transformer.")],
    "sd2": [(openclip_entries, _OPENCLIP, "cond_stage_model.model.")],
    "xl": [
        (clip_entries, _CLIP, "conditioner.embedders.0.transformer."),
        (openclip_entries, _OPENCLIP, "conditioner.embedders.1.model."),
    ],
    "xl_refiner": [(openclip_entries, _OPENCLIP, "conditioner.embedders.0.model.")],
}


@pytest.fixture(scope="session")
def small_single() -> Callable[..., dict[str, Tensor]]:
    """(family, channels of the U-Net's input) -> the tensors of a single file, with random weights."""

    def tensors(family: str, in_channels: int = 4, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
        values = {**vars(_UNETS[family]), "in_channels": in_channels}
        entries = [*unet_entries(UNetConfig(**values)), *vae_entries(_VAE)]
        for text_entries, config, prefix in _TEXTS[family]:
            entries += text_entries(config, "any", prefix)
        generator = torch.Generator().manual_seed(0)
        return {
            key: (torch.randn(shape, generator=generator) * 0.1).to(dtype)
            for key, shape in single_shapes(entries).items()
        }

    return tensors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture
def write_sparse() -> Callable[[Path, dict[str, tuple[int, ...]]], None]:
    """Writes a safetensors file with these shapes."""

    def write(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        """A file of zeros that take no room on the disk, a byte each."""
        entries, end = {}, 0
        for key, shape in shapes.items():
            begin, end = end, end + torch.Size(shape).numel()
            entries[key] = {"dtype": "F8_E4M3", "shape": shape, "data_offsets": [begin, end]}
        header = json.dumps(entries).encode()
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + end)

    return write
