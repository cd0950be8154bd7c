"""Geometry of ControlNets and T2I-Adapters, as the hub's `config.json` describes them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

from .config import read_config, require
from .unet_config import EncoderConfig

_MIDDLES = {"UNetMidBlock2DCrossAttn": True, "UNetMidBlock2D": False}  # name -> has attention


@dataclass(frozen=True)
class ControlNetConfig(EncoderConfig):
    """Geometry of a ControlNet: the geometry of its U-Net, and fields of the ControlNet.

    Attributes:
        mid_block_type: the smallest ControlNets for XL have no attention in the middle.
        conditioning_channels: channels of the control image.
        conditioning_embedding_out_channels: channels of the layers that embed the control image; each but the
            first halves its size.
        controlnet_conditioning_channel_order: order of colours in training, "rgb" or "bgr".
        global_pool_conditions: Whether residuals are averaged over all positions, for control images whose
            layout has no meaning ("shuffle").
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
        """Pixels of the control image per latent, along each side."""
        return int(2 ** (len(self.conditioning_embedding_out_channels) - 1))


@dataclass(frozen=True)
class T2IAdapterConfig:
    """Geometry of a T2I-Adapter; the defaults are those for Stable Diffusion 1.x.

    Attributes:
        in_channels: channels of the control image, 1 or 3.
        channels: channels of the features, by level; for "light_adapter" without the last level, which has as
            many as the one before.
        num_res_blocks: residual blocks in each level.
        downscale_factor: pixels of the image per pixel of the first feature, along each side.
        adapter_type: "full_adapter"; "full_adapter_xl", whose levels match XL's U-Net after its first
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
        """Channels of the image after its squares of pixels are moved into channels."""
        return self.in_channels * int(self.downscale_factor**2)

    @property
    def levels(self) -> tuple[tuple[int, int, bool], ...]:
        """Input and output channels of each level, and whether it begins by halving height and width."""
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
        """Read a hub `config.json`. Raises ValueError for settings that this network does not support."""
        return read_config(cls, values, supported={})

    def to_dict(self) -> dict[str, Any]:
        """The hub's `config.json`."""
        return {"_class_name": self.network, **asdict(self), "channels": list(self.channels)}
