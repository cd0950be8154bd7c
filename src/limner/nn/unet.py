"""The U-Net of Stable Diffusion 1.x, 2.x and XL (Rombach et al. 2022; Podell et al. 2023).

From noisy latents, a timestep and text embeddings it predicts the noise, the velocity or the clean latents,
depending on how the checkpoint was trained. The families differ only in their `UNetConfig`.

A forward pass reads its arguments and the weights, and keeps nothing: threads can share a network.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import (
    Downsample2D,
    GroupNormSiLU,
    LowRankTerm,
    ResnetBlock2D,
    RowFactors,
    RowOperator,
    Upsample2D,
    linear,
    low_rank_stretches,
    run_at_once,
    run_block,
)
from .transformer import BlockInputs, Transformer2DModel
from .unet_config import EncoderConfig, UNetConfig, attended_layers

OUTER = 2  # last layers of the up blocks, which run at every step; the first skips, as many, feed them


@dataclass(frozen=True, eq=False)
class Conditions:
    """Inputs of a forward pass of the U-Net besides latents, timestep and text, one row per row of the batch.

    Attributes:
        pooled: pooled text embedding [B, P], for models with "text_time" embeddings (XL).
        sizes: [B, 6] original height, width, crop top, left, target height, width; or [B, 5] with an
            aesthetic score in place of the target size (XL's refiner). For the same models.
        guidance: guidance scale [B], for models with `time_cond_proj_dim` (latent consistency models: Luo et
            al. 2023).
        residuals: summed outputs of ControlNets for each skip, in order, and for the middle block
            (`ControlNetModel.forward`).
        features: summed features of T2I-Adapters for the end of each down block, and if there is one more,
            for the middle block (`T2IAdapter.forward`).
        image_prompts: keys and values [B, 2, T, S] of each active IP-Adapter, those of all cross-attentions
            concatenated in the order of `attended_layers` (`IPAdapter.forward`).
        low_rank: name of a linear layer -> the LoRA of each row; None for a row without one.
    """

    pooled: Tensor | None = None
    sizes: Tensor | None = None
    guidance: Tensor | None = None
    residuals: Sequence[Tensor] = ()
    features: Sequence[Tensor] = ()
    image_prompts: Sequence[Tensor] = ()
    low_rank: Mapping[str, Sequence[LowRankTerm | None]] = field(default_factory=dict)

    @property
    def present(self) -> frozenset[str]:
        """Names of the conditions that are set."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return frozenset(name for name, value in values.items() if value is not None and len(value))

    def rows(self, index: Tensor) -> "Conditions":
        """The conditions of some of the rows."""

        def chosen(tensor: Tensor) -> Tensor:
            return tensor[index.to(tensor.device)]

        rows = index.tolist() if self.low_rank else ()
        low_rank = {name: [terms[row] for row in rows] for name, terms in self.low_rank.items()}
        return replace(self._changed(chosen, chosen), low_rank=low_rank)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Conditions":
        """The same on a device and in a dtype. Sizes and the guidance scale keep their dtype."""
        moved = {id(term): term for terms in self.low_rank.values() for term in terms if term is not None}
        low_rank = {key: (down.to(device, dtype), up.to(device, dtype)) for key, (down, up) in moved.items()}
        changed = self._changed(lambda tensor: tensor.to(device, dtype), lambda tensor: tensor.to(device))
        return replace(
            changed,
            low_rank={
                name: [None if term is None else low_rank[id(term)] for term in terms]
                for name, terms in self.low_rank.items()
            },
        )

    def _changed(self, change: Callable[[Tensor], Tensor], exact: Callable[[Tensor], Tensor]) -> "Conditions":
        return Conditions(
            None if self.pooled is None else change(self.pooled),
            None if self.sizes is None else exact(self.sizes),
            None if self.guidance is None else exact(self.guidance),
            [change(residual) for residual in self.residuals],
            [change(feature) for feature in self.features],
            [change(prompt) for prompt in self.image_prompts],
        )


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Cosines, then sines, of the timesteps at geometrically spaced frequencies (Vaswani et al. 2017).

    Args:
        timesteps: [B], integer or not.
        channels: Number of output channels, even.

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

    Unlike for timesteps, the frequencies reach down to 1 / 10000.
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
        condition_channels: Width of a condition that is projected and added to the input; None for none.
    """

    def __init__(self, in_channels: int, channels: int, condition_channels: int | None = None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, channels)
        self.linear_2 = nn.Linear(channels, channels)
        if condition_channels is not None:
            self.cond_proj = nn.Linear(condition_channels, in_channels, bias=False)

    def forward(
        self, x: Tensor, condition: Tensor | None = None, low_rank: RowFactors | None = None
    ) -> Tensor:
        if condition is not None:
            x = x + linear(self.cond_proj, condition, low_rank)
        return linear(self.linear_2, F.silu(linear(self.linear_1, x, low_rank)), low_rank)


class Stage(nn.Module):
    """A down or up block: residual blocks, with attention after each or none, then a resize.

    Args:
        widths: Input channels of each residual block, including those of the skip.
        channels: Output channels of all of them.
        depth: Number of transformer blocks per attention; 0 for no attention.
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
        """Layer to whose output a T2I-Adapter's feature is added: the last one with attention, else the last
        one."""
        return len(self.resnets) + (0 if self.attentions else len(self.downsamplers)) - 1

    def layer(self, index: int, x: Tensor, given: BlockInputs) -> Tensor:
        """Residual block `index` and the attention after it."""
        x = self.resnets[index](x, given.time, given.low_rank)
        if self.attentions:
            x = self.attentions[index](x, given)
        return x


Stages = Iterable[Stage]
Layers = Iterable[tuple[Stage, int]]


class MidBlock(nn.Module):
    """Residual block, attention, residual block; with depth 0 the first residual block alone."""

    def __init__(self, channels: int, depth: int, heads: int, config: EncoderConfig) -> None:
        super().__init__()
        attends = depth > 0
        self.attentions = nn.ModuleList(
            Transformer2DModel(channels, depth, heads, config) for _ in range(attends)
        )
        self.resnets = nn.ModuleList(_resnet(channels, channels, config) for _ in range(1 + attends))

    def forward(self, x: Tensor, given: BlockInputs) -> Tensor:
        x = self.resnets[0](x, given.time, given.low_rank)
        for index, attend in enumerate(self.attentions, start=1):
            x = self.resnets[index](attend(x, given), given.time, given.low_rank)
        return x


def _resnet(in_channels: int, out_channels: int, config: EncoderConfig) -> ResnetBlock2D:
    return ResnetBlock2D(
        in_channels,
        out_channels,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        time_channels=4 * config.block_out_channels[0],
    )


class DownAndMid(nn.Module):
    """The encoder: the down blocks and the middle block, which a ControlNet has too.

    Args:
        guidance_channels: width of an embedding of the guidance scale that joins the timestep's, or None.

    Attributes:
        gradient_checkpointing: trade time for memory in training.
        run_low_rank: Runs the products of LoRAs.
    """

    def __init__(self, config: EncoderConfig, guidance_channels: int | None = None) -> None:
        super().__init__()
        self.run_low_rank: RowOperator = run_at_once
        self.config = config
        self.guidance_channels = guidance_channels
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
        for level, depth in enumerate(config.down_depths):
            before, channels = widths[max(level - 1, 0)], widths[level]
            inputs = [before] + [channels] * (layers - 1)
            self.down_blocks.append(
                Stage(inputs, channels, depth, config.heads[level], config, down=level < last)
            )

        self.mid_block = MidBlock(widths[-1], config.middle_depth, config.heads[-1], config)

    def _block_inputs(
        self, timesteps: Tensor, context: Tensor, conditions: Conditions, dtype: torch.dtype
    ) -> BlockInputs:
        stretches = {
            self.get_submodule(name): low_rank_stretches(terms) for name, terms in conditions.low_rank.items()
        }
        low_rank = RowFactors(stretches, self.run_low_rank)
        time = timestep_embedding(timesteps, self.config.block_out_channels[0]).to(dtype)
        time = self.time_embedding(time, self._guidance(conditions.guidance, dtype), low_rank)
        if self.config.addition_embed_type == "text_time":
            added = self._text_and_sizes(conditions.pooled, conditions.sizes).to(dtype)
            time = time + self.add_embedding(added, low_rank=low_rank)
        prompts = self._image_prompts(conditions.image_prompts)
        return BlockInputs(F.silu(time), context, low_rank, prompts)  # residual blocks expect it activated

    def _guidance(self, scale: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """[B, guidance_channels], or None for a network without guidance embedding."""
        if self.guidance_channels is None:
            return None
        if scale is None:
            raise ValueError("this U-Net is conditioned on a guidance scale: give it")
        return guidance_embedding(scale, self.guidance_channels).to(dtype)

    def _text_and_sizes(self, pooled: Tensor | None, sizes: Tensor | None) -> Tensor:
        if pooled is None or sizes is None:
            raise ValueError("this network is conditioned on a pooled text embedding and sizes: give both")
        channels = self.config.addition_time_embed_dim or 0
        embedded = timestep_embedding(sizes.flatten(), channels)  # [B*6, channels]
        return torch.cat([pooled.float(), embedded.reshape(len(sizes), -1)], dim=-1)

    def _image_prompts(self, prompts: Sequence[Tensor]) -> dict[nn.Module, list[tuple[Tensor, Tensor]]]:
        """The keys and values of each cross-attention."""
        if not prompts:
            return {}
        layers = attended_layers(cast("UNetConfig", self.config))
        split = [
            torch.split(prompt, list(layers.values()), dim=-1) for prompt in prompts
        ]  # [B, 2, T, C] each
        return {
            self.get_submodule(name): [(pair[:, 0], pair[:, 1]) for pair in pairs]
            for name, *pairs in zip(layers, *split, strict=True)
        }

    def _way_down(self) -> list[tuple[Stage, int]]:
        """All layers before the middle."""
        stages = cast("Stages", self.down_blocks)
        return [(s, i) for s in stages for i in range(len(s.resnets) + len(s.downsamplers))]

    def _descend(
        self, layers: Layers, skips: list[Tensor], given: BlockInputs, features: list[Tensor] | None = None
    ) -> None:
        """Run layers of the down blocks from the last of `skips`, and append the output of each.

        At the end of a level the first of `features` is taken off and added.
        """
        checkpointed = self.gradient_checkpointing
        for stage, index in layers:
            if index < len(stage.resnets):
                x = run_block(stage.layer, index, skips[-1], given, checkpointed=checkpointed)
            else:
                x = stage.downsamplers[0](skips[-1])
            if features and index == stage.joined:
                x = x + features.pop(0)
            skips.append(x)

    def _middle(self, x: Tensor, given: BlockInputs) -> Tensor:
        y: Tensor = run_block(self.mid_block, x, given, checkpointed=self.gradient_checkpointing)
        return y


class UNet2DConditionModel(DownAndMid):
    """The denoising network."""

    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config, config.time_cond_proj_dim)
        widths, skips = config.block_out_channels, list(config.skip_channels)
        self.up_blocks = nn.ModuleList()
        below = widths[-1]
        for depth, level in zip(config.up_depths, reversed(range(len(widths))), strict=True):
            channels = widths[level]
            inputs = [before + skips.pop() for before in [below] + [channels] * config.layers_per_block]
            self.up_blocks.append(Stage(inputs, channels, depth, config.heads[level], config, up=level > 0))
            below = channels

        self.conv_norm_out = GroupNormSiLU(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, conditions: Conditions | None = None
    ) -> Tensor:
        """Predict noise, velocity or clean latents, depending on how the weights were trained.

        Args:
            x: [B, in_channels, h, w], any h and w.
            timesteps: [B], each row its own.
            context: [B, T, cross_attention_dim].
            conditions: Further inputs.

        Returns:
            [B, out_channels, h, w].

        Raises:
            ValueError: a condition that this network needs is missing, or there are too many features.
        """
        return self.forward_keeping(x, timesteps, context, conditions)[0]

    def forward_keeping(
        self, x: Tensor, timesteps: Tensor, context: Tensor, conditions: Conditions | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, and the deep features [B, C, h', w'] that `forward_reusing` takes."""
        conditions = conditions or Conditions()
        given = self._block_inputs(timesteps, context, conditions, x.dtype)
        down, up = self._way_down(), self._way_up()
        features = self._features(conditions.features)
        skips = [self.conv_in(x)]  # concatenated to the inputs of the up blocks' layers, the last one first
        self._descend(down, skips, given, features)
        middle = self._middle(skips[-1], given)
        for feature in features:  # the one for the middle block, if any
            middle = middle + feature
        if conditions.residuals:
            *outer, inner = conditions.residuals
            skips = [skip + residual for skip, residual in zip(skips, outer, strict=True)]
            middle = middle + inner
        deep = self._ascend(up[:-OUTER], middle, skips, given)
        return self._finish(deep, skips, given), deep

    def forward_reusing(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        deep: Tensor,
        conditions: Conditions | None = None,
    ) -> Tensor:
        """As `forward`, but only the outermost layers run (DeepCache: Ma et al. 2023).

        Args:
            deep: the deep features of `forward_keeping`, for the same rows at a noise level nearby. They
                replace the output of the inner layers, which changes little from step to step.
            conditions: residuals and features are not used: they went into the deep features.
        """
        given = self._block_inputs(timesteps, context, conditions or Conditions(), x.dtype)
        skips = [self.conv_in(x)]
        self._descend(self._way_down()[: OUTER - 1], skips, given)
        return self._finish(deep, skips, given)

    def _finish(self, deep: Tensor, skips: list[Tensor], given: BlockInputs) -> Tensor:
        x = self._ascend(self._way_up()[-OUTER:], deep, skips, given)
        y: Tensor = self.conv_out(self.conv_norm_out(x))
        return y

    def _way_up(self) -> list[tuple[Stage, int]]:
        """All layers after the middle."""
        return [(s, i) for s in cast("Stages", self.up_blocks) for i in range(len(s.resnets))]

    def _ascend(self, layers: Layers, x: Tensor, skips: list[Tensor], given: BlockInputs) -> Tensor:
        """Run layers of the up blocks, each on its input and the last of `skips`, which is removed."""
        checkpointed = self.gradient_checkpointing
        for stage, index in layers:
            x = torch.cat([x, skips.pop()], dim=1)
            x = run_block(stage.layer, index, x, given, checkpointed=checkpointed)
            if stage.upsamplers and index == len(stage.resnets) - 1:
                x = stage.upsamplers[0](x, skips[-1].shape[2:])  # the down blocks round up odd sizes
        return x

    def _features(self, given: Sequence[Tensor]) -> list[Tensor]:
        """The features of each level, and those of the middle block if there are any."""
        levels = len(self.config.block_out_channels)
        if given and len(given) not in (levels, levels + 1):
            raise ValueError(
                f"{len(given)} features were given, expected one for each of {levels} levels, or one more"
            )
        return list(given)
