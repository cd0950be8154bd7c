"""Whether the service is ready, and gauges of its load."""

import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from limner.errors import LimnerError, StorageError

from .ledger.reading import Load
from .metrics import Meter, Source
from .reviews import BY_POLICY

_FRESH = 2.0  # seconds between checks of the stores


class HealthLedger(Protocol):
    """What is needed of the ledger."""

    def now(self) -> float:
        """The database's clock. Raises LedgerError."""

    def load(self) -> Load:
        """The length of the queue."""


class CheckedStore(Protocol):
    """What is needed of `limner.service.storage.ImageStore`."""

    def check(self) -> None:
        """Write, read and delete a small object. Raises StorageError."""


class ConnectedWorker(Protocol):
    """What is needed of `limner.service.hub.WorkerInfo`."""

    @property
    def id(self) -> str:
        """Its name, which no other process has."""

    @property
    def device(self) -> str:
        """Its device."""

    @property
    def problem(self) -> str | None:
        """Why it cannot work for the moment."""

    @property
    def draining(self) -> bool:
        """Whether it takes no more jobs."""


def check_room(data: Path, min_free_bytes: int) -> None:
    """Check that there is room for images on the disk of the data folder.

    Raises:
        StorageError: There is less than the setting `min_free_bytes`, or the folder cannot be read.
    """
    try:
        free = shutil.disk_usage(data).free
    except OSError as error:
        raise StorageError(f"the data folder cannot be read: {error.strerror}") from error
    if free < min_free_bytes:
        raise StorageError(
            f"{free >> 20:,} MiB are free on the service's disk; {min_free_bytes >> 20:,} MiB are needed",
            hint="an operator has to make room, or to lower the setting min_free_bytes",
        )


class Health:
    """Checks what a request needs: the ledger, the stores, room on the disk, and a worker.

    Args:
        data: Data folder.
        min_free_bytes: The setting of this name.
        workers: The connected workers.
    """

    def __init__(
        self,
        ledger: HealthLedger,
        store: CheckedStore,
        data: Path,
        min_free_bytes: int,
        workers: Callable[[], Sequence[ConnectedWorker]],
    ) -> None:
        self._ledger, self._store, self._workers = ledger, store, workers
        self._data, self._min_free_bytes = data, min_free_bytes
        self._lock = threading.Lock()
        self._checked = -_FRESH
        self._stores: dict[str, str] = {}

    def problems(self) -> Mapping[str, str]:
        """What is wrong, by part: "ledger", "disk", "pictures", "workers"; empty where all is well.

        Blocks. However often it is called, the stores are written to once in two seconds.
        """
        with self._lock:
            if time.monotonic() - self._checked >= _FRESH:
                self._stores = self._check_stores()
                self._checked = time.monotonic()
            found = dict(self._stores)
        workers = self._workers()
        if not workers:
            found["workers"] = "none is connected"
        elif all(one.problem is not None or one.draining for one in workers):
            broken = any(one.problem is not None for one in workers)  # what it is may name files and accounts
            found["workers"] = "they cannot work; the log says why" if broken else "all are being stopped"
        return found

    def _check_stores(self) -> dict[str, str]:
        found = {}
        try:
            self._ledger.now()
        except LimnerError as error:
            found["ledger"] = error.code
        try:
            check_room(self._data, self._min_free_bytes)
        except LimnerError as error:
            found["disk"] = error.message
        try:
            self._store.check()
        except LimnerError as error:
            found["pictures"] = error.code
        return found


def queue_gauges(ledger: HealthLedger) -> Source:
    """A source of metrics: what waits and runs."""

    def read(meter: Meter) -> None:
        load = ledger.load()
        for lane in ("interactive", "batch"):
            meter.set("limner_queue_jobs", load.waiting.get(lane, 0), lane=lane)
            meter.set("limner_queue_seconds", load.waiting_seconds.get(lane, 0.0), lane=lane)
            meter.set("limner_queue_oldest_seconds", load.oldest_seconds.get(lane, 0.0), lane=lane)
        meter.set("limner_running_jobs", load.running)

    return read


def review_gauges(open_reviews: Callable[[], Mapping[str, int]]) -> Source:
    """A source of metrics: the length of the moderation queue.

    Args:
        open_reviews: Returns the number of undecided reviews by the action of the policy.
    """

    def read(meter: Meter) -> None:
        waiting = open_reviews()
        for action in BY_POLICY:
            meter.set("limner_reviews_open", waiting.get(action, 0), action=action)

    return read


def health_gauges(health: Health, data: Path) -> Source:
    """A source of metrics: readiness, and room on the disk."""

    def read(meter: Meter) -> None:
        meter.set("limner_ready", 0.0 if health.problems() else 1.0)
        meter.set("limner_disk_free_bytes", shutil.disk_usage(data).free)

    return read


def worker_gauges(workers: Callable[[], Sequence[ConnectedWorker]]) -> Source:
    """A source of metrics: the workers that are connected, and those that have been."""
    seen: set[str] = set()
    devices: set[str] = set()

    def read(meter: Meter) -> None:
        connected = workers()
        for new in (one for one in connected if one.id not in seen):
            seen.add(new.id)
            devices.add(new.device)
            meter.count("limner_worker_starts_total", device=new.device)
        for device in devices:
            count = sum(one.device == device for one in connected)
            if count == 0:
                meter.forget(device=device)
            meter.set("limner_workers", count, device=device)

    return read
