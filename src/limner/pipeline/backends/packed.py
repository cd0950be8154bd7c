"""Networks made ready for the CPU: weights reordered once, into the blocks that oneDNN computes with.

PyTorch's own linear layers and convolutions reorder their weights at every call, or, for fp32 on AMD, take a
library with a slow path. The operators used here are those that `torch.compile` emits for frozen weights.
They compute the same sums in another order.
"""

from collections import OrderedDict
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.nn.layers import GroupNormSiLU
from limner.nn.unet import GEGLU
from limner.weights.load import cast

_OPERATORS = (
    "_reorder_linear_weight",
    "_linear_pointwise",
    "_reorder_convolution_weight",
    "_convolution_pointwise",
)
_LARGE_MAP = 1024  # pixels from which PyTorch's group norm goes through all channels of a pixel together
_CACHED_NUMBERS = 2**19  # in fp32, that stay in the cache between one pass over them and the next
_KEPT_SIZES = 2  # of feature maps, that a convolution keeps weights in order for

_mkldnn = torch.ops.mkldnn
Network = TypeVar("Network", bound=nn.Module)


def can_pack() -> bool:
    """Whether this build of PyTorch has the operators."""
    return torch.backends.mkldnn.is_available() and all(  # type: ignore[no-untyped-call]
        hasattr(_mkldnn, name) for name in _OPERATORS
    )


def pack(network: Network, dtype: torch.dtype) -> Network:
    """Replace the linear layers, convolutions and group norms inside a network, for inference.

    It goes layer by layer from the mapped file to packed weights in `dtype`, so that there is hardly more in
    memory on the way than at the end.

    Returns:
        the network, whose parameters are then no longer those of a checkpoint.
    """
    for parameter in network.parameters(recurse=False):
        parameter.data = cast(parameter.data, dtype)
    for name in [name for name, _ in network.named_children()]:
        setattr(network, name, _packed(getattr(network, name), dtype))
    return network


def _packed(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    if type(layer) not in (GEGLU, nn.Linear, nn.Conv2d, nn.GroupNorm, GroupNormSiLU):
        return pack(layer, dtype)
    for parameter in layer.parameters():
        parameter.data = cast(parameter.data, dtype)
    match layer:
        case GEGLU():
            return PackedGEGLU(layer)
        case nn.Linear():
            return PackedLinear(layer.weight, layer.bias)
        case nn.Conv2d(kernel_size=(1, 1)):
            return PackedPointwise(layer.weight.flatten(1), layer.bias)
        case nn.Conv2d():
            return PackedConv2d(layer)
        case nn.GroupNorm():
            return PackedGroupNorm(layer)
    raise AssertionError(layer)


class PackedLinear(nn.Module):
    """A linear layer, of weights [out, in] and a bias [out] or none."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = _mkldnn._reorder_linear_weight(weight.detach())
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


class PackedGEGLU(nn.Module):
    """GEGLU as two products, the second of which gates the first while it is still in the cache."""

    def __init__(self, geglu: GEGLU) -> None:
        super().__init__()
        halves = geglu.proj.weight.detach().chunk(2)
        self.weight, self.gate = (_mkldnn._reorder_linear_weight(half.contiguous()) for half in halves)
        self.biases = geglu.proj.bias.detach().chunk(2)

    def product(self, x: Tensor) -> Tensor:
        """What the one linear layer gives that the two make up, before the gate."""
        halves = zip((self.weight, self.gate), self.biases, strict=True)
        return torch.cat([_mkldnn._linear_pointwise(x, w, b, "none", [], "") for w, b in halves], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        gate = _mkldnn._linear_pointwise(x, self.gate, self.biases[1], "gelu", [], "none")
        y: Tensor = _mkldnn._linear_pointwise.binary(x, gate, self.weight, self.biases[0], "mul")
        return y


class PackedPointwise(PackedLinear):
    """A 1x1 convolution: a linear layer over the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # [B, C, h, w] -> [B, h, w, C], a view where x is channels_last
        return super().forward(x).permute(0, 3, 1, 2)


class PackedConv2d(nn.Module):
    """A convolution, whose feature maps are channels_last.

    The order that is best for the weights depends on the size of the feature maps, and in the wrong one a
    convolution can take forty times as long. So each size has its own, made when it is first met.

    Attributes:
        padding: at the top and bottom, and at the left and right. A copy of the layer may have another.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.padding = conv.padding
        self.geometry = [*conv.stride], [*conv.dilation], conv.groups
        self.channels = conv.in_channels
        self.weights = OrderedDict[tuple[int, ...], Tensor]({(): conv.weight.detach()})
        self.bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        weight = self._weight(x.shape[2], x.shape[3])
        geometry = [*self.padding], *self.geometry
        y: Tensor = _mkldnn._convolution_pointwise(x, weight, self.bias, *geometry, "none", [], "")
        return y

    def _weight(self, height: int, width: int) -> Tensor:
        """In order for this size, whatever the batch: a row's bits must not depend on what came before."""
        size = height, width, *self.padding
        if size not in self.weights:
            _, known = next(iter(self.weights.items()))
            shape = [2, self.channels, height, width]
            dense = known.to_dense() if known.is_mkldnn else known
            geometry = [*self.padding], *self.geometry
            self.weights[size] = _mkldnn._reorder_convolution_weight(dense, *geometry, shape)
            self.weights.pop((), None)
            if len(self.weights) > _KEPT_SIZES:
                self.weights.popitem(last=False)
        self.weights.move_to_end(size)
        return self.weights[size]


class PackedGroupNorm(nn.Module):
    """Group norm whose rows have the same bits in any company, as all else that is packed has.

    PyTorch's kernel for feature maps that are channels_last and large spreads their sums over threads as the
    batch happens to fall, so large ones go row by row. Small ones it takes group by group, where in bfloat16
    the few channels of a group do not fill a vector: fp32 is faster. A SiLU behind it is taken while the
    numbers are in the cache.
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
