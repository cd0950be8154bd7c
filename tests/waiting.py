"""Waiting for what other threads, tasks and processes do."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE = 120
"""Seconds after which a test fails that waits in vain. A busy machine takes much less, and a test that passes
does not wait for it."""


def until(condition: Callable[[], T], what: str = "what is waited for", seconds: float = DEADLINE) -> T:
    """What a condition returns, once that is true.

    Args:
        condition: Called again and again.
        what: Named where it does not happen.

    Raises:
        AssertionError: It has not happened within `seconds`.
    """
    end, pause = time.monotonic() + seconds, 0.002
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not happen within {seconds:g} s"
        time.sleep(pause)
        pause = min(1.2 * pause, 0.1)
    return found


async def until_in_loop(condition: Callable[[], object]) -> None:
    """Waits in an event loop until a condition holds. Raises TimeoutError after `DEADLINE` seconds."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)
