"""What the supervisor and its processes have in common: how one is started, gets its order, and reports back.

A process is given one line of JSON on its standard input, and stays as long as that is open: when the
supervisor dies, however it dies, its processes notice and end. On its standard output it says that it is
ready, or why it cannot start; all else goes to standard error.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, TextIO

from limner.errors import LimnerError

from .channel import error_data


@dataclass(frozen=True)
class Order:
    """What a process is to do.

    Attributes:
        settings: `ServeSettings.to_json`.
        name: Name of the process, as the ledger and the log know it.
        first: Whether the service itself is starting; then faults of the settings end it, and later they
            are only logged.
        more: What only this kind of process needs.
    """

    settings: str
    name: str
    first: bool
    more: Mapping[str, Any]

    def to_line(self) -> str:
        """The order as a line of JSON."""
        return json.dumps(vars(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> "Order":
        """The order that `to_line` wrote."""
        return cls(**json.loads(line))


class Line:
    """A process' line to its supervisor. Made first of all, before anything prints.

    Args:
        stop: Called in another thread when the supervisor has died, and in the main thread on SIGTERM.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # whatever a library prints goes to the log
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal concerns the supervisor
        signal.signal(signal.SIGTERM, self._on_signal)

    def order(self, *, meanwhile: Callable[[], None] = lambda: None) -> Order:
        """Wait for the order. Ends the process where the supervisor dies before.

        Args:
            meanwhile: What to do before, as the order comes late.
        """
        meanwhile()
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)
        threading.Thread(target=self._watch, args=(sys.stdin,), name="limner-supervised", daemon=True).start()
        return Order.from_line(line)

    def ready(self) -> None:
        """Report that the process is ready."""
        self._say({"ready": True})

    def failed(self, error: LimnerError) -> None:
        """Report why the process cannot start."""
        self._say({"error": error_data(error)})

    def _say(self, message: Mapping[str, Any]) -> None:
        try:
            self._out.write(json.dumps(message) + "\n")
            self._out.flush()
        except OSError:
            pass  # the supervisor is gone, which `_watch` notices

    def _watch(self, source: TextIO) -> None:
        while source.readline():
            pass
        self._stop()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop()
