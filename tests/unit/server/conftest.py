"""Servers that draw without a model."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.checked_images import checked_service
from tests.serving import Served, serving


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server for the tests of a module."""
    with serving(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AbstractContextManager[Served]]:
    """Starts a server whose policy flags, blurs and blocks images."""
    return checked_service(tmp_path, monkeypatch)
