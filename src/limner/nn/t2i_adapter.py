"""T2I-Adapter: a U-Net follows a control image of edges, depth, poses … (Mou et al. 2023).

Unlike a ControlNet it is given neither latents nor timestep nor text, so it runs once per image. Its features
are added to the U-Net's feature maps at the end of each level on the way down.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .control_config import T2IAdapterConfig


class AdapterResnetBlock(nn.Module):
    """Convolution, ReLU, convolution, around a residual."""

    def __init__(self, channels: int, *, last_kernel: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, last_kernel, padding=last_kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block2(F.relu(self.block1(x)))
        return x + y


class AdapterBlock(nn.Module):
    """A level: halving, a change of width, residual blocks (a quarter as wide in a light adapter)."""

    def __init__(self, before: int, channels: int, blocks: int, *, halved: bool, light: bool) -> None:
        super().__init__()
        self.halved = halved
        inner = channels // 4 if light else channels
        self.in_conv = nn.Conv2d(before, inner, 1) if before != inner or light else None
        self.resnets = nn.Sequential(
            *(AdapterResnetBlock(inner, last_kernel=3 if light else 1) for _ in range(blocks))
        )
        self.out_conv = nn.Conv2d(inner, channels, 1) if light else None

    def forward(self, x: Tensor) -> Tensor:
        if self.halved:
            x = F.avg_pool2d(x, 2, ceil_mode=True)  # rounds up, as the U-Net's own halving does
        if self.in_conv is not None:
            x = self.in_conv(x)
        x = self.resnets(x)
        if self.out_conv is not None:
            x = self.out_conv(x)
        return x


class Levels(nn.Module):
    """All levels, from the unshuffled image to features."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        light = config.adapter_type == "light_adapter"
        width = config.channels[0]
        self.conv_in = None if light else nn.Conv2d(config.input_channels, width, 3, padding=1)
        self.body = nn.ModuleList(
            AdapterBlock(before, channels, config.num_res_blocks, halved=halved, light=light)
            for before, channels, halved in config.levels
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.conv_in is not None:
            x = self.conv_in(x)
        features: list[Tensor] = []
        for block in self.body:
            x = block(x)
            features.append(x)
        return features


class T2IAdapter(nn.Module):
    """The adapter: features of a control image for a U-Net."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.adapter = Levels(config)

    def forward(self, image: Tensor) -> list[Tensor]:
        """The features of a control image, as `Conditions.features`.

        Args:
            image: [B, in_channels, H, W] in [0, 1]. Sides that are no multiples of `downscale_factor` are
                padded with their last pixel.

        Returns:
            [B, C, h', w'] for each level.
        """
        factor = self.config.downscale_factor
        height, width = image.shape[2:]
        image = F.pad(image, (0, -width % factor, 0, -height % factor), mode="replicate")
        squares = F.pixel_unshuffle(image, factor)  # [B, C, H, W] -> [B, C * factor**2, H/factor, W/factor]
        y: list[Tensor] = self.adapter(squares)
        return y
