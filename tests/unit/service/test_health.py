"""Readiness, and the gauges of the queue."""

from dataclasses import dataclass

import pytest

from limner.errors import InvalidRequest, LedgerError
from limner.service.health import Health, health_gauges, queue_gauges, worker_gauges
from limner.service.ledger.reading import Load
from limner.service.metrics import Metrics
from tests.clocks import time_with


@dataclass
class Worker:
    problem: str | None = None
    draining: bool = False
    device: str = "cpu"
    id: str = "w1"


class Parts:
    """A ledger and a store, which can fail."""

    ledger_error = store_error = None
    checks = 0

    def now(self):
        if self.ledger_error:
            raise self.ledger_error
        return 0.0

    def check(self):
        self.checks += 1
        if self.store_error:
            raise self.store_error

    def load(self):
        return Load({"batch": 3}, {"batch": 7.5}, 2, {"batch": 60.0}, 1.0)


@pytest.fixture
def clock(monkeypatch):
    """Seconds of `time.monotonic`, which the test moves on."""
    now = [1000.0]
    monkeypatch.setattr("limner.service.health.time", time_with(monotonic=lambda: now[0]))
    return now


def health(parts, folder, *workers, free=0):
    return Health(parts, parts, folder, free, lambda: workers)


def test_all_is_well(tmp_path):
    assert health(Parts(), tmp_path, Worker("full"), Worker()).problems() == {}


@pytest.mark.parametrize(
    ("workers", "problem"),
    [
        ((), "none is connected"),
        ((Worker("/srv/anna is full"), Worker(draining=True)), "they cannot work; the log says why"),
        ((Worker(draining=True),), "all are being stopped"),
    ],
)
def test_somebody_must_be_there_to_work(tmp_path, workers, problem):
    assert health(Parts(), tmp_path, *workers).problems() == {"workers": problem}


def test_stores_that_do_not_answer_are_named_without_details(tmp_path):
    parts = Parts()
    parts.ledger_error = LedgerError("postgresql://host/db does not answer")
    parts.store_error = InvalidRequest("/srv/pictures: no space left")
    found = health(parts, tmp_path, Worker()).problems()
    assert found == {"ledger": LedgerError.code, "pictures": "invalid_request"}


def test_a_disk_that_is_nearly_full_is_a_problem(tmp_path):
    [(part, problem)] = health(Parts(), tmp_path, Worker(), free=1 << 60).problems().items()
    assert part == "disk"
    assert problem.endswith("are free on the service's disk; 1,099,511,627,776 MiB are needed")
    assert health(Parts(), tmp_path / "gone", Worker()).problems().keys() == {"disk"}


def test_the_store_is_not_written_at_each_call(tmp_path, clock):
    parts = Parts()
    checked = health(parts, tmp_path, Worker())
    for _ in range(5):
        checked.problems()
    assert parts.checks == 1
    clock[0] += 2
    parts.store_error = InvalidRequest("no")
    assert "pictures" in checked.problems()
    assert parts.checks == 2


def test_gauges_of_the_queue_and_of_readiness(tmp_path):
    parts = Parts()
    metrics = Metrics([queue_gauges(parts), health_gauges(health(parts, tmp_path), tmp_path)])
    metrics.exposition()
    assert metrics.value("limner_queue_jobs", lane="batch") == 3
    assert metrics.value("limner_queue_jobs", lane="interactive") == 0
    assert metrics.value("limner_queue_seconds", lane="batch") == 7.5
    assert metrics.value("limner_queue_oldest_seconds", lane="batch") == 60
    assert metrics.value("limner_running_jobs") == 2
    assert metrics.value("limner_ready") == 0
    assert metrics.value("limner_disk_free_bytes") > 0


def test_workers_are_counted_by_device_and_gauges_of_those_that_are_gone_forgotten():
    connected = [Worker(id="a"), Worker(id="b", device="cuda:0")]
    metrics = Metrics([worker_gauges(lambda: connected)])
    metrics.set("limner_device_power_watts", 300, device="cuda:0")
    metrics.exposition()
    connected[:] = [Worker(id="c")]
    metrics.exposition()
    metrics.exposition()
    assert metrics.value("limner_workers", device="cpu") == 1
    assert metrics.value("limner_workers", device="cuda:0") == 0
    assert metrics.value("limner_worker_starts_total", device="cpu") == 2
    assert b'limner_workers{device="cuda:0"} 0.0' in metrics.exposition()[0]
    assert b"power_watts{" not in metrics.exposition()[0]
