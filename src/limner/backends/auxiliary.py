"""A cache of auxiliary networks: those that requests name in addition to the checkpoint's own."""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from threading import Lock
from typing import NamedTuple

from torch import nn

# Size of the cache in bytes, which networks used within the last minute may exceed: three ControlNets for XL
# take 7.5 GB in 16 bits, and must not evict each other at every step.
_KEPT_BYTES, _IN_USE = 5 << 30, 60.0  # bytes; seconds since the last use


class _Kept(NamedTuple):
    network: nn.Module
    bytes: int
    used: float


class AuxiliaryNetworks:
    """A cache that evicts the least recently used networks first. Any thread may use it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()  # least recently used first
        self._lock = Lock()

    def get(self, key: Hashable, load: Callable[[], tuple[nn.Module, int]]) -> nn.Module:
        """The network of a key.

        Args:
            load: Reads the network and returns it with its size in bytes.
        """
        with self._lock:
            known = self._kept.get(key)
        network, size = load() if known is None else (known.network, known.bytes)
        now = time.monotonic()
        with self._lock:
            self._kept[key] = _Kept(network, size, now)
            self._kept.move_to_end(key)
            spare = _KEPT_BYTES - sum(kept.bytes for kept in self._kept.values())
            for other, kept in list(self._kept.items()):
                if spare >= 0 or now - kept.used < _IN_USE:
                    break
                del self._kept[other]
                spare += kept.bytes
        return network

    def bytes_except(self, keys: Collection[Hashable]) -> int:
        """Bytes of all networks except those of the keys."""
        with self._lock:
            return sum(kept.bytes for key, kept in self._kept.items() if key not in keys)

    def forget_except(self, keys: Collection[Hashable]) -> None:
        """Drop all networks except those of the keys."""
        with self._lock:
            for key in [key for key in self._kept if key not in keys]:
                del self._kept[key]
