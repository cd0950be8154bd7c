"""A small part of `python -m benchmarks.malformed`: malformed requests do no harm to the API process."""

import pytest

from benchmarks.malformed import attack


def check(report):
    assert not report.faults
    assert sum(report.statuses[status] for status in (400, 404, 405, 422)) > len(report.statuses)
    if report.memory:
        assert report.memory[-1] - report.memory[0] < 64 << 20
        assert report.files[-1] - report.files[0] < 32


def test_malformed_requests_do_no_harm(tmp_path):
    report = attack(200, 3, data=tmp_path, generated=False)
    assert sum(report.sent.values()) == 200
    check(report)


@pytest.mark.slow
def test_what_the_description_allows_and_forbids_does_no_harm(tmp_path):
    check(attack(3000, 4, data=tmp_path))
