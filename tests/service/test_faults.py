"""Processes are killed while clients work. `python -m benchmarks.faults` does it with larger numbers."""

from benchmarks.faults.__main__ import fake_alone, make_request
from benchmarks.faults.run import run


def test_nothing_is_lost_or_done_twice_while_processes_are_killed(tmp_path):
    came = run(
        tmp_path / "data",
        worker_kills=3,
        api_kills=2,
        make=make_request,
        alone=fake_alone,
        options=("--device", "fake:0.01", "--log-level", "warning"),
        pause=0.3,
    )
    assert came.findings.faults == []
    assert came.refused == []
    assert came.kills == {"worker": 3, "api": 2}
    assert came.findings.states["done"] > 5
