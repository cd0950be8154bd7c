"""Clients that submit requests all the time, whatever happens, and write down what they were promised."""

import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

_AGAIN = 0.05  # seconds until a request without an answer is sent again


@dataclass(frozen=True)
class Promise:
    """A request that the service has accepted.

    Attributes:
        key: Its idempotency key.
        request: The request.
        set_id, job_ids: What the answer said.
        sent: Number of times that it was sent until there was an answer.
        seconds: Time of the last of them.
    """

    key: str
    request: Mapping[str, Any]
    set_id: str
    job_ids: tuple[str, ...]
    sent: int
    seconds: float


class Clients:
    """Some clients, each in a thread.

    Args:
        url: Returns the address of the service.
        count: Number of clients.
        most_open: Number of accepted jobs that have not ended from which on clients wait.
        make: Makes a request of a number that no other request has.
        seed: Of what is random.

    Attributes:
        sending: Number of requests that wait for their answer.
    """

    def __init__(
        self,
        url: Callable[[], str],
        make: Callable[[int], Mapping[str, Any]],
        *,
        count: int = 4,
        most_open: int = 100,
        seed: int = 0,
    ) -> None:
        self._url, self._make, self._most_open = url, make, most_open
        self._lock = threading.Lock()
        self._numbers = iter(range(1 << 30))
        self._stopping = threading.Event()
        self.sending = 0
        self.promises: list[Promise] = []
        self.refused: list[str] = []
        self._threads = [
            threading.Thread(target=self._work, args=(random.Random(seed + index),)) for index in range(count)
        ]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _work(self, rng: random.Random) -> None:
        with httpx.Client(timeout=30.0) as client:
            while not self._stopping.is_set():
                if self._open(client) >= self._most_open:
                    self._stopping.wait(0.1)
                    continue
                with self._lock:
                    number = next(self._numbers)
                request = {**self._make(number), "num_images": rng.choice((1, 1, 1, 2, 3))}
                self._submit(client, request)

    def _submit(self, client: httpx.Client, request: Mapping[str, Any]) -> None:
        """Send a request until there is an answer, always with the same idempotency key."""
        key, sent = uuid.uuid4().hex, 0
        while True:
            sent, began = sent + 1, time.monotonic()
            self._count(1)
            try:
                answer = client.post(
                    f"{self._url()}/api/v1/jobs", json={"request": request}, headers={"idempotency-key": key}
                )
            except httpx.TransportError:
                time.sleep(_AGAIN)
                continue
            finally:
                self._count(-1)
            if answer.status_code in (429, 503):
                time.sleep(_AGAIN)
                continue
            seconds = time.monotonic() - began
            with self._lock:
                if answer.is_success:
                    body = answer.json()
                    jobs = tuple(job["id"] for job in body["jobs"])
                    self.promises.append(Promise(key, request, body["id"], jobs, sent, seconds))
                else:
                    self.refused.append(f"{answer.status_code} {answer.text[:300]}")
            return

    def _count(self, change: int) -> None:
        with self._lock:
            self.sending += change

    def _open(self, client: httpx.Client) -> int:
        states = "&".join(f"state={state}" for state in ("queued", "running"))
        try:
            answer = client.get(f"{self._url()}/api/v1/jobs?limit=100&{states}")
            return len(answer.json()["items"]) if answer.is_success else self._most_open
        except (httpx.TransportError, ValueError):
            return self._most_open


def job_ids(promises: Sequence[Promise]) -> list[str]:
    """The jobs of all promises."""
    return [job for promise in promises for job in promise.job_ids]
