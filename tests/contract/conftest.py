"""Fixtures of what meets other programs: the hub, and clients of the service."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from hub_standin import Hub, serve

from limner.errors import NumericalError
from tests.serving import Painter, Served, serving


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without repositories."""
    yield from serve(tmp_path / "cache", monkeypatch)


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service without keys, whose worker takes its time, and fails at one prompt."""
    failure = NumericalError("the networks produced NaN", hint="choose another precision")
    painter = Painter(step_seconds=0.002, failures={"a fault": failure})
    folder = tmp_path_factory.mktemp("service")
    with serving(folder, painter=painter, aliases={"house/style": "picturebook"}) as running:
        yield running


@pytest.fixture(scope="session")
def sdk(live: Served) -> Iterator[openai.OpenAI]:
    """OpenAI's SDK on that service."""
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="any") as client:
        yield client
