"""`limner serve` as a program of its own, whose processes can be killed."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

Kind = Literal["api", "worker"]
_MODULES = {"limner.server.process": "api", "limner.service.worker": "worker"}


class Service:
    """A running `limner serve`. Leaving the block stops it.

    Args:
        data: Its folder.
        options: More options of the command.
        port: Port; 0 takes a free one.
        log: File that its log goes to.
    """

    def __init__(self, data: Path, *options: str, port: int = 0, log: Path | None = None) -> None:
        self.data, self.url = data, ""
        self._options, self._port = options, port
        self.log = log or data.with_name(f"{data.name}.log")
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Service":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = 180.0) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "limner", "serve", "--data", str(self.data)]
        command += ["--port", str(self._port), *self._options]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        out = self.process.stdout
        assert out is not None
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: lines.put(out.readline()), daemon=True).start()
        try:
            self.url = lines.get(timeout=timeout).strip()
        except queue.Empty:
            self.url = ""
        if not self.url:
            self.kill_all()
            raise AssertionError(f"limner serve did not start: {self.log.read_text()}")

    def pids(self, kind: Kind) -> list[int]:
        """The processes of a kind that live now."""
        assert self.process is not None
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError, ValueError, IndexError):
                after = status.read_text().rpartition(")")[2].split()
                if int(after[1]) == self.process.pid and after[0] != "Z":
                    words = (status.parent / "cmdline").read_bytes().decode().split("\0")
                    if any(_MODULES.get(word) == kind for word in words):
                        found.append(int(status.parent.name))
        return found

    def kill(self, kind: Kind) -> bool:
        """Kill the processes of a kind, as `kill -9` does. Returns whether there was one."""
        pids = self.pids(kind)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def kill_all(self) -> None:
        """Kill the supervisor alone; its processes notice that they are alone, and end."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None

    def stop(self, timeout: float = 180.0) -> int:
        """Stop it as an operator does, and return its exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("limner serve did not stop") from None
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None
        return code


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for a condition, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.02)
