"""A worker's connection to the hub: reconnects when it is lost, and never blocks the worker."""

import logging
import queue
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .channel import ChannelClosed, Frame, receive_frame, send_frame

_LOG = logging.getLogger("limner.worker")

_AGAIN = 0.25  # seconds until the next attempt to connect
_UNSENT = 512  # frames that wait to be sent; further news is dropped
_SLOW = 5.0  # seconds that an answer waits if they are too many


class HubLink:
    """Sends news to the hub, and passes on its messages. Safe to use from any thread.

    Args:
        path: The socket that the hub listens on.
        hello: Describes the worker, as `Frame.data` of a `hello` or `state`.
        heard: Called with each frame from the hub, in the thread of the connection.
    """

    def __init__(
        self, path: Path, hello: Callable[[], Mapping[str, Any]], heard: Callable[[Frame], None]
    ) -> None:
        self._path, self._hello, self._heard = path, hello, heard
        self._unsent: queue.Queue[Frame | None] = queue.Queue(_UNSENT)
        self._connection: socket.socket | None = None
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._connect, name="limner-hub", daemon=True),
            threading.Thread(target=self._send, name="limner-hub-sender", daemon=True),
        ]

    def start(self) -> None:
        """Connect, and stay connected until `close`."""
        for thread in self._threads:
            thread.start()

    @property
    def connected(self) -> bool:
        """Whether the hub listens."""
        return self._connection is not None

    def send(self, type: str, data: Mapping[str, Any], parts: tuple[bytes, ...] = ()) -> None:
        """Send news. It is dropped if the hub is not connected or does not read."""
        if self.connected:
            with suppress(queue.Full):
                self._unsent.put_nowait(Frame(type, data, parts))

    def answer(self, data: Mapping[str, Any], parts: tuple[bytes, ...] = ()) -> None:
        """Send the answer to a call; waits some seconds if the queue is full."""
        with suppress(queue.Full):
            self._unsent.put(Frame("answer", data, parts), timeout=_SLOW)

    def close(self) -> None:
        """Send what waits, and disconnect."""
        if self._closed.is_set():
            return
        self._closed.set()
        with suppress(queue.Full):
            self._unsent.put(None, timeout=_SLOW)
        self._threads[1].join(_SLOW)
        if (connection := self._connection) is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(_SLOW)

    def _connect(self) -> None:
        while not self._closed.is_set():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                try:
                    connection.connect(str(self._path))
                    send_frame(connection, Frame("hello", self._hello()))
                    self._connection = connection
                    while True:
                        self._heard(receive_frame(connection))
                except (ChannelClosed, OSError):
                    pass
                except Exception:  # a message of another version; connect again
                    _LOG.exception("a message of the hub cannot be handled")
                finally:
                    self._connection = None
            self._closed.wait(_AGAIN)

    def _send(self) -> None:
        while (frame := self._unsent.get()) is not None:
            if (connection := self._connection) is not None:
                try:
                    send_frame(connection, frame)
                except ChannelClosed:
                    pass
                except Exception:  # a frame that cannot be written; those after it can
                    _LOG.exception("a message to the hub cannot be sent")
