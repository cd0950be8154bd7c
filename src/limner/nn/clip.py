"""CLIP: transformers that embed text and images in one space (Radford et al. 2021).

Stable Diffusion conditions its U-Net on the text encoder's last hidden states. Attribute names follow
the hub's files (`text_model.encoder.layers.0.self_attn.q_proj`).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from .config import require
from .layers import attention, run_block


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation x * sigmoid(1.702 x), which its CLIP weights were trained with."""
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class SelfAttention(nn.Module):
    """Multi-head self-attention, causal in the text encoder."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal=causal)
        y: Tensor = self.out_proj(x)
        return y


class MLP(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.activation(self.fc1(x)))
        return y


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each residual and normalised before."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), causal)
        y: Tensor = self.mlp(self.layer_norm2(x))
        return x + y


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, *, causal: bool, checkpointed: bool) -> list[Tensor]:
        """The hidden states before the first layer and behind each layer: each [B, T, C]."""
        states = [x]
        for layer in self.layers:
            states.append(run_block(layer, states[-1], causal, checkpointed=checkpointed))
        return states


class TextEmbeddings(nn.Module):
    """Token plus position."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: Tensor, learned: Tensor | None = None) -> Tensor:
        size = self.token_embedding.num_embeddings
        if learned is None:
            tokens: Tensor = self.token_embedding(input_ids)
        else:
            tokens = self.token_embedding(input_ids.clamp(max=size - 1))
            beyond = input_ids >= size
            tokens[beyond] = learned[input_ids[beyond] - size].to(tokens)
        return tokens + self.position_embedding.weight[: input_ids.shape[1]]


class TextTransformer(nn.Module):
    """Embeddings, layers, final norm."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


class CLIPTextModel(nn.Module):
    """CLIP's text encoder; with `config.projection` it is the hub's CLIPTextModelWithProjection.

    Attributes:
        gradient_checkpointing: trade time for memory in training.
    """

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.text_model = TextTransformer(config)
        if config.projection:
            self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        clip_skip: int = 1,
        *,
        final_norm: bool = True,
        learned: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embed tokens.

        Args:
            input_ids: [B, T], T at most `max_position_embeddings`. The end token has the largest id,
                which is how CLIP finds it.
            clip_skip: how many layers before the end the hidden states are taken, counted as
                AUTOMATIC1111 does: 1 is the last layer, 2 the one before it.
            final_norm: whether the hidden states pass through the final norm, as 1.x and 2.x have it; XL
                takes them as they are.
            learned: vectors [n, C] of the ids from the vocabulary's size on (textual inversion).

        Returns:
            hidden states [B, T, C], and the pooled embedding [B, C or projection_dim] at the end token,
            always of the last layer and behind the final norm.

        Raises:
            ValueError: clip_skip is outside 1 to the number of layers.
        """
        layers = self.config.num_hidden_layers
        require(1 <= clip_skip <= layers, f"clip_skip is {clip_skip}; this text encoder has {layers} layers")
        model = self.text_model
        states = model.encoder(
            model.embeddings(input_ids, learned), causal=True, checkpointed=self.gradient_checkpointing
        )
        last = model.final_layer_norm(states[-1])
        hidden = states[-clip_skip]
        if final_norm:
            hidden = last if clip_skip == 1 else model.final_layer_norm(hidden)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        known = input_ids.where(input_ids < self.config.vocab_size, -1)
        pooled = last[rows, known.argmax(dim=-1)]
        return hidden, self.text_projection(pooled) if self.config.projection else pooled


class VisionEmbeddings(nn.Module):
    """A class token and the image's patches, plus position."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        require(
            config.image_size % config.patch_size == 0,
            f"image_size {config.image_size} must be a multiple of patch_size {config.patch_size}",
        )
        patches = (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.randn(config.hidden_size) * 0.02)
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(patches + 1, config.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [B, C, h, w] -> [B, h*w, C]
        first = self.class_embedding.expand(len(pixels), 1, -1).to(patches.dtype)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class VisionTransformer(nn.Module):
    """Embeddings, norm, layers, norm."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)  # sic, on the hub
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


class CLIPVisionModel(nn.Module):
    """CLIP's image encoder; with `config.projection` it is the hub's CLIPVisionModelWithProjection.

    Attributes:
        gradient_checkpointing: trade time for memory in training.
    """

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.vision_model = VisionTransformer(config)
        if config.projection:
            self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, pixels: Tensor, clip_skip: int = 1) -> tuple[Tensor, Tensor]:
        """Embed images.

        Args:
            pixels: [B, 3, image_size, image_size], normalised as the weights expect.
            clip_skip: how many layers before the end the hidden states are taken; 1 is the last layer.

        Returns:
            hidden states [B, 1 + patches, C], not normalised, and the pooled embedding [B, C or
            projection_dim] of the class token, always of the last layer.
        """
        model = self.vision_model
        x = model.pre_layrnorm(model.embeddings(pixels))
        states = model.encoder(x, causal=False, checkpointed=self.gradient_checkpointing)
        pooled = model.post_layernorm(states[-1][:, 0])
        return states[-clip_skip], self.visual_projection(pooled) if self.config.projection else pooled
