"""IP-Adapter: images as prompts (Ye et al. 2023).

The output of CLIP's image encoder is projected to a few tokens, to which each cross-attention of a U-Net
attends in addition to the text, with keys and values of their own. This network makes those keys and values;
the U-Net stays as it is. Parameter names are those of the published files (`ip_adapter.1.to_k_ip.weight`).
"""

import torch
from torch import Tensor, nn

from .ip_adapter_config import HEAD, IPAdapterConfig
from .layers import attention


class LinearProjection(nn.Module):
    """Tokens from a pooled embedding."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.tokens = config.tokens
        self.proj = nn.Linear(config.image_channels, config.tokens * config.context_channels)
        self.norm = nn.LayerNorm(config.context_channels)

    def forward(self, seen: Tensor) -> Tensor:
        y: Tensor = self.norm(self.proj(seen).unflatten(-1, (self.tokens, -1)))
        return y


class MLPProjection(nn.Module):
    """A token from each hidden state."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Linear(config.image_channels, config.image_channels),
            nn.GELU(),
            nn.Linear(config.image_channels, config.context_channels),
            nn.LayerNorm(config.context_channels),
        )

    def forward(self, seen: Tensor) -> Tensor:
        y: Tensor = self.proj(seen)
        return y


class ResamplerAttention(nn.Module):
    """Attention of latents to hidden states and to themselves."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, heads * HEAD, bias=False)
        self.to_kv = nn.Linear(channels, 2 * heads * HEAD, bias=False)
        self.to_out = nn.Linear(heads * HEAD, channels, bias=False)

    def forward(self, latents: Tensor, seen: Tensor) -> Tensor:
        latents = self.norm2(latents)
        k, v = self.to_kv(torch.cat([self.norm1(seen), latents], dim=1)).chunk(2, dim=-1)
        y: Tensor = self.to_out(attention(self.to_q(latents), k, v, self.heads))
        return y


class Resampler(nn.Module):
    """A few learned latents that read all hidden states, as Flamingo's perceiver (Alayrac et al. 2022)."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        channels = config.channels
        self.latents = nn.Parameter(torch.randn(1, config.tokens, channels) / channels**0.5)
        self.proj_in = nn.Linear(config.image_channels, channels)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    ResamplerAttention(channels, config.heads),
                    nn.Sequential(
                        nn.LayerNorm(channels),
                        nn.Linear(channels, 4 * channels, bias=False),
                        nn.GELU(),
                        nn.Linear(4 * channels, channels, bias=False),
                    ),
                ]
            )
            for _ in range(config.depth)
        )
        self.proj_out = nn.Linear(channels, config.context_channels)
        self.norm_out = nn.LayerNorm(config.context_channels)

    def forward(self, seen: Tensor) -> Tensor:
        seen = self.proj_in(seen)
        latents = self.latents.expand(len(seen), -1, -1)
        for layer in self.layers:
            attend, feed_forward = layer.children()
            latents = latents + attend(latents, seen)
            latents = latents + feed_forward(latents)
        y: Tensor = self.norm_out(self.proj_out(latents))
        return y


class KeysAndValues(nn.Module):
    """The keys and values of tokens for one cross-attention."""

    def __init__(self, context_channels: int, channels: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(context_channels, channels, bias=False)
        self.to_v_ip = nn.Linear(context_channels, channels, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_k_ip(tokens), self.to_v_ip(tokens)


_PROJECTIONS = {"linear": LinearProjection, "mlp": MLPProjection, "resampler": Resampler}


class IPAdapter(nn.Module):
    """The whole adapter: from an image encoder's output to keys and values of every cross-attention."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.image_proj = _PROJECTIONS[config.form](config)
        # The files number all attentions of the U-Net, of which every second one attends to a context.
        self.ip_adapter = nn.ModuleDict(
            {
                str(2 * number + 1): KeysAndValues(config.context_channels, channels)
                for number, channels in enumerate(config.layers)
            }
        )

    def forward(self, seen: Tensor) -> Tensor:
        """The keys and values of all cross-attentions, concatenated.

        Args:
            seen: [B, image_channels] pooled embeddings for the form "linear", else [B, N, image_channels]
                hidden states of the last layer but one.

        Returns:
            [B, 2, T, sum(layers)].
        """
        tokens = self.image_proj(seen)  # [B, T, context_channels]
        pairs = [layer(tokens) for layer in self.ip_adapter.values()]  # keys and values [B, T, C] of each
        return torch.stack([torch.cat(side, dim=-1) for side in zip(*pairs, strict=True)], dim=1)
