"""HTTP connections with a time limit: one on which no request arrives is closed.

uvicorn closes a connection that is idle after an answer, but waits without end for a first request, or for
the rest of one whose headers have begun. A client that trickles them, or many that send nothing, would hold
their connections forever.
"""

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

REQUEST_SECONDS = 30.0
"""Seconds in which the headers of a request must have arrived."""

_Protocol: Any = AutoHTTPProtocol  # chosen when uvicorn is imported


class PatientProtocol(_Protocol):  # type: ignore[misc]
    """uvicorn's protocol, with a limit on the time that the headers of a request take."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._began = time.monotonic()  # when the connection was made, or the last answer ended
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._began = time.monotonic()
        self._timer = self.loop.call_later(REQUEST_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._began = time.monotonic()
        super().on_response_complete()

    def _look(self) -> None:
        """Close the connection if it has been without a request for too long; else look again later."""
        if self.transport.is_closing():
            return
        answering = self.cycle is not None and not self.cycle.response_complete
        left = self._began + REQUEST_SECONDS - time.monotonic()
        # uvicorn's own limit holds for a connection on which nothing has come since the last answer.
        if not answering and left <= 0 and self.timeout_keep_alive_task is None:
            self.transport.close()
            return
        self._timer = self.loop.call_later(REQUEST_SECONDS if answering else max(left, 1.0), self._look)
