"""Functions that run at the same time, in threads of their own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

from tests.waiting import DEADLINE

T = TypeVar("T")


def at_once(*works: Callable[[], T]) -> list[T]:
    """The results of functions that begin together. Raises the first error, once all have ended."""
    begin = Barrier(len(works))

    def run(work: Callable[[], T]) -> T:
        begin.wait(DEADLINE)
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        futures = [pool.submit(run, work) for work in works]
    return [future.result() for future in futures]
