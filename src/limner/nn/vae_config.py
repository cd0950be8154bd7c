"""Geometry of the autoencoder, as the hub's `config.json` describes it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .config import read_config, require


@dataclass(frozen=True)
class VAEConfig:
    """Geometry of an autoencoder; the defaults are Stable Diffusion's.

    Attributes:
        scaling_factor: Factor on latents before they enter the U-Net, which gives them about unit variance.
            Callers apply it, not this network.
        sample_size: the image's side in training, in pixels.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    sample_size: int = 512

    def __post_init__(self) -> None:
        require(len(self.block_out_channels) > 0, "block_out_channels is empty")
        for channels in self.block_out_channels:
            require(
                channels % self.norm_num_groups == 0,
                f"block_out_channels {self.block_out_channels} must be multiples of "
                f"norm_num_groups {self.norm_num_groups}",
            )

    @property
    def downscale(self) -> int:
        """Number of image pixels per latent pixel, in each direction."""
        return 1 << (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "VAEConfig":
        """Read a hub `config.json`. Raises ValueError for settings that this network does not support."""
        levels = len(values.get("block_out_channels", cls.block_out_channels))
        return read_config(
            cls,
            values,
            supported={
                "act_fn": ("silu",),
                "down_block_types": (["DownEncoderBlock2D"] * levels, ("DownEncoderBlock2D",) * levels),
                "up_block_types": (["UpDecoderBlock2D"] * levels, ("UpDecoderBlock2D",) * levels),
                "mid_block_add_attention": (True,),
                "use_quant_conv": (True,),
                "use_post_quant_conv": (True,),
                "shift_factor": (None,),
                "latents_mean": (None,),
                "latents_std": (None,),
            },
            without_effect=("force_upcast",),  # float16 overflow is handled where precision is chosen
        )

    def to_dict(self) -> dict[str, Any]:
        """The hub's `config.json`."""
        levels = len(self.block_out_channels)
        return {
            "_class_name": "AutoencoderKL",
            **{key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()},
            "act_fn": "silu",
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        }
