"""ControlNet: a picture of edges, depth, poses … that a U-Net keeps to (Zhang et al. 2023).

It is a copy of the U-Net's way down and middle, which is shown the picture beside the latents. What it finds
is added to what the U-Net's own way down hands to its way up.
"""

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .config import require
from .unet import Encoder, EncoderConfig, UNet2DConditionModel

_MIDDLES = {"UNetMidBlock2DCrossAttn": True, "UNetMidBlock2D": False}  # name -> has attention


@dataclass(frozen=True)
class ControlNetConfig(EncoderConfig):
    """Geometry of a ControlNet, which is its U-Net's but for what follows.

    Attributes:
        mid_block_type: the smallest ControlNets for XL have no attention in the middle.
        conditioning_channels: of the picture.
        conditioning_embedding_out_channels: of the layers that bring the picture to the size of the latents;
            each but the first halves it.
        controlnet_conditioning_channel_order: of the pictures that it was trained on, "rgb" or "bgr".
        global_pool_conditions: what it adds is the same everywhere, as it is meant to say what is in the
            picture and not where ("shuffle").
    """

    network = "ControlNetModel"
    mid_block_type: str = "UNetMidBlock2DCrossAttn"
    conditioning_channels: int = 3
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    controlnet_conditioning_channel_order: str = "rgb"
    global_pool_conditions: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.mid_block_type in _MIDDLES,
            f"middle block {self.mid_block_type!r}; supported: {', '.join(_MIDDLES)}",
        )
        require(
            len(self.conditioning_embedding_out_channels) > 0, "conditioning_embedding_out_channels is empty"
        )
        order = self.controlnet_conditioning_channel_order
        require(
            order == "rgb" or (order == "bgr" and self.conditioning_channels == 3),
            f"controlnet_conditioning_channel_order is {order!r} of {self.conditioning_channels} channels; "
            "supported: 'rgb', and 'bgr' of 3",
        )

    @property
    def middle_depth(self) -> int:
        return self.depths[-1] if _MIDDLES[self.mid_block_type] else 0

    @property
    def downscale(self) -> int:
        """How many pixels of the picture there are to one latent, along each side."""
        return int(2 ** (len(self.conditioning_embedding_out_channels) - 1))


class ConditioningEmbedding(nn.Module):
    """Convolutions from a picture to the size of latents, SiLU in between; at first they give zeros."""

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


class ControlNetModel(Encoder):
    """What a picture adds to a U-Net."""

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
        """One that begins as the U-Net's own way down, and adds nothing yet.

        It is given latents alone, whatever stands behind them in what the U-Net is given (a mask …).

        Args:
            own: fields of `ControlNetConfig` that a U-Net's config does not have.
        """
        shared = {field.name: getattr(unet.config, field.name) for field in fields(EncoderConfig)}
        control = cls(ControlNetConfig(**{**shared, "in_channels": unet.config.out_channels, **own}))
        weights = unet.state_dict()
        weights["conv_in.weight"] = weights["conv_in.weight"][:, : control.config.in_channels]
        copied = {name: weights[name] for name in control.state_dict() if name in weights}
        control.load_state_dict(copied, strict=False)
        return control

    def embed(self, image: Tensor) -> Tensor:
        """What `forward` is to know of a picture, which is the same at every step.

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
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> list[Tensor]:
        """What is added to each skip of the U-Net, the input's first, and to its middle.

        Args:
            x: [B, in_channels, h, w].
            embedding: what `embed` gave, [B, widths[0], h, w].
            timesteps, context, pooled, sizes: as `UNet2DConditionModel.forward`.

        Returns:
            [B, C, h', w'] for each of `config.skip_channels`, and for the middle. With
            `global_pool_conditions` h' and w' are 1.
        """
        time = self._embedded_time(timesteps, x.dtype, pooled, sizes)
        maps = [self.conv_in(x) + embedding]
        self._descend(self._way_down(), maps, time, context)
        maps.append(self._middle(maps[-1], time, context))
        layers = [*self.controlnet_down_blocks, self.controlnet_mid_block]
        added = [layer(each) for layer, each in zip(layers, maps, strict=True)]
        if self.config.global_pool_conditions:
            added = [each.mean(dim=(2, 3), keepdim=True) for each in added]
        return added


def _of_zeros(layer: nn.Conv2d) -> nn.Conv2d:
    """A ControlNet begins by adding nothing, so that training begins from the U-Net as it is."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
