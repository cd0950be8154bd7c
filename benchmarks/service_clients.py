"""Clients of the service benchmark: closed loops, streams of arrivals, and listeners of events."""

import http.client
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT = 600.0


class Connection:
    """A kept-alive connection to a server, for one thread."""

    def __init__(self, url: str) -> None:
        self._http = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_TIMEOUT)
        self._http.connect()
        self._http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] = {}
    ) -> bytes:
        """The body of the answer. Raises RuntimeError for a status that is no success."""
        sent = None if body is None else json.dumps(body)
        self._http.request(method, path, sent, {"content-type": "application/json", **headers})
        answer = self._http.getresponse()
        data = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {data[:500]!r}")
        return data

    def close(self) -> None:
        self._http.close()


Draw = Callable[[Connection, Mapping[str, Any]], bytes]
"""Has a server draw a request, and returns the file of the image."""


def draw_with_limner(connection: Connection, request: Mapping[str, Any]) -> bytes:
    """Submit a job, wait for its end and fetch the image."""
    submitted = connection.send("POST", "/api/v1/jobs", {"request": request}, {"prefer": "wait=600"})
    [job] = json.loads(submitted)["jobs"]
    if job["state"] != "done":
        raise RuntimeError(f"a job ended as {job['state']}: {job['error']}")
    return connection.send("GET", f"/api/v1/images/{job['image']['id']}/file")


def draw_with_peer(connection: Connection, request: Mapping[str, Any]) -> bytes:
    """Have the peer of the benchmark draw a request."""
    return connection.send("POST", "/generate", request)


def closed_loop(url: str, draw: Draw, requests: Sequence[Mapping[str, Any]], clients: int) -> float:
    """Seconds in which so many clients, each with one request at a time, get all images."""
    waiting, lock = iter(requests), threading.Lock()
    failures: list[Exception] = []

    def work() -> None:
        connection = Connection(url)
        try:
            while not failures:
                with lock:
                    request = next(waiting, None)
                if request is None:
                    return
                if draw(connection, request)[:4] != b"\x89PNG":
                    raise RuntimeError("the answer is no PNG")
        except Exception as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return time.perf_counter() - began


def arriving(
    url: str, draw: Draw, requests: Sequence[Mapping[str, Any]], moments: Sequence[float]
) -> list[float]:
    """Send each request at its moment; the seconds from then until its image is here."""

    def one(at: float, request: Mapping[str, Any]) -> float:
        time.sleep(max(0.0, began + at - time.perf_counter()))
        connection = Connection(url)
        try:
            draw(connection, request)
        finally:
            connection.close()
        return time.perf_counter() - began - at

    began = time.perf_counter()
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(one, moments, requests))


def accepting(url: str, requests: Iterable[Mapping[str, Any]], pause: float) -> list[float]:
    """Submit requests one after the other without waiting for their images; seconds that each took."""
    connection, taken = Connection(url), []
    for request in requests:
        began = time.perf_counter()
        connection.send("POST", "/api/v1/jobs", {"request": request})
        taken.append(time.perf_counter() - began)
        time.sleep(pause)
    connection.close()
    return taken


class Listeners(AbstractContextManager["Listeners"]):
    """Streams of server-sent events that are read by one thread and thrown away.

    Attributes:
        received: Bytes received by all of them.
    """

    def __init__(self, url: str, count: int, query: str = "") -> None:
        address = urlsplit(url)
        self.received = 0
        self._stopping = threading.Event()
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        for _ in range(count):
            one = socket.create_connection((address.hostname, address.port))
            one.sendall(f"GET /api/v1/events{query} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
            if not one.recv(4096).startswith(b"HTTP/1.1 200"):
                raise RuntimeError("an event stream was refused")
            one.setblocking(False)
            self._sockets[one.fileno()] = one
            self._poll.register(one, select.EPOLLIN)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._stopping.is_set():
            for number, _ in self._poll.poll(0.1):
                data = self._sockets[number].recv(1 << 18)
                if not data:
                    self._poll.unregister(number)
                self.received += len(data)

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._poll.close()
        for one in self._sockets.values():
            one.close()


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU seconds that processes have used."""
    ticks = 0
    for pid in pids:
        after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(after[11]) + int(after[12])
    return ticks / os.sysconf("SC_CLK_TCK")
