"""What all event streams share, so that hundreds of them cost little: texts that are made once, turns in
which a few write at a time, and one look at each caller's key."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from limner.service.events import JobProgress, ServiceEvent
from limner.service.identity import Principal

_FEW = 20  # streams, which write whenever there is something
_PAUSE_PER_STREAM = 0.00125  # seconds between two rounds of writes, for each stream that takes part …
_LONGEST_PAUSE = 0.25  # … and at most
_AT_ONCE = 8  # streams that write before other work gets its turn
_TEXTS = 2000  # texts that are kept
_CHECK_SECONDS = 15.0  # for which a look at a key holds


@dataclass
class EventStreams:
    """All event streams that are open. Used in the event loop only.

    Attributes:
        open: Their number.
        open_of: The same by the account of their caller.
    """

    open: int = 0
    open_of: Counter[str] = field(default_factory=Counter)
    _texts: dict[object, tuple[ServiceEvent, str]] = field(default_factory=dict, repr=False)
    _waiting: "deque[asyncio.Future[None]]" = field(default_factory=deque, repr=False)
    _rounds: "asyncio.Task[None] | None" = field(default=None, repr=False)
    _last_round: float = field(default=float("-inf"), repr=False)
    _checks: "dict[tuple[str, str | None], tuple[float, asyncio.Future[bool]]]" = field(
        default_factory=dict, repr=False
    )

    def count(self, account_id: str, change: int) -> None:
        """Count a stream of an account that is opened, 1, or closed, -1."""
        self.open += change
        self.open_of[account_id] += change
        if not self.open_of[account_id]:
            del self.open_of[account_id]

    async def turn(self) -> None:
        """Return when a stream may write. At once, unless many are open: then they write in rounds, the more
        of them the less often, since each write costs the same whether it has one event or many; and a few at
        a time, so that nothing else waits for all of them."""
        if self.open <= _FEW:
            return
        ready = asyncio.get_running_loop().create_future()
        self._waiting.append(ready)
        if self._rounds is None:
            self._rounds = asyncio.create_task(self._write_in_rounds())
        await ready

    async def _write_in_rounds(self) -> None:
        while self._waiting:
            pause = min(_LONGEST_PAUSE, _PAUSE_PER_STREAM * self.open)
            await asyncio.sleep(max(0.0, self._last_round + pause - time.monotonic()))
            for number in range(len(self._waiting)):
                if number % _AT_ONCE == _AT_ONCE - 1:
                    await asyncio.sleep(0)
                with suppress(asyncio.InvalidStateError):  # its stream was closed
                    self._waiting.popleft().set_result(None)
            self._last_round = time.monotonic()
        self._rounds = None

    async def may_read(self, caller: Principal, look: Callable[[], Awaitable[bool]]) -> bool:
        """Whether a caller's key is still good, looked up every 15 seconds for all of the caller's streams.

        Args:
            look: Looks it up.
        """
        whose = (caller.account.id, caller.key.id if caller.key else None)
        now = time.monotonic()
        known = self._checks.get(whose)
        if known is None or now - known[0] >= _CHECK_SECONDS or _has_failed(known[1]):
            recent = [one for one in self._checks.items() if now - one[1][0] < _CHECK_SECONDS]
            known = now, asyncio.ensure_future(look())
            self._checks = {**dict(recent), whose: known}
        return await asyncio.shield(known[1])

    def text(self, event: ServiceEvent, previews: bool, make: Callable[[ServiceEvent, bool], str]) -> str:
        """The text of an event, which `make` makes once for all streams.

        Args:
            previews: Whether progress has previews.
        """
        key = (event.job_id, previews) if isinstance(event, JobProgress) else event.seq
        known = self._texts.get(key)
        if known is None or known[0] is not event:
            if len(self._texts) >= _TEXTS:
                self._texts.clear()
            known = self._texts[key] = event, make(event, previews)
        return known[1]


def _has_failed(answer: "asyncio.Future[bool]") -> bool:
    return answer.done() and (answer.cancelled() or answer.exception() is not None)
