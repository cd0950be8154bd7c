"""How many rows of a network run together: as many as pay, and no more than fit.

What pays is measured per model, latent size and device (`limner tune`); the estimates here serve where
nothing was measured.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from limner.nn.unet import UNetConfig
from limner.nn.vae import VAEConfig

from .calls import Call, DecodeLatents, Denoise, EncodeImage, EncodeText, ReadControl, ReadImagePrompt
from .model import Model
from .tiles import TILE
from .tuning import Tuning, rows_estimate

_MOST_ROWS = {"cpu": 32, "cuda": 64}
_EMBEDDING_CHANNELS = 64  # of what a ControlNet makes of a picture at its full size, all in all
_SHARE = 0.9  # of a device's memory that may be used


@dataclass(frozen=True)
class Limits:
    """What one device takes at once.

    Attributes:
        memory: bytes for weights and for what a forward pass makes.
        rows: measured numbers of rows, by `row_key`.
    """

    memory: int
    rows: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, device: torch.device) -> "Limits":
        """Most of the device's memory, and what was measured here."""
        if device.type == "cuda":
            whole = torch.cuda.get_device_properties(device).total_memory
        else:
            whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(int(_SHARE * whole), Tuning.stored().rows)

    def rows_of(self, model: Model, height: int, width: int) -> int:
        """How many rows of the U-Net pay at latents of this size, 2 or more: a guided picture has two."""
        measured = self.rows.get(row_key(model, height, width))
        if measured is not None:
            return max(2, measured)
        kind = model.backend.device.type
        estimate = rows_estimate(model.parameters, height, width, kind)
        return max(2, min(_MOST_ROWS[kind], estimate))

    def calls_of(self, model: Model, call: Call) -> int:
        """How many calls like this one pay in a forward pass."""
        if isinstance(call, Denoise):
            return max(1, self.rows_of(model, call.x.shape[2], call.x.shape[3]) // len(call.branches))
        if isinstance(call, EncodeText | ReadImagePrompt):
            return 16
        height, width = call.latents.shape[2:] if isinstance(call, DecodeLatents) else call.image.shape[2:]
        # The autoencoder gains nothing from more, and each takes what many rows of the U-Net do.
        return max(1, self.rows_of(model, height, width) // 8)

    def needs(self, model: Model, call: Call) -> int:
        """Bytes that the forward pass of this call alone makes, about."""
        size = 2 if model.backend.precision in ("bf16", "fp16") else 4
        config = model.checkpoint
        match call:
            case Denoise():
                height, width = call.x.shape[2:]
                rows = len(call.branches)
                return rows * unet_bytes(config.unet_config, height, width, size, len(call.controls))
            case DecodeLatents():
                height, width = call.latents.shape[2:]
                return _autoencoder_bytes(config.vae_config, height, width, size, call.tiled)
            case EncodeImage():
                height, width = (side // config.vae_config.downscale for side in call.image.shape[2:])
                return _autoencoder_bytes(config.vae_config, height, width, size, call.tiled)
            case ReadControl():
                height, width = call.image.shape[2:]
                return _EMBEDDING_CHANNELS * height * width * size
            case EncodeText() | ReadImagePrompt():
                return 0  # next to nothing beside the others

    def most_for(self, model: Model, shape: tuple[int, ...], rows: int, controls: int = 0) -> int:
        """Bytes that the most demanding forward pass of one picture makes, about, if it is decoded in tiles.

        Args:
            shape: of its latents, [1, C, h, w].
            rows: of the U-Net.
            controls: control networks that run beside it.
        """
        size = 2 if model.backend.precision in ("bf16", "fp16") else 4
        height, width = shape[2:]
        vae = model.checkpoint.vae_config
        return max(
            rows * unet_bytes(model.checkpoint.unet_config, height, width, size, controls),
            _autoencoder_bytes(vae, height, width, size, tiled=True),
        )


def row_key(model: Model, height: int, width: int) -> str:
    """What a measured number of rows holds for."""
    backend = model.backend
    return f"{model.geometry} {width}x{height} {backend.name} {backend.precision}"


def unet_bytes(config: UNetConfig, height: int, width: int, size: int, controls: int = 0) -> int:
    """What one row of the U-Net makes at once, for latents of height x width and numbers of `size` bytes.

    The feature maps of the first level dominate: those kept for the way up, the two that are joined, and
    the eightfold width inside the feed-forward layers. Control networks keep what they add.
    """
    return (24 + 8 * (controls > 0)) * config.block_out_channels[0] * height * width * size


def _autoencoder_bytes(config: VAEConfig, height: int, width: int, size: int, tiled: bool) -> int:
    """For latents of height x width."""
    if tiled:
        height, width = min(height, TILE), min(width, TILE)
    return vae_bytes(config, config.downscale * height, config.downscale * width, size)


def vae_bytes(config: VAEConfig, height: int, width: int, size: int) -> int:
    """What the autoencoder makes at once for one picture, dominated by its feature maps at full size."""
    return 10 * config.block_out_channels[0] * height * width * size
