"""The pieces that the U-Net and the autoencoder share.

Attribute names are the hub's parameter names (`norm1`, `conv_shortcut`, `to_out.0` …), so a
checkpoint's keys are exactly a module's.
"""

from collections.abc import Callable
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
        heads: how many parts C is split into.
        causal: whether a token sees only itself and those before it.

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
    """As `attention`, as plain products of blocks that stay in the processor's cache.

    Slower than the fused kernel where that is at home (GPUs, Intel), and twice as fast in bfloat16 where it
    is not. No gradients.
    """
    (batch, rows, channels), depth = q.shape, q.shape[2] // heads
    q, k, v = (
        t.reshape(batch, -1, heads, depth).transpose(1, 2).reshape(batch * heads, -1, depth)
        for t in (q, k, v)
    )  # [B*heads, N or M, D]
    step = min(rows, _BLOCK_ROWS)
    abreast = max(1, _BLOCK_SCORES // (step * k.shape[1]))  # heads
    keys, joined, nothing = k.transpose(1, 2), torch.empty_like(q), q.new_empty(1, 1, 1)
    for head in range(0, batch * heads, abreast):
        some = slice(head, head + abreast)
        for row in range(0, rows, step):
            few = slice(row, row + step)
            # With beta 0 the first argument is not read: this is the product, scaled in the same pass.
            scores = torch.baddbmm(nothing, q[some, few], keys[some], beta=0, alpha=depth**-0.5)
            torch.bmm(scores.softmax(-1), v[some], out=joined[some, few])
    joined = joined.reshape(batch, heads, rows, depth).transpose(1, 2)
    return joined.reshape(batch, rows, channels)


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

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x: [B, C, h, w]; time: [B, T], already through SiLU. Returns [B, out_channels, h, w]."""
        h: Tensor = self.conv1(self.norm1(x))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.conv2(self.norm2(h))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
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
