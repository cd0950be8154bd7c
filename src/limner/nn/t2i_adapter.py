"""T2I-Adapter: a picture of edges, depth, poses … for a U-Net to keep to (Mou et al. 2023).

Unlike a ControlNet it sees neither latents nor timestep nor text, so it runs once per picture. What it finds
is added to what the U-Net hands on at the end of each level on the way down.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from .config import read_config, require


@dataclass(frozen=True)
class T2IAdapterConfig:
    """Geometry of a T2I-Adapter; the defaults are those for Stable Diffusion 1.x.

    Attributes:
        in_channels: of the picture: 1 for those that are drawn in black and white, else 3.
        channels: of the features, by level; of "light_adapter" without the last, which has as many as the one
            before.
        num_res_blocks: residual blocks in each level.
        downscale_factor: how many pixels there are to one of the first feature, along each side.
        adapter_type: "full_adapter"; "full_adapter_xl", whose levels are those of XL's U-Net behind its first
            halving; or "light_adapter", a smaller one.
    """

    network: ClassVar[str] = "T2IAdapter"  # the hub's name of the class
    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8
    adapter_type: str = "full_adapter"

    def __post_init__(self) -> None:
        kinds = ("full_adapter", "full_adapter_xl", "light_adapter")
        require(
            self.adapter_type in kinds,
            f"adapter_type is {self.adapter_type!r}; supported: {', '.join(kinds)}",
        )
        require(len(self.channels) > 0, "channels is empty")
        if self.adapter_type == "full_adapter_xl":
            require(
                len(set(self.channels[2:])) <= 1,
                f"channels {self.channels} of a full_adapter_xl must be the same from the third on",
            )

    @property
    def input_channels(self) -> int:
        """Of the picture once each square of pixels is one pixel."""
        return self.in_channels * int(self.downscale_factor**2)

    @property
    def levels(self) -> tuple[tuple[int, int, bool], ...]:
        """Channels before and after each level, and whether it begins by halving height and width."""
        widths = self.channels
        match self.adapter_type:
            case "full_adapter":
                return ((widths[0], widths[0], False), *((a, b, True) for a, b in pairwise(widths)))
            case "full_adapter_xl":
                before = (widths[0], *widths)
                return tuple((before[i], channels, i == 2) for i, channels in enumerate(widths))
        inner = ((a, b, True) for a, b in pairwise(widths))
        return ((self.input_channels, widths[0], False), *inner, (widths[-1], widths[-1], True))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "T2IAdapterConfig":
        """Read a hub `config.json`. Raises ValueError for what this network cannot stand for."""
        return read_config(cls, values, supported={})

    def to_dict(self) -> dict[str, Any]:
        """The hub's `config.json`."""
        return {"_class_name": self.network, **asdict(self), "channels": list(self.channels)}


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
    """A level: halving, a change of width, residual blocks, which are a quarter as wide in a light one."""

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
    """All levels, from a picture's squares of pixels to features."""

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
    """What a picture adds to a U-Net."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.adapter = Levels(config)

    def forward(self, image: Tensor) -> list[Tensor]:
        """The features of a picture, as `UNet2DConditionModel.forward` takes them.

        Args:
            image: [B, in_channels, H, W] in [0, 1]. Sides that are no multiples of `downscale_factor` are
                continued by their last pixel to the next one.

        Returns:
            [B, C, h', w'] for each level.
        """
        factor = self.config.downscale_factor
        height, width = image.shape[2:]
        image = F.pad(image, (0, -width % factor, 0, -height % factor), mode="replicate")
        squares = F.pixel_unshuffle(image, factor)  # [B, C, H, W] -> [B, C * factor**2, H/factor, W/factor]
        y: list[Tensor] = self.adapter(squares)
        return y
