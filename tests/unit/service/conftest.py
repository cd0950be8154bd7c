"""A ledger in a temporary folder, and short ways to fill it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Column, update

from limner.service.identity import LOCAL_ACCOUNT, Principal
from limner.service.jobs import JobSet, NewJob, StoredImage, Submission
from limner.service.ledger.ledger import Ledger
from limner.service.ledger.schema import metadata
from tests import postgres


@pytest.fixture(scope="session")
def fresh_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with an empty ledger, to be copied: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite3"
    Ledger.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server with a ledger."""
    if postgres.programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres.server() as url:
        Ledger.open(url).close()
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """An empty ledger in PostgreSQL."""
    rows = {"accounts": f"DELETE FROM accounts WHERE id <> '{LOCAL_ACCOUNT}'"}
    rows["counters"] = "UPDATE counters SET value = 0"
    tables = [table.name for table in reversed(metadata.sorted_tables)]
    postgres.execute(postgres_server, *(rows.get(name, f"DELETE FROM {name}") for name in tables))
    return postgres_server


@pytest.fixture
def sqlite_url(fresh_ledger: Path, tmp_path: Path) -> str:
    """An empty ledger in SQLite."""
    path = tmp_path / "ledger.sqlite3"
    path.write_bytes(fresh_ledger.read_bytes())
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """An empty ledger, in SQLite and in PostgreSQL."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    opened = Ledger.open(ledger_url)
    yield opened
    opened.close()


@pytest.fixture
def anna(ledger: Ledger) -> Principal:
    return Principal(ledger.create_account("anna"))


@pytest.fixture
def bert(ledger: Ledger) -> Principal:
    return Principal(ledger.create_account("bert"))


@pytest.fixture
def submit(ledger: Ledger) -> Callable[..., JobSet]:
    """Accepts a set of `count` jobs for a principal."""

    def accept(
        principal: Principal, count: int = 1, *, model: str = "m", seconds: float = 1.0, **more: object
    ) -> JobSet:
        jobs = tuple(NewJob({"prompt": f"boat {index}"}, model, seconds) for index in range(count))
        return ledger.accept(principal, Submission(jobs, {"prompt": "boat"}, **more))

    return accept


@pytest.fixture
def set_back(ledger: Ledger) -> Callable[[Column[float], float], None]:
    """Sets a time of all rows of a table back by some seconds, as if these had passed."""

    def move(column: Column[float], seconds: float) -> None:
        with ledger._db.write() as tx:
            tx.execute(update(column.table).values({column: column - seconds}))

    return move


@pytest.fixture
def stored() -> Callable[..., StoredImage]:
    """Makes an image as a worker hands it in."""

    def image(job_id: str, fence: int = 1, *, size: int = 100) -> StoredImage:
        return StoredImage(
            id=f"img_{job_id}_{fence}",
            job_id=job_id,
            account_id="",
            key=f"{job_id}/{fence}.png",
            sha256="00" * 32,
            pixels_sha256="11" * 32,
            width=64,
            height=32,
            bytes=size,
            record={"prompt": "boat"},
        )

    return image
