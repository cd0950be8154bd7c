"""OpenVINO's runtime, one per process, and its libraries without their telemetry (https://docs.openvino.ai)."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import RLock
from types import ModuleType
from typing import Any

from limner.errors import InvalidRequest

INSTALL = 'pip install "limner[openvino]"'

_LOADING = RLock()  # held by the thread that imports a library or creates the runtime


def core() -> Any:
    """OpenVINO's runtime, one per process. Raises InvalidRequest if OpenVINO is not installed.

    A runtime installs a signal stack in the thread that first uses it, and unmaps it when it is freed. Freed
    in another thread, or before a runtime that was created later, it leaves a thread with an unmapped signal
    stack, and the next signal that Python handles, such as that of Ctrl-C, ends the process with a
    segmentation fault.
    """
    with _LOADING:
        return _core()


@cache
def _core() -> Any:
    return library("openvino").Core()


def computes_in_bf16() -> bool:
    """Whether OpenVINO computes in bf16 on this CPU. Raises InvalidRequest if OpenVINO is not installed."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def library(name: str) -> ModuleType:
    """OpenVINO or NNCF, imported. Raises InvalidRequest if it is not installed."""
    try:
        with _LOADING, _without_telemetry():
            return importlib.import_module(name)
    except ImportError:
        raise InvalidRequest(
            f"the openvino backend needs {name}, which is not installed", hint=INSTALL
        ) from None


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Hide the package with which both libraries report their import and use to a server."""
    hidden = {name: sys.modules[name] for name in ("openvino_telemetry",) if name in sys.modules}
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["openvino_telemetry"]
        sys.modules.update(hidden)
