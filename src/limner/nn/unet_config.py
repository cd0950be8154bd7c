"""Geometry of the U-Net and of a ControlNet, as the hub's `config.json` describes them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, ClassVar, Self

from .config import read_config, require

_DOWN_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}  # name -> has attention
_UP_BLOCKS = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}


@dataclass(frozen=True)
class EncoderConfig:
    """Geometry of the way down and the middle, which a ControlNet has in common with its U-Net.

    The defaults are Stable Diffusion 1.5's. Tuples have an entry per level.

    Attributes:
        attention_head_dim: the *number* of heads (the hub's misnomer), one for all levels or one each.
        cross_attention_dim: channels of the text embeddings.
        transformer_layers_per_block: transformer blocks per attention, for all levels or each.
        use_linear_projection: `proj_in` and `proj_out` are linear rather than 1x1 convolutions.
        addition_embed_type: None, or "text_time" where the pooled text embedding and sizes join the
            time embedding (XL); the two fields after it then give its widths.
    """

    network: ClassVar[str]  # the hub's name of the class
    in_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    layers_per_block: int = 2
    attention_head_dim: int | tuple[int, ...] = 8
    cross_attention_dim: int = 768
    transformer_layers_per_block: int | tuple[int, ...] = 1
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None

    def __post_init__(self) -> None:
        require(len(self.block_out_channels) > 0, "block_out_channels is empty")
        for name in ("down_block_types", "attention_head_dim", "transformer_layers_per_block"):
            self._require_per_level(name)
        for kind in self.down_block_types:
            require(kind in _DOWN_BLOCKS, f"down block {kind!r}; supported: {', '.join(_DOWN_BLOCKS)}")
        for channels, heads in zip(self.block_out_channels, self.heads, strict=True):
            require(
                channels % self.norm_num_groups == 0 and channels % heads == 0,
                f"block_out_channels {self.block_out_channels} must be multiples of "
                f"norm_num_groups {self.norm_num_groups} and of the number of heads {self.heads}",
            )
        require(
            self.addition_embed_type in (None, "text_time"),
            f"addition_embed_type is {self.addition_embed_type!r}; only null or 'text_time' is supported",
        )

    def _require_per_level(self, name: str) -> None:
        value, levels = getattr(self, name), len(self.block_out_channels)
        require(
            isinstance(value, int) or len(value) == levels,
            f"{name} {value} must have {levels} entries, as many as block_out_channels",
        )

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads per level."""
        return self._per_level(self.attention_head_dim)

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer blocks per attention, per level."""
        return self._per_level(self.transformer_layers_per_block)

    @property
    def down_depths(self) -> tuple[int, ...]:
        """Transformer blocks per attention of each level on the way down; 0 for a level without attention."""
        return tuple(
            depth * _DOWN_BLOCKS[kind] for depth, kind in zip(self.depths, self.down_block_types, strict=True)
        )

    @property
    def middle_depth(self) -> int:
        """Transformer blocks of the middle's attention."""
        return self.depths[-1]

    @property
    def skip_channels(self) -> tuple[int, ...]:
        """Of every feature map that a U-Net's way up joins, that of the input first."""
        widths = self.block_out_channels
        levels = ([c] * self.layers_per_block for c in widths)
        return (widths[0], *chain.from_iterable([*level, level[0]] for level in levels))[:-1]

    def _per_level(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        return (value,) * len(self.block_out_channels) if isinstance(value, int) else value

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read a hub `config.json`. Raises ValueError for settings that this network does not support."""
        return read_config(
            cls,
            values,
            supported={
                "act_fn": ("silu",),
                "attention_type": ("default",),
                "center_input_sample": (False,),
                "class_embed_type": (None,),
                "class_embeddings_concat": (False,),
                "conv_in_kernel": (3,),
                "conv_out_kernel": (3,),
                "cross_attention_norm": (None,),
                "downsample_padding": (1,),
                "dropout": (0.0,),
                "dual_cross_attention": (False,),
                "encoder_hid_dim": (None,),
                "encoder_hid_dim_type": (None,),
                "flip_sin_to_cos": (True,),
                "freq_shift": (0,),
                "mid_block_only_cross_attention": (None, False),
                "mid_block_scale_factor": (1,),
                "mid_block_type": ("UNetMidBlock2DCrossAttn",),
                "num_attention_heads": (None,),
                "num_class_embeds": (None,),
                "only_cross_attention": (False,),
                "resnet_out_scale_factor": (1.0,),
                "resnet_skip_time_act": (False,),
                "resnet_time_scale_shift": ("default",),
                "reverse_transformer_layers_per_block": (None,),
                "time_embedding_act_fn": (None,),
                "time_embedding_dim": (None,),
                "time_embedding_type": ("positional",),
                "timestep_post_act": (None,),
            },
            # Fused attention accumulates in fp32 already; the heads of an unused embedding.
            without_effect=("upcast_attention", "addition_embed_type_num_heads"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The hub's `config.json`."""
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        return {"_class_name": self.network, **values}


@dataclass(frozen=True)
class UNetConfig(EncoderConfig):
    """Geometry of a U-Net.

    Attributes:
        time_cond_proj_dim: width of an embedding of the guidance scale, where the model was distilled to
            take one.
        sample_size: the latents' side in training.
    """

    network = "UNet2DConditionModel"
    out_channels: int = 4
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    time_cond_proj_dim: int | None = None
    sample_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_per_level("up_block_types")
        for kind in self.up_block_types:
            require(kind in _UP_BLOCKS, f"up block {kind!r}; supported: {', '.join(_UP_BLOCKS)}")

    @property
    def up_depths(self) -> tuple[int, ...]:
        """As `down_depths`, on the way up, which begins at the last level."""
        return tuple(
            depth * _UP_BLOCKS[kind]
            for depth, kind in zip(reversed(self.depths), self.up_block_types, strict=True)
        )


def attended_layers(unet: UNetConfig) -> dict[str, int]:
    """Name of each cross-attention of a U-Net -> its channels, in the order in which IP-Adapters number them:
    the way down, the way up, the middle."""
    widths, count = unet.block_out_channels, unet.layers_per_block
    down = [(f"down_blocks.{i}", widths[i], depth, count) for i, depth in enumerate(unet.down_depths)]
    up = [(f"up_blocks.{i}", widths[-1 - i], depth, count + 1) for i, depth in enumerate(unet.up_depths)]
    return {
        f"{block}.attentions.{number}.transformer_blocks.{index}.attn2": channels
        for block, channels, depth, attentions in (
            *down,
            *up,
            ("mid_block", widths[-1], unet.middle_depth, 1),
        )
        for number in range(attentions)
        for index in range(depth)
    }
