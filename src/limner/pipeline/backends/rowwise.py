"""LoRA applied row by row: rows of one batch with different adapters share a forward pass.

The layers stay as they are; to each row is added what its own adapters make of it, two narrow products:

    y[r] = layer(x[r]) + x[r] @ down[r].T @ up[r].T

It costs less than to give each adapter a forward pass where one picture alone does not keep the machine busy.
"""

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Terms
from .packed import PackedGEGLU, PackedLinear, PackedPointwise

Network = TypeVar("Network", bound=nn.Module)


class Slot:
    """Where the layers of a network find the terms of the forward pass that is being made."""

    def __init__(self) -> None:
        self.terms: Terms = {}

    def added(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """y, and to it what the adapters of a module make of x, row by row."""
        if name not in self.terms:
            return y
        down, up = (term.to(x) for term in self.terms[name])
        if x.ndim == 4:  # of a 1x1 convolution: [R, in, h, w]
            return y + torch.bmm(up, torch.bmm(down, x.flatten(2))).reshape(y.shape)
        rows = x.reshape(len(x), -1, x.shape[-1])  # [R, N, in]
        change = torch.bmm(torch.bmm(rows, down.transpose(1, 2)), up.transpose(1, 2))  # [R, N, out]
        return y + change.reshape(y.shape)


class RowwiseLinear(nn.Module):
    """A linear layer, or a 1x1 convolution."""

    def __init__(self, base: nn.Module, name: str, slot: Slot) -> None:
        super().__init__()
        self.base, self.name, self.slot = base, name, slot

    def forward(self, x: Tensor) -> Tensor:
        return self.slot.added(self.name, x, self.base(x))


class RowwiseGEGLU(nn.Module):
    """GEGLU, whose two halves are one linear layer to an adapter."""

    def __init__(self, base: PackedGEGLU, name: str, slot: Slot) -> None:
        super().__init__()
        self.base, self.name, self.slot = base, f"{name}.proj", slot

    def forward(self, x: Tensor) -> Tensor:
        if self.name not in self.slot.terms:
            y: Tensor = self.base(x)
            return y
        y, gate = self.slot.added(self.name, x, self.base.product(x)).chunk(2, dim=-1)
        return y * F.gelu(gate)


def rowwise(network: Network, slot: Slot) -> Network:
    """A network that shares all layers of another, and adds to its linear layers what stands in a slot."""
    return _wrapped(network, "", slot)


def rowwise_modules(network: nn.Module) -> frozenset[str]:
    """The modules of a network, packed or not, that adapters can change row by row."""
    modules = dict(network.named_modules())
    geglus = {f"{name}.proj" for name, module in modules.items() if type(module) is PackedGEGLU}
    return frozenset({name for name, module in modules.items() if _is_linear(module)} | geglus)


def _is_linear(module: nn.Module) -> bool:
    pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    return pointwise or type(module) in (nn.Linear, PackedLinear, PackedPointwise)


def _wrapped(module: Network, name: str, slot: Slot) -> Network:
    wrapped = copy.copy(module)
    wrapped._modules = dict(module._modules)
    for key, child in module.named_children():
        path = f"{name}.{key}" if name else key
        if type(child) is PackedGEGLU:
            wrapped._modules[key] = RowwiseGEGLU(child, path, slot)
        elif _is_linear(child):
            wrapped._modules[key] = RowwiseLinear(child, path, slot)
        else:
            wrapped._modules[key] = _wrapped(child, path, slot)
    return wrapped
