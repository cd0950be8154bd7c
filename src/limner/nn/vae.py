"""AutoencoderKL: images to latents and back (Rombach et al. 2022, section 3.1; Kingma & Welling 2014).

An encoder gives mean and log-variance of a Gaussian per latent pixel, a decoder turns latents into an
image. Latents are `2 ** (levels - 1)` times smaller than the image in each direction.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from .layers import Attention, Downsample2D, GroupNormSiLU, ResnetBlock2D, Upsample2D, attention, run_block
from .vae_config import VAEConfig

_EPS = 1e-6  # of every normalisation in this network


class SelfAttention2D(nn.Module):
    """Single-head attention over all pixels, residual.

    Attributes:
        attend: Attention function.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.attend: Attention = attention
        self.group_norm = nn.GroupNorm(groups, channels, _EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # [B, C, h, w] -> [B, h*w, C]
        tokens = self.attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), 1)
        y: Tensor = self.to_out[0](tokens)
        return x + y.transpose(1, 2).reshape(x.shape)


class Stage(nn.Module):
    """Residual blocks at one resolution, then a change to the next, or none."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        groups: int,
        *,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(
            ResnetBlock2D(a, b, groups=groups, eps=_EPS) for a, b in pairwise(widths)
        )
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels, padding=0)] if down else [])
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)] if up else [])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
        for upsampler in self.upsamplers:
            x = upsampler(x, (2 * x.shape[2], 2 * x.shape[3]))
        return x


class MidBlock(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([SelfAttention2D(channels, groups)])
        self.resnets = nn.ModuleList(
            ResnetBlock2D(channels, channels, groups=groups, eps=_EPS) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x)))
        return y


class Encoder(nn.Module):
    """Image [B, 3, H, W] -> moments [B, 2 * latent_channels, h, w]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Stage(a, b, config.layers_per_block, groups, down=level < len(widths) - 1)
            for level, (a, b) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = GroupNormSiLU(groups, widths[-1], _EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor, checkpointed: bool) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = run_block(block, x, checkpointed=checkpointed)
        x = run_block(self.mid_block, x, checkpointed=checkpointed)
        moments: Tensor = self.conv_out(self.conv_norm_out(x))
        return moments


class Decoder(nn.Module):
    """Latents [B, latent_channels, h, w] -> image [B, 3, H, W]; one more residual block per level than the
    encoder."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            Stage(a, b, config.layers_per_block + 1, groups, up=level < len(widths) - 1)
            for level, (a, b) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.conv_norm_out = GroupNormSiLU(groups, widths[-1], _EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, checkpointed: bool) -> Tensor:
        x = run_block(self.mid_block, self.conv_in(x), checkpointed=checkpointed)
        for block in self.up_blocks:
            x = run_block(block, x, checkpointed=checkpointed)
        images: Tensor = self.conv_out(self.conv_norm_out(x))
        return images


class AutoencoderKL(nn.Module):
    """The autoencoder of Stable Diffusion.

    Attributes:
        gradient_checkpointing: Whether to recompute activations in the backward pass, to save memory.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The Gaussian of each latent pixel.

        Args:
            images: [B, 3, H, W] in [-1, 1]; H and W multiples of `config.downscale`.

        Returns:
            mean and log-variance, each [B, latent_channels, h, w], not scaled; the log-variance is
            clamped to [-30, 20].
        """
        moments = self.quant_conv(self.encoder(images, self.gradient_checkpointing))
        mean, logvar = torch.chunk(moments, 2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, latent_channels, h, w], not scaled, to images [B, 3, H, W], about [-1, 1]."""
        images: Tensor = self.decoder(self.post_quant_conv(latents), self.gradient_checkpointing)
        return images
