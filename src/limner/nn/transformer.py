"""The transformer of the U-Net's blocks: self-attention and cross-attention over the pixels of a feature map.

Rombach et al. 2022, section 3.3. LoRAs of the rows and image prompts take part in it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Attention, RowFactors, attention, linear
from .unet_config import EncoderConfig


class BlockInputs(NamedTuple):
    """Inputs of every block of a forward pass besides its feature map.

    Attributes:
        time: Sum of the embeddings of timestep, guidance, text and sizes [B, 4 * widths[0]], after SiLU.
        context: Hidden states of the text [B, T, cross_attention_dim].
        low_rank: The LoRAs of the rows.
        image_prompts: cross-attention -> keys and values [B, T, C] of each IP-Adapter.
    """

    time: Tensor
    context: Tensor
    low_rank: RowFactors
    image_prompts: Mapping[nn.Module, Sequence[tuple[Tensor, Tensor]]]


class CrossAttention(nn.Module):
    """Attention of tokens to a context (to themselves, where they are the context), and to image prompts:

        y[r] = attend(q[r], k[r], v[r]) + sum over i of attend(q[r], keys_i[r], values_i[r])

    (IP-Adapter: Ye et al. 2023, equation 5).

    Attributes:
        attend: The implementation of attention.
    """

    def __init__(self, channels: int, context_channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attend: Attention = attention
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        low_rank: RowFactors | None = None,
        image_prompts: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> Tensor:
        """x: [B, N, C]; context: [B, T, context_channels]; image_prompts: keys and values [B, T, C] each."""
        q = linear(self.to_q, x, low_rank)
        k, v = linear(self.to_k, context, low_rank), linear(self.to_v, context, low_rank)
        y = self.attend(q, k, v, self.heads)
        for keys, values in image_prompts:
            y = y + self.attend(q, keys, values, self.heads)
        return linear(self.to_out[0], y, low_rank)


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another (Shazeer 2020)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor, low_rank: RowFactors | None = None) -> Tensor:
        x, gate = linear(self.proj, x, low_rank).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The hub's numbering has a dropout at 1.
        self.net = nn.ModuleList(
            [GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)]
        )

    def forward(self, x: Tensor, low_rank: RowFactors | None = None) -> Tensor:
        return linear(self.net[2], self.net[0](x, low_rank), low_rank)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward; each residual, with its norm first."""

    def __init__(self, channels: int, context_channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = CrossAttention(channels, channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = CrossAttention(channels, context_channels, heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, given: BlockInputs) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h, given.low_rank)
        prompts = given.image_prompts.get(self.attn2, ())
        x = x + self.attn2(self.norm2(x), given.context, given.low_rank, prompts)
        y: Tensor = self.ff(self.norm3(x), given.low_rank)
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

    def forward(self, x: Tensor, given: BlockInputs) -> Tensor:
        h: Tensor = self.norm(x)
        if not self.linear:
            h = linear(self.proj_in, h, given.low_rank)
        h = h.flatten(2).transpose(1, 2)  # [B, C, h, w] -> [B, h*w, C]
        if self.linear:
            h = linear(self.proj_in, h, given.low_rank)
        for block in self.transformer_blocks:
            h = block(h, given)
        if self.linear:
            h = linear(self.proj_out, h, given.low_rank)
        h = h.transpose(1, 2).reshape(x.shape)  # [B, h*w, C] -> [B, C, h, w]
        if not self.linear:
            h = linear(self.proj_out, h, given.low_rank)
        return x + h
