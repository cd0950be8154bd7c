"""Opening a ledger: migrations with data in them, and what is refused with the way out."""

import re
import sqlite3
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from limner.errors import LedgerError, LedgerUnavailable
from limner.request.dial import Dial
from limner.service.identity import LOCAL_ACCOUNT, Principal
from limner.service.jobs import Completion, NewJob, StoredImage, Submission
from limner.service.ledger import database
from limner.service.ledger.database import _of_postgres, file_system
from limner.service.ledger.ledger import Ledger
from limner.service.ledger.schema import HEAD, metadata
from tests import postgres
from tests.clocks import time_with
from tests.concurrency import at_once


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty_url(request, tmp_path):
    """A database with nothing in it."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.sqlite3"
        return
    url = request.getfixturevalue("postgres_server")
    postgres.execute(url, "CREATE SCHEMA other")
    yield f"{url}&options=-csearch_path%3Dother"
    postgres.execute(url, "DROP SCHEMA other CASCADE")


def upgrade(url: str, revision: str) -> None:
    """Brings a database to a revision, as an older program would have left it."""
    engine = create_engine(url)
    with engine.begin() as connection:
        config = database._alembic()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def revisions() -> list[str]:
    scripts = ScriptDirectory.from_config(database._alembic()).walk_revisions()
    return [script.revision for script in scripts][::-1]


def test_the_schema_is_what_the_migrations_make(empty_url):
    Ledger.open(empty_url).close()
    engine = create_engine(empty_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        names = {table.name: {index.name for index in table.indexes} for table in metadata.tables.values()}
        for table, indexes in names.items():
            assert indexes <= {index["name"] for index in inspect(connection).get_indexes(table)}
    engine.dispose()
    assert revisions()[-1] == HEAD


ROWS = (  # of the first schema, as its program wrote them
    "INSERT INTO accounts VALUES ('local', 'operator', 1.0, '{}', '{}', 1000.5, false)",
    "INSERT INTO accounts VALUES ('anna', 'user', 2.0, '{\"images_per_day\": 9}', '{}', 1001.5, false)",
    "INSERT INTO counters VALUES ('events', 0)",
    "INSERT INTO sets (id, account_id, kind, lane, client, request, warnings, digest, created_at)"
    " VALUES ('set_1', 'anna', 'generate', 'interactive', 'native', '{\"prompt\": \"ein Böötchen\"}',"
    " '[]', '', 5)",
    'INSERT INTO jobs (id, set_id, "index", account_id, kind, lane, state, params, model,'
    " predicted_seconds, position, attempt, fence, created_at, queued_at, started_at, finished_at,"
    " device_seconds, cost) VALUES ('job_1', 'set_1', 0, 'anna', 'generate', 'interactive', 'done',"
    " '{\"seed\": 7}', 'm', 2.5, 1.0, 2, 3, 5, 5, 6, 9, 2.25, 0.5)",
    'INSERT INTO jobs (id, set_id, "index", account_id, kind, lane, state, params, model,'
    " predicted_seconds, position, created_at, queued_at) VALUES ('job_2', 'set_1', 1, 'anna', 'generate',"
    " 'interactive', 'queued', '{\"seed\": 8}', 'm', 2.5, 2.0, 5, 5)",
    "INSERT INTO attempts (job_id, fence, number, worker, started_at, ended_at, outcome)"
    " VALUES ('job_1', 3, 2, 'w', 6, 9, 'done')",
    "INSERT INTO images (id, job_id, account_id, key, sha256, pixels_sha256, width, height, bytes, record,"
    " created_at) VALUES ('img_1', 'job_1', 'anna', 'a/b.png', 'ab', 'cd', 64, 32, 5000000000, '{}', 9)",
    "INSERT INTO usage (job_id, fence, account_id, kind, model, images, predicted_seconds, device_seconds,"
    " cost, started_at, at) VALUES ('job_1', 3, 'anna', 'generate', 'm', 1, 2.5, 2.25, 0.5, 6, 9)",
    "INSERT INTO shares (lane, account_id) VALUES ('interactive', ''), ('interactive', 'anna')",
)


@pytest.mark.parametrize("start", revisions())
def test_what_was_in_an_older_ledger_is_in_the_new_one(empty_url, start):
    upgrade(empty_url, revisions()[0])
    engine = create_engine(empty_url)
    with engine.begin() as connection:
        for row in ROWS:
            connection.execute(text(row.replace(":", "\\:")))
    engine.dispose()
    upgrade(empty_url, start)
    ledger = Ledger.open(empty_url)
    assert ledger.get_account("anna").quotas.images_per_day == 9
    made = ledger.get_set("set_1")
    assert made.request == {"prompt": "ein Böötchen"}
    done, waiting = made.jobs
    assert (done.state, done.fence, done.device_seconds, done.image.bytes) == ("done", 3, 2.25, 5_000_000_000)
    assert ledger.usage(["account"])[0].cost == 0.5
    (claim,) = ledger.claim("w", lease_seconds=10)
    assert claim.job.id == waiting.id
    image = StoredImage("img_2", waiting.id, "", "k", "ab", "cd", 64, 32, 10, {})
    assert ledger.finish(waiting.id, claim.job.fence, Completion(image, 1.0))
    assert made.dial is None
    dialled = Submission((NewJob({}, "m", 1.0),) * 2, {}, dial=Dial(field="steps", values=(4, 8)))
    more = ledger.accept(Principal(ledger.get_account("anna")), dialled)
    assert ledger.get_set(more.id) == more
    ledger.close()


def test_an_image_that_was_delivered_blurred_is_blurred_in_the_new_ledger(empty_url):
    upgrade(empty_url, "v0009")
    engine = create_engine(empty_url)
    with engine.begin() as connection:
        for row in ROWS:
            connection.execute(text(row.replace(":", "\\:")))
        connection.execute(text("UPDATE images SET safety = :said"), {"said": '{"action": "blur"}'})
    engine.dispose()
    ledger = Ledger.open(empty_url)
    assert ledger.find_image("img_1").blurred
    ledger.close()


def test_a_ledger_of_a_newer_program_is_refused_with_the_way_out(ledger_url):
    engine = create_engine(ledger_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'v9999'"))
    with pytest.raises(LedgerError, match="v9999 of a newer version") as caught:
        Ledger.open(ledger_url)
    assert "newer version of Limner" in caught.value.hint
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :head"), {"head": HEAD})
    engine.dispose()


def test_an_older_schema_is_not_touched_when_that_is_not_wanted(empty_url):
    upgrade(empty_url, revisions()[0])
    with pytest.raises(LedgerError, match="older") as caught:
        Ledger.open(empty_url, migrate=False)
    assert "limner serve" in caught.value.hint
    Ledger.open(empty_url).close()
    Ledger.open(empty_url, migrate=False).close()


def test_tables_of_another_program_are_left_alone(tmp_path):
    path = tmp_path / "other.sqlite3"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE jobs (id)")
    with pytest.raises(LedgerError, match="another program"):
        Ledger.open(f"sqlite:///{path}")


def test_a_migration_that_fails_leaves_the_old_schema(empty_url, monkeypatch):
    upgrade(empty_url, revisions()[0])

    def broken(connection):
        connection.execute(text("CREATE TABLE half (id INTEGER)"))
        raise OSError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(database, "_upgrade", broken)
        with pytest.raises(OSError, match="power"):
            Ledger.open(empty_url)
    engine = create_engine(empty_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "v0001"
        assert not engine.dialect.has_table(connection, "half")
    engine.dispose()
    Ledger.open(empty_url).close()


def test_many_who_open_an_empty_database_at_once_migrate_it_once(empty_url):
    at_once(*[lambda: Ledger.open(empty_url).close()] * 4)
    ledger = Ledger.open(empty_url)
    assert [account.id for account in ledger.list_accounts()] == [LOCAL_ACCOUNT]
    ledger.close()


def test_a_new_file_that_another_writes_is_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "ledger.sqlite3"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            other.execute("COMMIT")

    with monkeypatch.context() as patch:
        patch.setattr(database, "time", time_with(sleep=pause))
        Ledger.open(f"sqlite:///{path}").close()
    assert len(pauses) == 3
    other.close()


def test_a_new_file_that_another_keeps_is_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.0)
    other = sqlite3.connect(tmp_path / "ledger.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable, match="locked"):
        Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite3")
    other.close()


# -- broken files and places --


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "ledger.sqlite3"
    path.write_bytes(b"a picture of a boat, in 4096 bytes " * 120)
    with pytest.raises(LedgerError, match="broken") as caught:
        Ledger.open(f"sqlite:///{path}")
    assert ".recover" in caught.value.hint
    assert path.read_bytes().startswith(b"a picture")


def test_a_damaged_database_is_refused_before_it_gets_worse(sqlite_url):
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    ledger = Ledger.open(sqlite_url)
    principal = Principal(ledger.get_account(LOCAL_ACCOUNT))
    ledger.accept(principal, Submission(tuple(NewJob({"n": n}, "m", 1.0) for n in range(300)), {}))
    ledger.close()
    content = bytearray(path.read_bytes())
    for page in range(4096 * 8, len(content), 4096 * 2):
        content[page : page + 2048] = b"\xa5" * 2048
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="broken"):
        Ledger.open(sqlite_url)


def test_damage_that_is_met_later_is_reported_too(sqlite_url):
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    ledger = Ledger.open(sqlite_url)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    ledger._db.engine.dispose()  # with the pages that it remembers
    with pytest.raises(LedgerError, match="broken"):
        ledger.list_jobs(None)
    ledger.close()


def test_a_read_only_folder_is_told(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "ledger.sqlite3").mkdir()  # what cannot be opened even by root
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger.open(f"sqlite:///{folder}/ledger.sqlite3")
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be made"):
        Ledger.open(f"sqlite:///{tmp_path}/file/data/ledger.sqlite3")


def test_a_full_disk_is_told_and_nothing_is_half_written(sqlite_url):
    ledger = Ledger.open(sqlite_url)
    principal = Principal(ledger.get_account(LOCAL_ACCOUNT))
    with ledger._db.read() as connection:
        raw = connection.connection.dbapi_connection
        pages = raw.execute("PRAGMA page_count").fetchone()[0]
        raw.execute(f"PRAGMA max_page_count = {pages + 4}")
    big = Submission(tuple(NewJob({"prompt": "x" * 10_000}, "m", 1.0) for _ in range(50)), {})
    with pytest.raises(LedgerUnavailable, match="full"):
        ledger.accept(principal, big)
    assert ledger.list_jobs(None) == []
    raw.execute("PRAGMA max_page_count = 1000000")
    assert len(ledger.accept(principal, big).jobs) == 50
    ledger.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ledger.sqlite3", "cannot be read"),
        ("mysql://localhost/x", "cannot be kept"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
    ],
)
def test_a_url_that_cannot_serve_is_refused(url, message):
    with pytest.raises(LedgerError, match=message) as caught:
        Ledger.open(url)
    assert "postgresql" in caught.value.hint


def test_a_postgres_that_is_down_is_told_without_the_password(tmp_path):
    with pytest.raises(LedgerUnavailable, match="cannot be reached") as caught:
        Ledger.open(f"postgresql://limner:hunter2@/x?host={tmp_path}")
    assert "hunter2" not in str(caught.value) + (caught.value.hint or "")


@pytest.mark.parametrize(
    ("sqlstate", "message", "hint"),
    [
        (None, "cannot be reached", "PostgreSQL runs"),
        ("08006", "cannot be reached", "PostgreSQL runs"),
        ("57P01", "cannot be reached", "PostgreSQL runs"),
        ("40P01", "undone in favour of another", "try again"),
        ("40001", "undone in favour of another", "try again"),
        ("53100", "disk of the ledger .* is full", "make room"),
        ("53300", "takes no more connections", "max_connections"),
        ("57014", "cannot be read or written", "log of PostgreSQL"),
        ("58030", "cannot be read or written", "log of PostgreSQL"),
        ("54000", None, None),  # a statement that is too large is a fault of the program
        ("42601", None, None),
    ],
)
def test_what_postgres_says_is_told_by_its_kind(sqlstate, message, hint):
    psycopg = pytest.importorskip("psycopg")
    known = psycopg.OperationalError if sqlstate is None else psycopg.errors.lookup(sqlstate)
    error = DBAPIError.instance(None, None, known("so it is"), psycopg.Error)
    told = _of_postgres("postgresql://there", error)
    if message is None:
        assert told is None
        return
    assert isinstance(told, LedgerUnavailable)
    assert re.search(message, told.message)
    assert hint in told.hint


def test_a_pool_without_connections_is_an_unavailable_ledger(sqlite_url, monkeypatch):
    ledger = Ledger.open(sqlite_url)
    pool = ledger._db.engine.pool
    monkeypatch.setattr(pool, "_timeout", 0)
    monkeypatch.setattr(pool, "_max_overflow", 0)
    with ExitStack() as taken:
        for _ in range(pool.size()):
            taken.enter_context(ledger._db.read())
        with pytest.raises(LedgerUnavailable, match=r"connections of this process .* are in use") as caught:
            ledger.list_jobs(None)
        assert caught.value.retryable
    assert ledger.list_jobs(None) == []
    ledger.close()


MOUNTS = """/dev/vda / ext4 rw 0 0
server:/export /mnt/team nfs4 rw 0 0
//server/share /mnt/with\\040blank cifs rw 0 0
tmpfs /mnt/team/scratch tmpfs rw 0 0
server:/exports /mnt/Größe\\134ä nfs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/lib", "ext4"),
        ("/mnt/team", "nfs4"),
        ("/mnt/team/a/b", "nfs4"),
        ("/mnt/teams", "ext4"),
        ("/mnt/with blank/x", "cifs"),
        ("/mnt/Größe\\ä/x", "nfs"),
        ("/mnt/team/scratch/x", "tmpfs"),
    ],
)
def test_the_file_system_of_a_folder(tmp_path, folder, kind):
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert file_system(Path(folder), mounts) == kind
    assert file_system(Path(folder), tmp_path / "none") == ""


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "fuse.sshfs", "9p"])
def test_sqlite_on_a_network_file_system_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(database, "file_system", lambda folder: kind)
    with pytest.raises(LedgerError, match=re.escape(f"network file system ({kind})")) as caught:
        Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite3")
    assert "PostgreSQL" in caught.value.hint
    assert not (tmp_path / "ledger.sqlite3").exists()


def test_opening_an_existing_ledger_imports_neither_alembic_nor_torch(sqlite_url):
    program = (
        "import sys; from limner.service.ledger.ledger import Ledger; "
        f"Ledger.open({sqlite_url!r}).close(); print({{'alembic', 'torch'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


CUT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE pid <> pg_backend_pid() AND usename = 'limner'"
)


@pytest.mark.postgres
def test_a_postgres_that_was_restarted_is_found_again(postgres_url, monkeypatch):
    ledger = Ledger.open(postgres_url)
    caller = Principal(ledger.get_account(LOCAL_ACCOUNT))

    def accept():
        return ledger.accept(caller, Submission((NewJob({}, "m", 1.0),), {}))

    accept()
    postgres.execute(postgres_url, CUT)
    with pytest.raises(LedgerUnavailable):  # during an operation: the caller gets a retryable error
        accept()
    accept()
    postgres.execute(postgres_url, CUT)
    monkeypatch.setattr(database, "_IDLE_SECONDS", 0.0)  # after a pause nobody notices
    assert len(ledger.claim("w", lease_seconds=60, limit=9)) == 2
    accept()
    ledger.close()
