"""Threads for what must not hold up the thread of a device: files, hashes, images, the network."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Workers:
    """Runs functions in a few threads, which end as soon as there is nothing left to do.

    They do not stay idle, as every thread that has run PyTorch operators keeps OpenMP workers, and with more
    of these than cores the small forward passes of other threads take twice as long.

    Args:
        name: Name of the threads.
        most: Number of threads at once.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most = name, most
        self._lock = threading.Lock()
        self._tasks: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._running = 0

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        """Run a function in one of the threads."""
        future: Future[T] = Future()
        with self._lock:
            self._tasks.append((future, call))
            if self._running == self._most:
                return future
            self._running += 1
        threading.Thread(target=self._work, name=self._name).start()
        return future

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._tasks:
                    self._running -= 1
                    return
                future, call = self._tasks.popleft()
            try:
                result = call()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
