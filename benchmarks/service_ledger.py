"""The ledger by itself: jobs accepted, claimed and finished in a second, in SQLite and PostgreSQL.

Every commit waits for the disk, so the disk's own pace is measured, too: bare SQLite transactions of one row
with the same settings.
"""

import multiprocessing
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from limner.service.identity import Principal
from limner.service.jobs import Completion, NewJob, StoredImage, Submission
from limner.service.ledger.ledger import Ledger
from tests import postgres

from .harness import Chart, Spread, Table

_REQUEST = {
    "prompt": "a yellow boat on the sea at sunset, a lighthouse behind it, clouds in the sky",
    "steps": 20,
    "guidance_scale": 4.0,
    "width": 128,
    "height": 128,
    "seed": 7,
    "sampler": "dpmpp_2m",
}
_CLAIMERS = 8
Data = dict[str, Any]


def measured(quick: bool) -> Data:
    """Figures of each database."""
    number = 40 if quick else 1500
    found: Data = {"bare SQLite commits per second": bare_commits(20 if quick else 500)}
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/ledger.sqlite3"
        found["SQLite"] = {
            **accepting(url, number, threads=1),
            **accepting(url, number, threads=16),
            **working(url, processes=1, threads=1, limit=1),
        }
        submit(url, number)
        found["SQLite"] |= working(url, processes=1, threads=_CLAIMERS, limit=1)
        submit(url, number)
        found["SQLite"] |= working(url, processes=2, threads=2, limit=4)
    if postgres.programs() is not None:
        with postgres.server(durable=True) as url:
            Ledger.open(url).close()
            found["PostgreSQL"] = {
                **accepting(url, number, threads=1),
                **accepting(url, number, threads=16),
                **working(url, processes=_CLAIMERS, threads=1, limit=1),
            }
            submit(url, number)
            found["PostgreSQL"] |= working(url, processes=2, threads=_CLAIMERS // 2, limit=1)
    return found


def tables(found: Data) -> list[Table]:
    """Tables of what was measured."""
    rows = []
    for name in ("SQLite", "PostgreSQL"):
        for what, figures in found.get(name, {}).items():
            rows.append(
                (
                    f"{name}: {what}",
                    f"{figures['per second']:.0f}",
                    f"{figures['p50']:.1f} ms",
                    f"{figures['p99']:.1f} ms",
                    f"{figures['cpu']:.2f} ms",
                )
            )
    pace = found["bare SQLite commits per second"]
    columns = ("", "jobs per second", "p50", "p99", "CPU of the clients a job")
    return [Table(f"The ledger alone, on a disk that takes {pace:.0f} commits a second", columns, rows)]


def charts(found: Data) -> list[Chart]:
    """A chart of the rates."""
    bars = {
        f"{name}: {what}": Spread.of([figures["per second"]])
        for name in ("SQLite", "PostgreSQL")
        for what, figures in found.get(name, {}).items()
    }
    return [Chart("The ledger alone", "jobs/s", bars)]


def bare_commits(number: int) -> float:
    """Transactions of one row in a second, with the ledger's settings and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        bare = sqlite3.connect(f"{folder}/bare.sqlite3", isolation_level=None)
        bare.execute("PRAGMA journal_mode = WAL")
        bare.execute("PRAGMA synchronous = FULL")
        bare.execute("CREATE TABLE rows (value)")
        began = time.perf_counter()
        for index in range(number):
            bare.execute("INSERT INTO rows VALUES (?)", (index,))
        return number / (time.perf_counter() - began)


def submit(url: str, number: int) -> None:
    """Accept jobs in sets of a hundred."""
    with opened(url) as ledger:
        caller = Principal(ledger.get_account("local"))
        for start in range(0, number, 100):
            jobs = tuple(NewJob(_REQUEST, "picturebook", 1.0) for _ in range(min(100, number - start)))
            ledger.accept(caller, Submission(jobs, _REQUEST))


def accepting(url: str, number: int, threads: int) -> Data:
    """Accept jobs one by one in some threads."""

    def accept(ledger: Ledger, share: int) -> list[float]:
        caller, took = Principal(ledger.get_account("local")), []
        for _ in range(share):
            began = time.perf_counter()
            ledger.accept(caller, Submission((NewJob(_REQUEST, "picturebook", 1.0),), _REQUEST))
            took.append(time.perf_counter() - began)
        return took

    return {f"accepted by {threads} threads": in_threads(url, threads, number // 2 // threads, accept)}


def working(url: str, processes: int, threads: int, limit: int) -> Data:
    """Claim and finish everything that waits."""
    what = f"claimed and finished by {processes} x {threads} claimers, {limit} at a time"
    if processes == 1:
        return {what: in_threads(url, threads, limit, work)}
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes + 1)
    queue: Any = context.Queue()
    workers = [
        context.Process(target=_process, args=(url, threads, limit, barrier, queue)) for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    barrier.wait()
    began = time.perf_counter()
    parts = [queue.get() for _ in workers]
    seconds = time.perf_counter() - began
    for worker in workers:
        worker.join()
    took = [one for part in parts for one in part["took"]]
    return {what: figures(took, seconds, sum(part["cpu"] for part in parts))}


def work(ledger: Ledger, limit: int) -> list[float]:
    """Claim and finish until nothing waits: seconds of each claim with its finishes, by job."""
    took: list[float] = []
    name = f"{threading.get_ident()}"
    while True:
        began = time.perf_counter()
        claims = ledger.claim(name, lease_seconds=60, limit=limit, warm=["picturebook"])
        if not claims:
            return took
        for claim in claims:
            job = claim.job
            key = f"{job.id}/{job.fence}"
            image = StoredImage(key, job.id, "", key, "0" * 64, "1" * 64, 128, 128, 30_000, dict(job.params))
            if not ledger.finish(job.id, job.fence, Completion(image, 1.0, price=0.001)):
                raise RuntimeError(f"{job.id} was claimed twice")
        took += [(time.perf_counter() - began) / len(claims)] * len(claims)


def in_threads(url: str, threads: int, argument: int, act: Callable[[Ledger, int], list[float]]) -> Data:
    """What some threads of this process do with one ledger."""
    with opened(url) as ledger:
        ready = threading.Barrier(threads + 1)
        took: list[float] = []

        def run() -> None:
            ready.wait()
            took.extend(act(ledger, argument))

        running = [threading.Thread(target=run) for _ in range(threads)]
        for thread in running:
            thread.start()
        ready.wait()
        began, used = time.perf_counter(), time.process_time()
        for thread in running:
            thread.join()
        return figures(took, time.perf_counter() - began, time.process_time() - used)


def _process(url: str, threads: int, limit: int, barrier: Any, queue: Any) -> None:
    """A process of claimers."""
    with opened(url) as ledger:
        ledger.load()  # the first use of everything
        barrier.wait()
        took: list[float] = []
        used = time.process_time()
        running = [threading.Thread(target=lambda: took.extend(work(ledger, limit))) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        queue.put({"took": took, "cpu": time.process_time() - used})


@contextmanager
def opened(url: str) -> Iterator[Ledger]:
    """A ledger."""
    ledger = Ledger.open(url)
    try:
        yield ledger
    finally:
        ledger.close()


def figures(took: Sequence[float], seconds: float, cpu: float) -> Data:
    """Rate and latencies in milliseconds."""
    ordered = sorted(took)
    return {
        "per second": len(took) / seconds,
        "p50": 1000 * statistics.median(ordered),
        "p99": 1000 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "cpu": 1000 * cpu / len(took),
        "jobs": len(took),
    }
