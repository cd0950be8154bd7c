"""Objects that are renewed in a forked process, as a fork copies locks but not the threads that hold them."""

import os
from typing import Protocol
from weakref import WeakSet


class Renews(Protocol):
    """What has threads or locks of its own."""

    def renew(self) -> None:
        """In the forked process: forget threads and what they were doing, and make new locks."""


_RENEWED: "WeakSet[Renews]" = WeakSet()


def renew_after_fork(one: Renews) -> None:
    """Have an object renew itself in every process forked from this one, as long as it lives."""
    _RENEWED.add(one)


def _renew() -> None:
    for one in list(_RENEWED):
        one.renew()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew)
