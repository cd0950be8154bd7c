"""Clocks that a test sets, for one module alone."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


def time_with(**functions: Callable[..., Any]) -> SimpleNamespace:
    """The module `time` with some functions in place of its own.

    It takes the place of `time` in the module under test. A function replaced in `time` itself would be that
    of all threads, such as those of a server that other tests have started.
    """
    return SimpleNamespace(**{**vars(time), **functions})
