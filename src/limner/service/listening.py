"""The listening socket of the service: bound before anything else starts, with errors that help."""

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path

from limner.errors import InvalidRequest

_BACKLOG = 2048  # connections that wait while the API process starts again
_TRIED = 20  # ports above a taken one that are tried, to suggest one
_LISTENING = "0A"  # the state in /proc/net/tcp


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address. Port 0 takes a free one.

    Raises:
        InvalidRequest: The port is taken, with the program that has it and a free port; the address is not
            this machine's; the port is not allowed.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise InvalidRequest(f"host is {host!r}: {error.strerror}", fields=("host",)) from None
    family, _, _, _, address = found[0]
    try:
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise _refused(host, port, family, error) from error


def address_of(listening: socket.socket) -> str:
    """The address of a listening socket as in a URL: "127.0.0.1:8188", "[::1]:8188"."""
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if listening.family == socket.AF_INET6 else f"{host}:{port}"


def _refused(host: str, port: int, family: int, error: OSError) -> InvalidRequest:
    match error.errno:
        case errno.EADDRINUSE:
            free = _free_port(host.strip("[]"), port, family)
            return InvalidRequest(
                f"port {port} is taken by {_owner(port) or 'another program'}",
                hint="choose another" + (f", such as `port={free}`, which is free" if free else ""),
                fields=("port",),
            )
        case errno.EADDRNOTAVAIL:
            return InvalidRequest(
                f"{host} is no address of this machine",
                hint="give `host=127.0.0.1` for this machine alone, or `host=0.0.0.0` for all addresses",
                fields=("host",),
            )
        case errno.EACCES | errno.EPERM:
            return InvalidRequest(
                f"port {port} may not be used by this user",
                hint="choose one above 1023",
                fields=("port",),
            )
    return InvalidRequest(f"{host}:{port} cannot be listened on: {error.strerror}", fields=("host", "port"))


def _free_port(host: str, taken: int, family: int) -> int | None:
    for port in range(taken + 1, min(taken + 1 + _TRIED, 65536)):
        with suppress(OSError), socket.create_server((host, port), family=family):
            return port
    return None


def _owner(port: int) -> str | None:
    """The process that listens on a port, as "python (pid 7)", where the system tells."""
    inodes = {f"socket:[{inode}]" for inode in _inodes(port)}
    for process in Path("/proc").glob("[0-9]*") if inodes else ():
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    if os.readlink(descriptor) in inodes:
                        name = (process / "comm").read_text().strip()
                        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                        program = "limner serve" if "limner" in "".join(words) else name
                        return f"{program} (pid {process.name})"
    return None


def _inodes(port: int) -> set[str]:
    """The inodes of the sockets that listen on a port, from Linux' tables."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == _LISTENING and int(words[1].rpartition(":")[2], 16) == port:
                    found.add(words[9])
    return found
