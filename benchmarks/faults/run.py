"""One run: a service, clients, and kills at random moments."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from limner.service.ledger.ledger import Ledger
from limner.service.storage import ImageStore

from .checking import Alone, Findings, check
from .clients import Clients
from .service import Kind, Service, until

_REQUEST, _ACCEPTING = 5.0, 0.03  # seconds until there is a request, and that it takes to be accepted


@dataclass
class Run:
    """What a run came to.

    Attributes:
        findings: Of the checker.
        kills: Number of kills by kind of process.
        accepted: Number of requests that were accepted.
        seconds: Time of the run.
        answers: Seconds until requests were accepted, sorted.
        refused: Answers other than success, 429 and 503.
    """

    findings: Findings
    kills: dict[str, int]
    accepted: int
    seconds: float
    answers: list[float] = field(repr=False)
    refused: list[str]


def run(
    data: Path,
    *,
    worker_kills: int,
    api_kills: int,
    make: Callable[[int], Mapping[str, Any]],
    alone: Alone | None = None,
    options: Sequence[str] = (),
    pause: float = 1.0,
    clients: int = 4,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Run:
    """Kill processes at random moments while clients work, wait until all jobs have ended, and check.

    Args:
        make: Makes a request of a number.
        options: Options of `limner serve`.
        pause: Seconds between kills, on average. Each waits until its process is there again and another
            request has been accepted, and one of an API process until a request is on its way.
    """
    rng, began = random.Random(seed), time.monotonic()
    kinds: list[Kind] = ["worker"] * worker_kills + ["api"] * api_kills
    rng.shuffle(kinds)
    done = {"worker": 0, "api": 0}
    with Service(data, *options) as service:
        with Clients(lambda: service.url, make, count=clients, seed=seed) as load:
            accepted = 0
            for number, kind in enumerate(kinds, 1):
                until(lambda before=accepted: len(load.promises) > before, 180, "an accepted request")  # type: ignore[misc]
                accepted = len(load.promises)
                time.sleep(rng.expovariate(1.0 / pause))
                until(lambda kind=kind: service.pids(kind), 180, f"another {kind} process")  # type: ignore[misc]
                if kind == "api":
                    _wait_for_a_request(load, rng)
                done[kind] += service.kill(kind)
                if number % 10 == 0:
                    say(f"{number} kills, {len(load.promises)} requests accepted")
        with httpx.Client(timeout=30.0) as client:
            until(lambda: _ended(client, service.url), 600, "the end of all jobs")
    ledger = Ledger.open(f"sqlite:///{data / 'ledger.sqlite3'}")
    try:
        findings = check(ledger, ImageStore.in_folder(data / "pictures"), load.promises, alone)
    finally:
        ledger.close()
    answers = sorted(promise.seconds for promise in load.promises)
    seconds = time.monotonic() - began
    return Run(findings, done, len(load.promises), seconds, answers, load.refused)


def _wait_for_a_request(load: Clients, rng: random.Random) -> None:
    """Wait until a request is on its way, and a little longer: before, while or after it is accepted."""
    end = time.monotonic() + _REQUEST
    while not load.sending and time.monotonic() < end:
        time.sleep(0.0005)
    time.sleep(rng.uniform(0.0, _ACCEPTING))


def _ended(client: httpx.Client, url: str) -> bool:
    states = "state=queued&state=running"
    try:
        answer = client.get(f"{url}/api/v1/jobs?limit=1&{states}")
        return answer.is_success and not answer.json()["items"]
    except httpx.TransportError:
        return False
