"""Cross-attention to pictures beside the text, row by row (Ye et al. 2023).

The U-Net's layers stay as they are; to what each row finds in its text is added what it finds in pictures:

    y[r] = attend(q[r], k[r], v[r]) + sum over i of attend(q[r], keys_i[r], values_i[r])
"""

import copy
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

from torch import Tensor, nn

from limner.nn.layers import Attention
from limner.nn.unet import CrossAttention

Network = TypeVar("Network", bound=nn.Module)


class Pictures:
    """Where the attentions of a network find the pictures of the forward pass that is being made.

    Attributes:
        seen: each [R, 2, T, S], keys and values of all attentions side by side.
    """

    def __init__(self) -> None:
        self.seen: Sequence[Tensor] = ()

    def beside(self, attend: Attention, place: slice) -> Attention:
        """`attend`, and to it what the attention whose keys and values stand at a place finds in pictures."""

        def attend_to_both(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            y = attend(q, k, v, heads)
            for seen in self.seen:
                keys, values = seen[..., place].unbind(1)  # [R, T, C]
                y = y + attend(q, keys, values, heads)
            return y

        return attend_to_both


def beside_pictures(network: Network, layers: Mapping[str, int], pictures: Pictures) -> Network:
    """A network that shares all layers of another, and whose attentions attend to pictures too.

    Args:
        layers: names of the attentions and their channels, in the order in which keys stand side by side.
    """
    ends = accumulate(layers.values())
    places = {name: slice(end - layers[name], end) for name, end in zip(layers, ends, strict=True)}
    return _copied(network, "", places, pictures)


def _copied(module: Network, name: str, places: Mapping[str, slice], pictures: Pictures) -> Network:
    copied = copy.copy(module)
    if isinstance(copied, CrossAttention) and name in places:
        copied.attend = pictures.beside(copied.attend, places[name])
        return copied
    copied._modules = dict(module._modules)
    for key, child in module.named_children():
        copied._modules[key] = _copied(child, f"{name}.{key}" if name else key, places, pictures)
    return copied
