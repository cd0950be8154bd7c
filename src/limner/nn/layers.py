"""Layers that the U-Net and the autoencoder share.

Attribute names are the hub's parameter names (`norm1`, `conv_shortcut`, `to_out.0` …), so a
checkpoint's keys are exactly a module's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, *, causal: bool = False) -> Tensor:
    """Multi-head scaled dot-product attention (Vaswani et al. 2017).

    Args:
        q: [B, N, C].
        k, v: [B, M, C].
        heads: Number of parts that C is split into.
        causal: Whether a token attends only to itself and those before it.

    Returns:
        [B, N, C].
    """
    q, k, v = (
        t.reshape(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v)
    )  # [B, heads, N, C/heads]
    joined: Tensor
    if q.requires_grad and q.device.type == "cpu":
        # On CPUs the fused kernel's backward pass takes several times as long as this one's.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [B, heads, N, M]
        if causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        joined = scores.softmax(-1).to(v.dtype) @ v
    else:
        joined = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return joined.transpose(1, 2).flatten(2)


Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""q, k, v and the number of heads, as `attention` takes them."""

_BLOCK_ROWS, _BLOCK_SCORES = 512, 1 << 22  # rows of queries, and scores, in one block


def attention_in_blocks(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """As `attention`, by plain products of blocks that stay in the processor's cache.

    Slower than the fused kernel on GPUs and Intel, and twice as fast in bfloat16 on AMD. No gradients.
    """
    (batch, rows, channels), depth = q.shape, q.shape[2] // heads
    q, k, v = (
        t.reshape(batch, -1, heads, depth).transpose(1, 2).reshape(batch * heads, -1, depth)
        for t in (q, k, v)
    )  # [B*heads, N or M, D]
    step = min(rows, _BLOCK_ROWS)
    heads_per_block = max(1, _BLOCK_SCORES // (step * k.shape[1]))
    keys, joined, nothing = k.transpose(1, 2), torch.empty_like(q), q.new_empty(1, 1, 1)
    for head in range(0, batch * heads, heads_per_block):
        head_block = slice(head, head + heads_per_block)
        for row in range(0, rows, step):
            row_block = slice(row, row + step)
            # With beta 0 the first argument is not read: this is the product, scaled in the same pass.
            scores = torch.baddbmm(
                nothing, q[head_block, row_block], keys[head_block], beta=0, alpha=depth**-0.5
            )
            torch.bmm(scores.softmax(-1), v[head_block], out=joined[head_block, row_block])
    joined = joined.reshape(batch, heads, rows, depth).transpose(1, 2)
    return joined.reshape(batch, rows, channels)


LowRankTerm = tuple[Tensor, Tensor]
"""Down [rank, in] and up [out, rank] of a LoRA (Hu et al. 2021) of one layer, with its scale."""

LowRankStretch = tuple[slice, LowRankTerm | None]
"""Consecutive rows of a batch, and down [r, rank, in] and up [r, out, rank] for these r rows, or None."""


RowOperator = Callable[..., Tensor]
"""Runs an operator on tensors [R, ...], on all rows at once or on fewer.

Its arguments are the operator, a name for what the result depends on besides the tensors, and the tensors.
"""


def run_at_once(operator: Callable[..., Tensor], geometry: str, *inputs: Tensor) -> Tensor:
    """The operator's output for all rows at once: the plain `RowOperator`."""
    return operator(*inputs)


@dataclass(frozen=True, eq=False)
class RowFactors:
    """The LoRAs of the rows of a batch.

    Attributes:
        layers: Layer -> stretches that cover all rows in order. Each has rows of one rank, so that nothing is
            padded and the bits of a row do not depend on the ranks of others.
        run: Runs the products.
    """

    layers: Mapping[nn.Module, Sequence[LowRankStretch]]
    run: RowOperator = run_at_once

    def of(self, layer: nn.Module) -> Sequence[LowRankStretch]:
        """The stretches of rows for a layer; none if no LoRA changes it."""
        return self.layers.get(layer, ())

    def change(self, x: Tensor, term: LowRankTerm) -> Tensor:
        """The change of the outputs for rows x by LoRAs, in the shape [r, out, h, w], [r, N, out] or [r,
        out]."""
        down, up = term
        if x.ndim == 4:  # a 1x1 convolution: [r, in, h, w]
            change = self.run(_convolved, "low-rank convolution", x.flatten(2), down, up)
            return change.reshape(*change.shape[:2], *x.shape[2:])
        rows = x.reshape(len(x), -1, x.shape[-1])  # [r, N, in]
        change = self.run(_multiplied, "low-rank product", rows, down, up)
        return change.reshape(*x.shape[:-1], -1)


def _convolved(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """[r, in, N] -> [r, out, N]."""
    return torch.bmm(up, torch.bmm(down, x))


def _multiplied(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """[r, N, in] -> [r, N, out]."""
    return torch.bmm(torch.bmm(x, down.transpose(1, 2)), up.transpose(1, 2))


def low_rank_stretches(rows: Sequence[LowRankTerm | None]) -> list[LowRankStretch]:
    """The terms of all rows of a batch for one layer, stacked where neighbours have the same rank."""
    stretches, first = list[LowRankStretch](), 0
    for _, group in groupby(rows, lambda term: 0 if term is None else len(term[0])):
        terms = list(group)
        known = [term for term in terms if term is not None]
        stacked = (torch.stack([d for d, _ in known]), torch.stack([u for _, u in known])) if known else None
        stretches.append((slice(first, first + len(terms)), stacked))
        first += len(terms)
    return stretches


def linear(layer: nn.Module, x: Tensor, low_rank: RowFactors | None = None) -> Tensor:
    """A linear layer or 1x1 convolution, with a low-rank term for rows that have one (LoRA: Hu et al. 2021):

        y[r] = layer(x[r]) + x[r] @ down[r].T @ up[r].T

    So rows with different adapters share a forward pass, which is faster than a pass for each adapter where
    one image alone does not keep the processor busy.

    Args:
        x: [B, ..., in], or [B, in, h, w] for a convolution.
        low_rank: The LoRAs. Layers and rows without one stay as they are.
    """
    y: Tensor = layer(x)
    if low_rank is not None:
        for rows, term in low_rank.of(layer):
            if term is not None:
                y[rows] += low_rank.change(x[rows], term)
    return y


def run_block(block: Callable[..., Any], *args: Any, checkpointed: bool) -> Any:
    """`block(*args)`; with `checkpointed`, activations are recomputed in the backward pass."""
    if checkpointed and torch.is_grad_enabled():
        return checkpoint(block, *args, use_reentrant=False)
    return block(*args)


class GroupNormSiLU(nn.GroupNorm):
    """Group norm, then SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class ResnetBlock2D(nn.Module):
    """GroupNorm, SiLU, convolution, twice, around a residual; the time embedding joins in between.

    Args:
        time_channels: width of the time embedding, or None in the autoencoder, which has none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        time_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = GroupNormSiLU(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = None if time_channels is None else nn.Linear(time_channels, out_channels)
        self.norm2 = GroupNormSiLU(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor | None = None, low_rank: RowFactors | None = None) -> Tensor:
        """x: [B, C, h, w]; time: [B, T], already through SiLU. Returns [B, out_channels, h, w]."""
        h: Tensor = self.conv1(self.norm1(x))
        if self.time_emb_proj is not None:
            assert time is not None
            h = h + linear(self.time_emb_proj, time, low_rank)[:, :, None, None]
        h = self.conv2(self.norm2(h))
        if self.conv_shortcut is not None:
            x = linear(self.conv_shortcut, x, low_rank)
        return x + h


class Downsample2D(nn.Module):
    """Halve height and width with a strided convolution.

    Args:
        padding: 1 pads all sides (U-Net); 0 pads only right and below (autoencoder).
    """

    def __init__(self, channels: int, *, padding: int) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1)) if padding == 0 else nn.Identity()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.pad(x))
        return y


class Upsample2D(nn.Module):
    """Nearest-neighbour enlargement, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Enlarge x to `size` = (h, w): twice its own, or one less where halving rounded up."""
        y: Tensor = self.conv(F.interpolate(x, size=size, mode="nearest"))
        return y
