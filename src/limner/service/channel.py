"""Frames on the local socket between the API process and the workers.

A frame is the length of its header (4 bytes, big-endian), the header, a JSON object, and its binary parts,
whose sizes the header has under "parts". The API process listens; workers connect, and connect again after a
loss. What is lost is only news: the truth is in the ledger.

From a worker: `hello` and `state` (who it is, what it has in memory), `changed` (the ledger has new events),
`progress`, `observed` (measurements), `answer` (to a call). To a worker: `wake` (the ledger has new jobs),
`cancel`, `watch` (whose previews are wanted), `call`.
"""

import asyncio
import hashlib
import json
import os
import socket
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner import errors
from limner.errors import InternalError, LimnerError, OutputError

_LENGTH = struct.Struct(">I")
_MAX_HEADER = 4 << 20  # bytes
_MAX_PARTS = 1 << 30
_MAX_SOCKET_PATH = 100  # the system allows 107


class ChannelClosed(ConnectionError):
    """The other side has closed the connection, or sends malformed frames."""


@dataclass(frozen=True)
class Frame:
    """A message.

    Attributes:
        type: What it is.
        data: Its content, as JSON.
        parts: Its binary parts.
    """

    type: str
    data: Mapping[str, Any]
    parts: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        """The bytes of the frame."""
        header = json.dumps({"type": self.type, "data": self.data, "parts": [len(one) for one in self.parts]})
        encoded = header.encode()
        return b"".join((_LENGTH.pack(len(encoded)), encoded, *self.parts))


def _header_length(raw: bytes) -> int:
    (length,) = _LENGTH.unpack(raw)
    if not 2 <= length <= _MAX_HEADER:
        raise ChannelClosed(f"a frame's header has {length} bytes; expected 2 to {_MAX_HEADER}")
    return int(length)


def _read_header(raw: bytes) -> tuple[str, dict[str, Any], list[int]]:
    try:
        header = json.loads(raw)
        kind, data, sizes = header["type"], header["data"], [int(size) for size in header["parts"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ChannelClosed(f"a frame's header is malformed: {error}") from None
    if not (isinstance(kind, str) and isinstance(data, dict) and all(size >= 0 for size in sizes)):
        raise ChannelClosed("a frame's header is malformed")
    if sum(sizes) > _MAX_PARTS:
        raise ChannelClosed(f"a frame has {sum(sizes)} bytes; expected at most {_MAX_PARTS}")
    return kind, data, sizes


async def read_frame(reader: asyncio.StreamReader) -> Frame:
    """The next frame. Raises ChannelClosed at the end of the stream, or where no frame follows."""
    try:
        length = _header_length(await reader.readexactly(_LENGTH.size))
        kind, data, sizes = _read_header(await reader.readexactly(length))
        parts = [await reader.readexactly(size) for size in sizes]
    except (asyncio.IncompleteReadError, OSError) as error:
        raise ChannelClosed("the connection is closed") from error
    return Frame(kind, data, tuple(parts))


def receive_frame(connection: socket.socket) -> Frame:
    """The next frame from a socket. Raises as `read_frame`."""
    length = _header_length(_receive(connection, _LENGTH.size))
    kind, data, sizes = _read_header(_receive(connection, length))
    return Frame(kind, data, tuple(_receive(connection, size) for size in sizes))


def send_frame(connection: socket.socket, frame: Frame) -> None:
    """Send a frame on a socket. Raises ChannelClosed where the other side is gone."""
    try:
        connection.sendall(frame.encode())
    except OSError as error:
        raise ChannelClosed(f"the connection is closed: {error}") from error


def _receive(connection: socket.socket, size: int) -> bytes:
    pieces, missing = [], size
    while missing:
        try:
            piece = connection.recv(min(missing, 1 << 20))
        except OSError as error:
            raise ChannelClosed(f"the connection is closed: {error}") from error
        if not piece:
            raise ChannelClosed("the connection is closed")
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def hub_socket(data: Path) -> Path:
    """Path of the socket that the API process of a data directory listens on.

    It is in the directory's `run`, or, as the path of a socket is short, in a folder for temporary files that
    only this user can open.
    """
    path = data.absolute() / "run" / "hub.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(data.absolute())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"limner-{os.getuid()}-{digest}" / "hub.sock"


def make_socket_folder(path: Path) -> None:
    """Create the folder of a socket, which only this user can open.

    Raises:
        OutputError: It cannot be created, or it is another user's.
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        if status.st_uid != os.getuid():
            raise OutputError(f"{folder}, the folder of the service's socket, is another user's")
        folder.chmod(0o700)
    except OSError as error:
        raise OutputError(f"{folder} cannot be created: {error.strerror or error}") from error


def as_limner_error(error: BaseException) -> LimnerError:
    """The error as a LimnerError: any other exception becomes an InternalError."""
    if isinstance(error, LimnerError):
        return error
    unexpected = InternalError(
        f"{type(error).__name__}: {error}", hint="report this, with the log's traceback"
    )
    unexpected.__cause__ = error
    return unexpected


def for_callers(error: BaseException) -> LimnerError:
    """An error as callers may see it: without the text of an unexpected exception."""
    known = as_limner_error(error)
    cause = known.__cause__
    if not isinstance(known, InternalError) or cause is None or isinstance(cause, LimnerError):
        return known
    message = f"a fault of the service: {type(cause).__name__}"
    return InternalError(message, hint="the service's log has its traceback", fields=known.fields)


def error_data(error: BaseException) -> dict[str, Any]:
    """An error as JSON, from which `error_of` makes it again."""
    known = as_limner_error(error)
    return {"code": known.code, "message": known.message, "hint": known.hint, "fields": list(known.fields)}


def error_of(data: Mapping[str, Any]) -> LimnerError:
    """The error that `error_data` described. One of an unknown code is an InternalError."""
    kind = _BY_CODE.get(str(data.get("code")), InternalError)
    fields: Sequence[Any] = data.get("fields") or ()
    return kind(str(data.get("message")), hint=data.get("hint"), fields=tuple(map(str, fields)))


_BY_CODE: dict[str, type[LimnerError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LimnerError)
}
"""The class of each code."""
