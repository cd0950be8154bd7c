"""Networks whose weights wait in the machine's memory: each block has its own on the device while it runs."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

LARGEST = 1 << 26  # weights of a block, about: more than the table of words of any text encoder


def offload_blocks(network: nn.Module, bring: Callable[[Tensor], Tensor]) -> None:
    """Have each block of a network bring its weights to the device when it begins, and drop them at its end.

    Blocks that it shares with a network that has been here before stay as they are.

    Args:
        bring: a weight -> the same on the device.
    """
    for block in blocks(network):
        hooks = block._forward_pre_hooks.values()
        if not any(isinstance(getattr(hook, "__self__", None), _Weights) for hook in hooks):
            weights = _Weights(block, bring)
            block.register_forward_pre_hook(weights.bring)
            block.register_forward_hook(weights.drop, always_call=True)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The largest parts of a network that are called as a whole and have no more than `LARGEST` weights, or
    that have weights which are in none of their parts."""
    for child in network.children():
        own = next(child.parameters(recurse=False), None) is not None
        small = sum(weight.numel() for weight in child.parameters()) <= LARGEST
        if own or (small and type(child).forward is not nn.Module.forward):
            yield child
        else:
            yield from blocks(child)


class _Weights:
    """Those of a block."""

    def __init__(self, block: nn.Module, bring: Callable[[Tensor], Tensor]) -> None:
        self._bring = bring
        self._waiting = [(weight, weight.data) for weight in block.parameters()]

    def bring(self, *_: Any) -> None:
        for weight, waiting in self._waiting:
            weight.data = self._bring(waiting)

    def drop(self, *_: Any) -> None:
        for weight, waiting in self._waiting:
            weight.data = waiting
