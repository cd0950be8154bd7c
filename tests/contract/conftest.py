"""Fixtures of what meets the hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_standin import Hub, serve


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without repositories."""
    yield from serve(tmp_path / "cache", monkeypatch)
