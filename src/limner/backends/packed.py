"""Packed networks for the CPU: weights are reordered once, into the blocks that oneDNN computes with.

PyTorch's own linear layers and convolutions reorder their weights at every call, or, for fp32 on AMD, take a
library with a slow path. The operators used here are those that `torch.compile` emits for frozen weights.
They compute the same sums in another order.
"""

from collections import OrderedDict
from functools import cache
from threading import Lock
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.nn.layers import GroupNormSiLU, RowFactors
from limner.nn.transformer import GEGLU
from limner.weights.load import cast

from .invariance import RowBlocks

_OPERATORS = (
    "_reorder_linear_weight",
    "_linear_pointwise",
    "_reorder_convolution_weight",
    "_convolution_pointwise",
)
_LARGE_MAP = 1024  # pixels from which PyTorch's group norm takes all channels of a pixel together
_CACHED_NUMBERS = 2**19  # in fp32, that fit in the cache between two passes over them
_KEPT_SIZES = 2  # sizes of feature maps for which a convolution keeps reordered weights

_mkldnn = torch.ops.mkldnn
Network = TypeVar("Network", bound=nn.Module)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch has the operators, and this processor the instructions for the dtype."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not all(hasattr(_mkldnn, name) for name in _OPERATORS):
        return False
    try:
        _mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype))
    except RuntimeError:  # bfloat16 needs AVX-512, or AVX2 with conversions
        return False
    return True


def pack(network: Network, dtype: torch.dtype, blocks: RowBlocks | None = None) -> Network:
    """Replace the linear layers, convolutions and group norms inside a network, for inference.

    Layers go one by one from the mapped file to packed weights in `dtype`, so that peak memory is little more
    than the packed size.

    Args:
        blocks: Batch invariance of the layers; None if the network always runs at the same batch size.

    Returns:
        The network itself; its parameters are then no longer those of a checkpoint.
    """
    for parameter in network.parameters(recurse=False):
        parameter.data = cast(parameter.data, dtype)
    for name in [name for name, _ in network.named_children()]:
        setattr(network, name, _packed(getattr(network, name), dtype, blocks))
    return network


def linear_layers(network: nn.Module) -> frozenset[str]:
    """Names of the linear layers and 1x1 convolutions of a network, packed or not."""
    return frozenset(name for name, module in network.named_modules() if _is_linear(module))


def _is_linear(module: nn.Module) -> bool:
    pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    return pointwise or isinstance(module, nn.Linear | PackedLinear | PackedHalves)


def _packed(layer: nn.Module, dtype: torch.dtype, blocks: RowBlocks | None) -> nn.Module:
    if type(layer) not in (GEGLU, nn.Linear, nn.Conv2d, nn.GroupNorm, GroupNormSiLU):
        return pack(layer, dtype, blocks)
    for parameter in layer.parameters():
        parameter.data = cast(parameter.data, dtype)
    match layer:
        case GEGLU():
            return PackedGEGLU(layer, blocks)
        case nn.Linear():
            return PackedLinear(layer.weight, layer.bias, blocks)
        case nn.Conv2d(kernel_size=(1, 1)):
            return PackedPointwise(layer.weight.flatten(1), layer.bias, blocks)
        case nn.Conv2d():
            return PackedConv2d(layer, blocks)
        case nn.GroupNorm():
            return PackedGroupNorm(layer)
    raise AssertionError(layer)


class PackedLayer(nn.Module):
    """A layer of packed weights, batch invariant where `blocks` are given.

    Attributes:
        geometry: Whatever its kernel depends on other than its input.
    """

    def __init__(self, geometry: str, blocks: RowBlocks | None) -> None:
        super().__init__()
        self.geometry, self.blocks = geometry, blocks

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(x) if self.blocks is None else self.blocks(self.plain, self.geometry, x)

    def plain(self, x: Tensor) -> Tensor:
        """The output for all rows at once."""
        raise NotImplementedError


class PackedLinear(PackedLayer):
    """A linear layer, of weights [out, in] and a bias [out] or none."""

    kind = "linear"

    def __init__(self, weight: Tensor, bias: Tensor | None, blocks: RowBlocks | None = None) -> None:
        super().__init__(f"{self.kind} {[*weight.shape]}{' bias' * (bias is not None)}", blocks)
        self.weight = _mkldnn._reorder_linear_weight(weight.detach())
        self.bias = None if bias is None else bias.detach()

    def plain(self, x: Tensor) -> Tensor:
        y: Tensor = _mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


class PackedHalves(PackedLayer):
    """A linear layer in two halves, of the first and the last output channels.

    Attributes:
        weights, biases: Weights and biases of each half.
    """

    def __init__(self, layer: nn.Linear, blocks: RowBlocks | None = None) -> None:
        super().__init__(f"halves {[*layer.weight.shape]}", blocks)
        first, last = layer.weight.detach().chunk(2)
        self.weights = tuple(_mkldnn._reorder_linear_weight(half.contiguous()) for half in (first, last))
        self.biases = layer.bias.detach().chunk(2)

    def plain(self, x: Tensor) -> Tensor:
        halves = zip(self.weights, self.biases, strict=True)
        return torch.cat([_mkldnn._linear_pointwise(x, w, b, "none", [], "") for w, b in halves], dim=-1)


class PackedGEGLU(PackedLayer):
    """GEGLU as two products: the second is multiplied by the first while that is still in the cache."""

    def __init__(self, geglu: GEGLU, blocks: RowBlocks | None = None) -> None:
        super().__init__(f"geglu {[*geglu.proj.weight.shape]}", blocks)
        self.proj = PackedHalves(geglu.proj, blocks)

    def forward(self, x: Tensor, low_rank: RowFactors | None = None) -> Tensor:
        stretches = () if low_rank is None else low_rank.of(self.proj)
        if low_rank is None or not stretches:
            return super().forward(x)
        outputs = []
        for rows, term in stretches:
            if term is None:
                outputs.append(super().forward(x[rows]))
            else:  # GELU comes after the sum of both products
                y, gate = (self.proj(x[rows]) + low_rank.change(x[rows], term)).chunk(2, dim=-1)
                outputs.append(y * F.gelu(gate))
        return torch.cat(outputs)

    def plain(self, x: Tensor) -> Tensor:
        (weight, gate_weight), (bias, gate_bias) = self.proj.weights, self.proj.biases
        gate = _mkldnn._linear_pointwise(x, gate_weight, gate_bias, "gelu", [], "none")
        product: Tensor = _mkldnn._linear_pointwise.binary(x, gate, weight, bias, "mul")
        return product


class PackedPointwise(PackedLinear):
    """A 1x1 convolution: a linear layer over the channels of each pixel."""

    kind = "pointwise"

    def plain(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # [B, C, h, w] -> [B, h, w, C], a view where x is channels_last
        return super().plain(x).permute(0, 3, 1, 2)


class PackedConv2d(PackedLayer):
    """A convolution, whose feature maps are channels_last.

    The best order of the weights depends on the size of the feature maps, and in another one a convolution
    can take forty times as long. So weights are reordered for each size when it first occurs, and the last
    two are kept.

    Attributes:
        padding: Rows at the top and bottom, columns at the left and right. A copy of the layer may have
            another.
    """

    def __init__(self, conv: nn.Conv2d, blocks: RowBlocks | None = None) -> None:
        strides = [*conv.stride], [*conv.dilation], conv.groups
        super().__init__(f"convolution {[*conv.weight.shape]} {strides}", blocks)
        self.padding, self.strides = conv.padding, strides
        self.channels = conv.in_channels
        self.weights = OrderedDict[tuple[int, ...], Tensor]({(): conv.weight.detach()})
        self.bias = None if conv.bias is None else conv.bias.detach()
        self._lock = Lock()  # guards the weights, which threads and copies of the layer share

    def forward(self, x: Tensor) -> Tensor:
        if self.blocks is None:
            return self.plain(x)
        return self.blocks(self.plain, f"{self.geometry} {self.padding}", x)

    def plain(self, x: Tensor) -> Tensor:
        with self._lock:
            weight = self._weight(x.shape[2], x.shape[3])
        strides = [*self.padding], *self.strides
        y: Tensor = _mkldnn._convolution_pointwise(x, weight, self.bias, *strides, "none", [], "")
        return y

    def _weight(self, height: int, width: int) -> Tensor:
        """Weights in the order for this size, at any batch size: bits must not depend on earlier calls."""
        size = height, width, *self.padding
        if size not in self.weights:
            _, known = next(iter(self.weights.items()))
            shape = [2, self.channels, height, width]
            dense = known.to_dense() if known.is_mkldnn else known
            strides = [*self.padding], *self.strides
            self.weights[size] = _mkldnn._reorder_convolution_weight(dense, *strides, shape)
            self.weights.pop((), None)
            if len(self.weights) > _KEPT_SIZES:
                self.weights.popitem(last=False)
        self.weights.move_to_end(size)
        return self.weights[size]


class PackedGroupNorm(nn.Module):
    """Batch-invariant group norm, with the SiLU after it if there is one.

    PyTorch's kernel for large channels_last feature maps splits sums among threads by batch size, so large
    maps are normalised row by row. Small maps are normalised group by group, in fp32: in bfloat16 the few
    channels of a group do not fill a vector. SiLU is applied while the numbers are in the cache.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.activated = isinstance(norm, GroupNormSiLU)
        self.groups, self.eps = norm.num_groups, norm.eps
        self.narrow = norm.weight.detach(), norm.bias.detach()
        self.wide = norm.weight.detach().float(), norm.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        large = x.shape[2] * x.shape[3] >= _LARGE_MAP
        together = 1 if large else max(1, _CACHED_NUMBERS // x[0].numel())
        if together >= len(x):
            return self._normed(x, large).to(x.dtype)
        y = torch.empty_like(x)
        for some, normed in zip(torch.split(x, together), torch.split(y, together), strict=True):
            normed.copy_(self._normed(some, large))
        return y

    def _normed(self, x: Tensor, large: bool) -> Tensor:
        if large:
            y = F.group_norm(x, self.groups, *self.narrow, self.eps)
        else:
            y = F.group_norm(x.float(), self.groups, *self.wide, self.eps)
        return F.silu(y, inplace=True) if self.activated else y
