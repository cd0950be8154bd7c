"""Sequential offloading: weights stay in main memory, and each block moves its own to the device to run."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

LARGEST = 1 << 26  # about the most weights of a block: more than the token embedding of any text encoder


def offload_blocks(network: nn.Module, bring: Callable[[Tensor], Tensor]) -> None:
    """Hook each block of a network: its weights move to the device before it runs and are dropped after.

    Blocks that another network shares and that have hooks already stay as they are.

    Args:
        bring: Returns a copy of a weight on the device.
    """
    for block in blocks(network):
        hooks = block._forward_pre_hooks.values()
        if not any(isinstance(getattr(hook, "__self__", None), _Weights) for hook in hooks):
            weights = _Weights(block, bring)
            block.register_forward_pre_hook(weights.bring)
            block.register_forward_hook(weights.drop, always_call=True)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The largest modules that are called as a whole and have at most `LARGEST` weights, or that have weights
    outside their children."""
    for child in network.children():
        own = next(child.parameters(recurse=False), None) is not None
        small = sum(weight.numel() for weight in child.parameters()) <= LARGEST
        if own or (small and type(child).forward is not nn.Module.forward):
            yield child
        else:
            yield from blocks(child)


class _Weights:
    """The weights of a block, which move to the device and back."""

    def __init__(self, block: nn.Module, bring: Callable[[Tensor], Tensor]) -> None:
        self._bring = bring
        self._waiting = [(weight, weight.data) for weight in block.parameters()]

    def bring(self, *_: Any) -> None:
        for weight, waiting in self._waiting:
            weight.data = self._bring(waiting)

    def drop(self, *_: Any) -> None:
        for weight, waiting in self._waiting:
            weight.data = waiting
