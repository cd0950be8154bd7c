"""Networks for seamlessly tileable images: convolutions pad with the opposite edge (circular padding).

All other operators act on single pixels, or on all of them regardless of position, so the networks are
equivariant to circular shifts.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from limner.request import Tiling

from .packed import PackedConv2d

Network = TypeVar("Network", bound=nn.Module)

_Sides = tuple[int, int, int, int]  # pixels at the left, right, top and bottom


class CircularPad(nn.Module):
    """Circular padding, before another module.

    Args:
        then: Module that takes the padded feature map.
        sides: Pixels of padding.
    """

    def __init__(self, then: nn.Module, sides: _Sides) -> None:
        super().__init__()
        self.then, self.sides = then, sides

    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = self.sides
        x = torch.cat([x[:, :, x.shape[2] - top :], x, x[:, :, :bottom]], dim=2)
        x = torch.cat([x[..., x.shape[3] - left :], x, x[..., :right]], dim=3)
        y: Tensor = self.then(x)
        return y


def seamless(network: Network, axes: Tiling) -> Network:
    """A copy of a network that shares its weights and pads circularly along some axes."""
    joined = copy.copy(network)
    joined._modules = {
        name: None if child is None else _seamless(child, axes) for name, child in network._modules.items()
    }
    return joined


def _seamless(module: nn.Module, axes: Tiling) -> nn.Module:
    match module:
        case nn.ZeroPad2d():
            around, zeros = _split(module.padding, axes)
            return CircularPad(nn.ZeroPad2d(zeros), around)
        case nn.Conv2d() | PackedConv2d() if any(module.padding):
            assert not isinstance(module.padding, str)
            down, across = module.padding
            around, zeros = _split((across, across, down, down), axes)
            conv = copy.copy(module)
            conv.padding = zeros[2], zeros[0]
            return CircularPad(conv, around)
    return seamless(module, axes)


def _split(sides: _Sides, axes: Tiling) -> tuple[_Sides, _Sides]:
    """Circular padding, and the zero padding that is left."""
    left, right, top, bottom = (side if axis in axes else 0 for axis, side in zip("xxyy", sides, strict=True))
    around = left, right, top, bottom
    return around, (sides[0] - left, sides[1] - right, sides[2] - top, sides[3] - bottom)
