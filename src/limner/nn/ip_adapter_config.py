"""Geometry of an IP-Adapter."""

from dataclasses import dataclass
from typing import Literal

Form = Literal["linear", "mlp", "resampler"]

HEAD = 64  # channels of a head of the resampler


@dataclass(frozen=True)
class IPAdapterConfig:
    """Geometry of an IP-Adapter.

    Attributes:
        form: projection to tokens: "linear" from the encoder's pooled embedding (the plain adapters), "mlp"
            each from one of its hidden states (full-face), "resampler" from all of these (plus).
        image_channels: channels of the encoder's output.
        context_channels: channels of a token, those of the U-Net's text embeddings.
        layers: channels of each cross-attention of the U-Net, in the order of `attended_layers`.
        tokens: tokens per image; 0 for "mlp", which makes one of each hidden state.
        channels, heads, depth: geometry of the resampler.
    """

    form: Form
    image_channels: int
    context_channels: int
    layers: tuple[int, ...]
    tokens: int = 0
    channels: int = 0
    heads: int = 0
    depth: int = 0
