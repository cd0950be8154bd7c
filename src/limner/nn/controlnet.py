"""ControlNet: a U-Net follows a control image of edges, depth, poses … (Zhang et al. 2023).

It is a copy of the U-Net's way down and middle, which is given the embedded control image with the latents.
Its outputs are added to the U-Net's skips and middle.
"""

from dataclasses import fields
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .control_config import ControlNetConfig
from .unet import Conditions, DownAndMid, UNet2DConditionModel
from .unet_config import EncoderConfig


class ConditioningEmbedding(nn.Module):
    """Convolutions from a control image to the size of latents, with SiLU in between; zero at first."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        widths = config.conditioning_embedding_out_channels
        self.conv_in = nn.Conv2d(config.conditioning_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for before, channels in pairwise(widths):
            self.blocks.append(nn.Conv2d(before, before, 3, padding=1))
            self.blocks.append(nn.Conv2d(before, channels, 3, padding=1, stride=2))
        self.conv_out = _of_zeros(nn.Conv2d(widths[-1], config.block_out_channels[0], 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        x = F.silu(self.conv_in(image))
        for block in self.blocks:
            x = F.silu(block(x))
        y: Tensor = self.conv_out(x)
        return y


class ControlNetModel(DownAndMid):
    """The control network: residuals for a U-Net's skips and middle."""

    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        self.controlnet_cond_embedding = ConditioningEmbedding(config)
        self.controlnet_down_blocks = nn.ModuleList(
            _of_zeros(nn.Conv2d(channels, channels, 1)) for channels in config.skip_channels
        )
        channels = config.block_out_channels[-1]
        self.controlnet_mid_block = _of_zeros(nn.Conv2d(channels, channels, 1))

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel, **own: Any) -> "ControlNetModel":
        """Return an untrained ControlNet: a copy of the U-Net's encoder whose residuals are zero.

        Its input is the latents alone, even if the U-Net has more input channels (a mask …).

        Args:
            own: fields of `ControlNetConfig` that a U-Net's config lacks.
        """
        shared = {field.name: getattr(unet.config, field.name) for field in fields(EncoderConfig)}
        control = cls(ControlNetConfig(**{**shared, "in_channels": unet.config.out_channels, **own}))
        weights = unet.state_dict()
        weights["conv_in.weight"] = weights["conv_in.weight"][:, : control.config.in_channels]
        copied = {name: weights[name] for name in control.state_dict() if name in weights}
        control.load_state_dict(copied, strict=False)
        return control

    def embed(self, image: Tensor) -> Tensor:
        """The embedding of a control image, which is the same at every step.

        Args:
            image: [B, conditioning_channels, H, W] in [0, 1], in the order red, green, blue.

        Returns:
            [B, widths[0], h, w].
        """
        if self.config.controlnet_conditioning_channel_order == "bgr":
            image = image.flip(1)
        y: Tensor = self.controlnet_cond_embedding(image)
        return y

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        embedding: Tensor,
        conditions: Conditions | None = None,
    ) -> list[Tensor]:
        """Residuals for each skip of the U-Net, the input's first, and for its middle.

        Args:
            x: [B, in_channels, h, w].
            embedding: from `embed`, [B, widths[0], h, w].
            timesteps, context: as `UNet2DConditionModel.forward`.
            conditions: pooled text and sizes, where the network takes them.

        Returns:
            [B, C, h', w'] for each of `config.skip_channels`, and for the middle. With
            `global_pool_conditions` h' and w' are 1.
        """
        given = self._block_inputs(timesteps, context, conditions or Conditions(), x.dtype)
        maps = [self.conv_in(x) + embedding]
        self._descend(self._way_down(), maps, given)
        maps.append(self._middle(maps[-1], given))
        layers = [*self.controlnet_down_blocks, self.controlnet_mid_block]
        added = [layer(each) for layer, each in zip(layers, maps, strict=True)]
        if self.config.global_pool_conditions:
            added = [each.mean(dim=(2, 3), keepdim=True) for each in added]
        return added


def _of_zeros(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with zero weights, so that training begins from the U-Net as it is."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
