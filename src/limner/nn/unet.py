"""The U-Net of Stable Diffusion 1.x, 2.x and XL (Rombach et al. 2022; Podell et al. 2023).

It predicts from noisy latents, a timestep and text embeddings what a denoiser needs: the noise, the
velocity or the clean latents, as the checkpoint was trained. The families differ in `UNetConfig` alone.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import read_config, require
from .layers import Attention, Downsample2D, GroupNormSiLU, ResnetBlock2D, Upsample2D, attention, run_block

OUTER = 2  # layers on the way up that run at every step; as many feature maps on the way down feed them

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
        """Read a hub `config.json`. Raises ValueError for what this network cannot stand for."""
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


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Cosines, then sines, of the timesteps at geometrically spaced frequencies (Vaswani et al. 2017).

    Args:
        timesteps: [B], integer or not.
        channels: even.

    Returns:
        [B, channels], float32.
    """
    half = channels // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32, device=timesteps.device) * (-math.log(10000.0) / half)
    )
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def guidance_embedding(scale: Tensor, channels: int) -> Tensor:
    """Sines, then cosines of a guidance scale (Luo et al. 2023), [B] -> [B, channels], float32.

    As for timesteps, but that the lowest frequency is 1 / 10000 itself.
    """
    half = channels // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32, device=scale.device) * (-math.log(10000.0) / (half - 1))
    )
    angles = 1000.0 * (scale.float()[:, None] - 1.0) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers with SiLU in between.

    Args:
        condition_channels: of what is added to the timestep before them, or None for nothing.
    """

    def __init__(self, in_channels: int, channels: int, condition_channels: int | None = None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, channels)
        self.linear_2 = nn.Linear(channels, channels)
        if condition_channels is not None:
            self.cond_proj = nn.Linear(condition_channels, in_channels, bias=False)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is not None:
            x = x + self.cond_proj(condition)
        y: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return y


class CrossAttention(nn.Module):
    """Attention of tokens to a context, or to themselves where the context is the tokens.

    Attributes:
        attend: how it is computed.
    """

    def __init__(self, channels: int, context_channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attend: Attention = attention
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: [B, N, C]; context: [B, T, context_channels]."""
        x = self.attend(self.to_q(x), self.to_k(context), self.to_v(context), self.heads)
        y: Tensor = self.to_out[0](x)
        return y


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another (Shazeer 2020)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(x)
        x, gate = y.chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The hub's numbering has a dropout at 1.
        self.net = nn.Sequential(
            GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text, feed-forward; each residual and normalised before."""

    def __init__(self, channels: int, context_channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = CrossAttention(channels, channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = CrossAttention(channels, context_channels, heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context)
        y: Tensor = self.ff(self.norm3(x))
        return x + y


class Transformer2DModel(nn.Module):
    """Transformer blocks over the pixels of a feature map, residual."""

    def __init__(self, channels: int, depth: int, heads: int, config: EncoderConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=1e-6)
        self.linear = config.use_linear_projection
        self.proj_in = nn.Linear(channels, channels) if self.linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, config.cross_attention_dim, heads) for _ in range(depth)
        )
        self.proj_out = nn.Linear(channels, channels) if self.linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h: Tensor = self.norm(x)
        if not self.linear:
            h = self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)  # [B, C, h, w] -> [B, h*w, C]
        if self.linear:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context)
        if self.linear:
            h = self.proj_out(h)
        h = h.transpose(1, 2).reshape(x.shape)  # [B, h*w, C] -> [B, C, h, w]
        if not self.linear:
            h = self.proj_out(h)
        return x + h


class Stage(nn.Module):
    """All of one level on the way down or up: residual blocks, each with attention or none, then a resize.

    Args:
        widths: input channels of each residual block, the joined skip included.
        channels: output channels of all of them.
        depth: transformer blocks per attention; 0 for no attention.
    """

    def __init__(
        self,
        widths: list[int],
        channels: int,
        depth: int,
        heads: int,
        config: EncoderConfig,
        *,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_resnet(width, channels, config) for width in widths)
        self.attentions = nn.ModuleList(
            Transformer2DModel(channels, depth, heads, config) for _ in widths if depth > 0
        )
        self.downsamplers = nn.ModuleList([Downsample2D(channels, padding=1)] if down else [])
        self.upsamplers = nn.ModuleList([Upsample2D(channels)] if up else [])

    @property
    def joined(self) -> int:
        """The layer whose output a T2I-Adapter's feature joins: the last with attention, or of all."""
        return len(self.resnets) + (0 if self.attentions else len(self.downsamplers)) - 1

    def layer(self, index: int, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """Residual block `index` and the attention behind it."""
        x = self.resnets[index](x, time)
        if self.attentions:
            x = self.attentions[index](x, context)
        return x


Stages = Iterable[Stage]
Layers = Iterable[tuple[Stage, int]]


class MidBlock(nn.Module):
    """Residual block, attention, residual block; of depth 0 the first of them alone."""

    def __init__(self, channels: int, depth: int, heads: int, config: EncoderConfig) -> None:
        super().__init__()
        attends = depth > 0
        self.attentions = nn.ModuleList(
            Transformer2DModel(channels, depth, heads, config) for _ in range(attends)
        )
        self.resnets = nn.ModuleList(_resnet(channels, channels, config) for _ in range(1 + attends))

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        x = self.resnets[0](x, time)
        for index, attend in enumerate(self.attentions, start=1):
            x = self.resnets[index](attend(x, context), time)
        return x


def _resnet(in_channels: int, out_channels: int, config: EncoderConfig) -> ResnetBlock2D:
    return ResnetBlock2D(
        in_channels,
        out_channels,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        time_channels=4 * config.block_out_channels[0],
    )


class Encoder(nn.Module):
    """The way down and the middle, which a ControlNet has too.

    Args:
        guidance_channels: of an embedding of the guidance scale that joins the timestep's; None for none.

    Attributes:
        gradient_checkpointing: trade time for memory in training.
    """

    def __init__(self, config: EncoderConfig, guidance_channels: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        widths, layers = config.block_out_channels, config.layers_per_block
        time_channels = 4 * widths[0]
        last = len(widths) - 1

        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], time_channels, guidance_channels)
        if config.addition_embed_type == "text_time":
            self.add_embedding = TimestepEmbedding(
                config.projection_class_embeddings_input_dim or 0, time_channels
            )

        self.down_blocks = nn.ModuleList()
        for level, kind in enumerate(config.down_block_types):
            before, channels = widths[max(level - 1, 0)], widths[level]
            depth = config.depths[level] if _DOWN_BLOCKS[kind] else 0
            inputs = [before] + [channels] * (layers - 1)
            self.down_blocks.append(
                Stage(inputs, channels, depth, config.heads[level], config, down=level < last)
            )

        self.mid_block = MidBlock(widths[-1], config.middle_depth, config.heads[-1], config)

    def _embedded_time(
        self,
        timesteps: Tensor,
        dtype: torch.dtype,
        pooled: Tensor | None,
        sizes: Tensor | None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """[B, 4 * widths[0]], as residual blocks take it: what there is to know beside x and the context."""
        time = timestep_embedding(timesteps, self.config.block_out_channels[0]).to(dtype)
        time = self.time_embedding(time, guidance)
        if self.config.addition_embed_type == "text_time":
            time = time + self.add_embedding(self._text_and_sizes(pooled, sizes).to(dtype))
        return F.silu(time)  # each residual block starts with it

    def _text_and_sizes(self, pooled: Tensor | None, sizes: Tensor | None) -> Tensor:
        if pooled is None or sizes is None:
            raise ValueError("this network is conditioned on a pooled text embedding and sizes: give both")
        channels = self.config.addition_time_embed_dim or 0
        embedded = timestep_embedding(sizes.flatten(), channels)  # [B*6, channels]
        return torch.cat([pooled.float(), embedded.reshape(len(sizes), -1)], dim=-1)

    def _way_down(self) -> list[tuple[Stage, int]]:
        """All layers before the middle."""
        stages = cast("Stages", self.down_blocks)
        return [(s, i) for s in stages for i in range(len(s.resnets) + len(s.downsamplers))]

    def _descend(
        self,
        layers: Layers,
        skips: list[Tensor],
        time: Tensor,
        context: Tensor,
        features: list[Tensor] | None = None,
    ) -> None:
        """Run layers on the way down from the last of `skips`, and append what each gives.

        The first of `features` joins at the end of a level, and is taken off.
        """
        checkpointed = self.gradient_checkpointing
        for stage, index in layers:
            if index < len(stage.resnets):
                x = run_block(stage.layer, index, skips[-1], time, context, checkpointed=checkpointed)
            else:
                x = stage.downsamplers[0](skips[-1])
            if features and index == stage.joined:
                x = x + features.pop(0)
            skips.append(x)

    def _middle(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        y: Tensor = run_block(self.mid_block, x, time, context, checkpointed=self.gradient_checkpointing)
        return y


class UNet2DConditionModel(Encoder):
    """The denoising network."""

    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config, config.time_cond_proj_dim)
        widths, skips = config.block_out_channels, list(config.skip_channels)
        self.up_blocks = nn.ModuleList()
        below = widths[-1]
        for kind, level in zip(config.up_block_types, reversed(range(len(widths))), strict=True):
            channels = widths[level]
            depth = config.depths[level] if _UP_BLOCKS[kind] else 0
            inputs = [before + skips.pop() for before in [below] + [channels] * config.layers_per_block]
            self.up_blocks.append(Stage(inputs, channels, depth, config.heads[level], config, up=level > 0))
            below = channels

        self.conv_norm_out = GroupNormSiLU(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
        guidance: Tensor | None = None,
        residuals: Sequence[Tensor] | None = None,
        features: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Predict noise, velocity or clean latents, whichever the weights were trained for.

        Args:
            x: [B, in_channels, h, w], any h and w.
            timesteps: [B], each row its own.
            context: [B, T, cross_attention_dim].
            pooled: [B, P] pooled text embedding, for "text_time" models only.
            sizes: [B, 6] original height, width, crop top, left, target height, width, likewise; or [B, 5]
                with an aesthetic score in place of the target's (the refiner of XL).
            guidance: [B] guidance scale that the output is to have, for models with `time_cond_proj_dim`
                (latent consistency models: Luo et al. 2023).
            residuals: what ControlNets add to each skip, the input's first, and to the middle
                (`ControlNetModel.forward`).
            features: what T2I-Adapters add at the end of each level on the way down, and then to the middle
                where there is one more (`T2IAdapter.forward`).

        Returns:
            [B, out_channels, h, w].
        """
        return self._walk(x, timesteps, context, pooled, sizes, guidance, None, residuals, features)[0]

    def forward_keeping(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
        guidance: Tensor | None = None,
        residuals: Sequence[Tensor] | None = None,
        features: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, and the deep features [B, C, h', w'] that `forward_reusing` takes."""
        return self._walk(x, timesteps, context, pooled, sizes, guidance, None, residuals, features)

    def forward_reusing(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        deep: Tensor,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """As `forward`, but of all layers only the outermost run (DeepCache: Ma et al. 2023).

        Args:
            deep: what `forward_keeping` gave for the same rows at a noise level nearby. It stands for what
                the layers further in would say, which changes little from step to step.
        """
        return self._walk(x, timesteps, context, pooled, sizes, guidance, deep, None, None)[0]

    def _walk(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        pooled: Tensor | None,
        sizes: Tensor | None,
        guidance: Tensor | None,
        deep: Tensor | None,
        residuals: Sequence[Tensor] | None,
        features: Sequence[Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Down and up again; the inner part, whose outcome is `deep`, only where that is not given."""
        time = self._embedded_time(timesteps, x.dtype, pooled, sizes, self._guidance(guidance, x.dtype))
        up_blocks = cast("Stages", self.up_blocks)
        down, up = self._way_down(), [(s, i) for s in up_blocks for i in range(len(s.resnets))]
        joining = self._features(features)
        skips = [self.conv_in(x)]  # each joins a layer on the way up, the last one first
        self._descend(down[: OUTER - 1], skips, time, context, joining)
        if deep is None:
            self._descend(down[OUTER - 1 :], skips, time, context, joining)
            middle = self._middle(skips[-1], time, context)
            for feature in joining:  # the one that is left, if any
                middle = middle + feature
            if residuals is not None:
                *outer, inner = residuals
                skips = [skip + residual for skip, residual in zip(skips, outer, strict=True)]
                middle = middle + inner
            deep = self._ascend(up[:-OUTER], middle, skips, time, context)
        x = self._ascend(up[-OUTER:], deep, skips, time, context)
        y: Tensor = self.conv_out(self.conv_norm_out(x))
        return y, deep

    def _ascend(
        self, layers: Layers, x: Tensor, skips: list[Tensor], time: Tensor, context: Tensor
    ) -> Tensor:
        """Run layers on the way up, each joined by the last of `skips`, which is taken off."""
        checkpointed = self.gradient_checkpointing
        for stage, index in layers:
            x = torch.cat([x, skips.pop()], dim=1)
            x = run_block(stage.layer, index, x, time, context, checkpointed=checkpointed)
            if stage.upsamplers and index == len(stage.resnets) - 1:
                x = stage.upsamplers[0](x, skips[-1].shape[2:])  # an odd size was rounded up on the way down
        return x

    def _guidance(self, scale: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """[B, time_cond_proj_dim], or None where the model wants no guidance scale."""
        channels = self.config.time_cond_proj_dim
        if channels is None:
            return None
        if scale is None:
            raise ValueError("this U-Net is conditioned on a guidance scale: give it")
        return guidance_embedding(scale, channels).to(dtype)

    def _features(self, given: Sequence[Tensor] | None) -> list[Tensor]:
        """Those that join a level each, and the middle's if there is one."""
        levels = len(self.config.block_out_channels)
        if given is not None and len(given) not in (levels, levels + 1):
            raise ValueError(
                f"{len(given)} features were given, expected one for each of {levels} levels, or one more"
            )
        return list(given or ())
