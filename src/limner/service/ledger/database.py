"""A database under the ledger: opening, checking and migrating it, and its transactions.

SQLite runs in WAL mode with synchronous=FULL, so that what was confirmed to a caller is on the disk; writing
transactions begin with BEGIN IMMEDIATE, one after the other. PostgreSQL runs in READ COMMITTED, and the
statements themselves exclude each other by conditions and row locks.
"""

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Column,
    Connection,
    Double,
    Engine,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    func,
    insert,
    inspect,
    literal_column,
    select,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    DisconnectionError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as NoConnectionLeft
from sqlalchemy.sql.elements import ColumnElement

from limner.errors import InvalidRequest, LedgerError, LedgerUnavailable
from limner.service.identity import LOCAL_ACCOUNT

from .grouping import GroupCommit, begin
from .schema import COUNTERS, HEAD, accounts, counters

if TYPE_CHECKING:
    from psycopg import Cursor

_BUSY_SECONDS = 30.0
_SWITCH_PAUSE_SECONDS = 0.01
_IDLE_SECONDS = 10.0
_QUICK_CHECK_BYTES = 256 * 2**20
_MIGRATION_LOCK = 0x4C494D4E  # of PostgreSQL's advisory locks
_PLANS = (  # of `Database.driver`: few rows by indexes, whatever the server believes of the tables' sizes
    *("enable_seqscan = off", "enable_bitmapscan = off", "enable_hashjoin = off", "enable_mergejoin = off"),
    *("jit = off", "plan_cache_mode = force_generic_plan"),
)
# PostgreSQL's SQLSTATEs, and the beginnings of others.
_UNDONE = ("40001", "40P01")  # serialization failure, deadlock
_UNREACHABLE = ("08", "28", "3D", "57P")  # connection, authorization, no such database, shutdown
_OF_THE_SERVER = ("53", "55", "57", "58")  # resources, locks, cancelled by an operator or a timeout, I/O
_MOUNT_ESCAPES = {r"\040": " ", r"\011": "\t", r"\012": "\n", r"\134": "\\"}
_MOUNT_ESCAPE = re.compile("|".join(map(re.escape, _MOUNT_ESCAPES)))
_NETWORK_FILE_SYSTEMS = (
    *("nfs", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "beegfs", "ocfs2", "gfs2"),
    *("fuse.sshfs", "fuse.rclone", "fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse", "davfs", "9p", "ncpfs"),
)

_SQLITE_CLOCK: ColumnElement[float] = literal_column("limner_now()", Double)
_POSTGRES_CLOCK: ColumnElement[float] = literal_column(
    "extract(epoch FROM clock_timestamp())::double precision", Double
)
_CLOCK = select(_POSTGRES_CLOCK)

_version = Table("alembic_version", MetaData(), Column("version_num", String, primary_key=True))


class Database:
    """A pool of connections to one database. All methods can be called in any thread.

    Attributes:
        url: Where it is, without the password.
        clock: SQL expression of the database's clock, in seconds since the epoch.
    """

    def __init__(self, url: str, *, migrate: bool = True) -> None:
        """Open a database, and bring its schema to that of this program.

        Args:
            url: "sqlite:////folder/ledger.sqlite3" or "postgresql+psycopg://user:password@host/name".
            migrate: Whether an older schema is brought up to date; without, it is an error.

        Raises:
            LedgerError: If it cannot be opened, is broken, or has the schema of a newer version.
        """
        parsed = _parsed(url)
        self.url = parsed.render_as_string(hide_password=True)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self._path = Path(parsed.database or "") if self.is_sqlite else None
        if self._path is not None:
            _check_place(self._path)
        self.engine = _sqlite(parsed) if self.is_sqlite else _postgres(parsed)
        self._quick = self.engine if self.is_sqlite else _postgres(parsed, durable=False)
        self._single = self.engine if self.is_sqlite else _postgres(parsed, autocommit=True)
        self.clock: ColumnElement[float] = _SQLITE_CLOCK if self.is_sqlite else _POSTGRES_CLOCK
        self._group = GroupCommit(self.engine) if self.is_sqlite else None
        try:
            with self.translated():
                self._prepare(migrate)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections."""
        if self._group is not None:
            self._group.close()
        self.engine.dispose()
        self._quick.dispose()
        self._single.dispose()

    def clear_log(self) -> bool:
        """Write SQLite's log (the "-wal" file) into the database and empty it: it holds what was deleted.

        Returns:
            Whether it is empty; not while a reader holds it for longer than the time that writers wait.
        """
        if not self.is_sqlite:
            return True
        with self.translated():
            connection = self.engine.raw_connection()
            try:
                found = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                connection.close()
        return bool(found[0] == 0)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that only reads: one state of the database throughout (SQLite), or the latest."""
        with self.translated(), self.engine.connect() as connection:
            if self.is_sqlite:
                begin(connection, "BEGIN")
            yield connection

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """A transaction: committed at the end, undone by an exception.

        Args:
            durable: Whether it must be on the disk when this returns. What need not may be lost in a crash of
                PostgreSQL, though never in part; SQLite always writes it.
        """
        with self.translated():
            if self._group is not None:
                with self._group.transaction() as connection:
                    yield connection
                return
            with (self.engine if durable else self._quick).begin() as connection:
                yield connection

    @contextmanager
    def driver(self) -> Iterator["Cursor[Any]"]:
        """PostgreSQL: a cursor of the driver for `postgres.Prepared`. Each statement is a transaction."""
        with self.translated():
            driver: Any = self._single.dialect.loaded_dbapi
            pooled: Any = self._single.raw_connection()
            try:
                with pooled.cursor() as cursor:
                    yield cursor
            except driver.Error as error:
                broken = pooled.broken
                pooled.invalidate(error)
                if broken:  # so are those that wait in the pool
                    self._single.dispose()
                raise DBAPIError.instance(
                    None, None, error, driver.Error, hide_parameters=True, connection_invalidated=broken
                ) from error
            finally:
                pooled.close()

    def time(self, connection: Connection) -> float:
        """The database's clock now. SQLite's is that of this machine, and need not be asked for."""
        return time.time() if self.is_sqlite else float(connection.execute(_CLOCK).scalar_one())

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Errors that are not this program's fault, in its own words.

        Raises:
            LedgerError: For those of the database.
            InvalidRequest: For values that it cannot hold: NUL, halves of surrogate pairs, huge numbers.
        """
        try:
            yield
        except (UnicodeEncodeError, OverflowError, DataError) as error:
            reason = getattr(error, "orig", error)
            raise InvalidRequest(f"a value cannot be stored: {_first_line(reason)}") from error
        except NoConnectionLeft as error:
            raise LedgerUnavailable(
                f"all connections of this process to the ledger {self._path or self.url} are in use",
                hint="try again when fewer requests use it",
            ) from error
        except DBAPIError as error:
            translated = self._translated(error)
            if translated is None:
                raise
            raise translated from error

    def _translated(self, error: DBAPIError) -> LedgerError | None:
        what = _first_line(error.orig)
        if not self.is_sqlite:
            return _of_postgres(self.url, error)
        if not isinstance(error.orig, sqlite3.DatabaseError):
            return None
        name = getattr(error.orig, "sqlite_errorname", "")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return LedgerError(f"the ledger {self._path} is broken: {what}", hint=_repair(self._path))
        if name.startswith("SQLITE_FULL"):
            hint = "make room on its disk; accepted jobs are kept, and work goes on by itself"
            return LedgerUnavailable(f"the disk of the ledger {self._path} is full", hint=hint)
        if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            hint = "make the folder and the file writable for this user, or choose another folder"
            return LedgerError(f"the ledger {self._path} cannot be opened for writing: {what}", hint=hint)
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            hint = f"another program has kept it locked for {_BUSY_SECONDS:.0f} seconds: close it"
            return LedgerUnavailable(f"the ledger {self._path} is locked", hint=hint)
        if name.startswith("SQLITE_IOERR"):
            hint = "check its disk and file system"
            return LedgerUnavailable(f"the ledger {self._path} cannot be read or written: {what}", hint=hint)
        return None

    def _prepare(self, migrate: bool) -> None:
        """Check the file and the schema's revision, and migrate if it is older."""
        if self._path is not None and self._path.exists():
            with self.engine.connect() as connection:
                self._check_file(connection)
        if self._revision() == HEAD:
            return
        if not migrate:
            raise LedgerError(
                f"the schema of the ledger {self.url} is older than this program's",
                hint="start `limner serve` once, which brings it up to date",
            )
        with self.write() as connection:
            if not self.is_sqlite:
                connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            _upgrade(connection)
            _fill(connection, self.time(connection))

    def _check_file(self, connection: Connection) -> None:
        assert self._path is not None
        size = self._path.stat().st_size
        if not is_checked_on_open(size):
            return
        found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if found != "ok":
            raise LedgerError(f"the ledger {self._path} is broken: {found}", hint=_repair(self._path))

    def _revision(self) -> str | None:
        """The schema's revision; None if there is none yet. Raises for one that is not known here."""
        with self.engine.connect() as connection:
            names = set(inspect(connection).get_table_names())
            if _version.name not in names:
                if "jobs" in names or "accounts" in names:
                    raise LedgerError(
                        f"{self.url} has tables of another program",
                        hint="give the ledger a database of its own",
                    )
                return None
            revision = connection.execute(select(_version.c.version_num)).scalar()
        if revision is not None and revision != HEAD and revision not in known_revisions():
            raise LedgerError(
                f"the ledger {self.url} has the schema {revision} of a newer version of Limner; "
                f"this one knows schemas up to {HEAD}",
                hint="install the newer version of Limner, or restore the copy of the ledger that "
                "was made before the upgrade",
            )
        return revision


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _of_postgres(url: str, error: DBAPIError) -> LedgerError | None:
    """The ledger's error for one of PostgreSQL, by its SQLSTATE; None for a fault of this program."""
    what, state = _first_line(error.orig), getattr(error.orig, "sqlstate", None) or ""
    if state in _UNDONE:
        hint = "try again: nothing of it was stored"
        return LedgerUnavailable(
            f"a change of the ledger {url} was undone in favour of another: {what}", hint=hint
        )
    if state == "53100":
        hint = "make room on the disk of PostgreSQL; accepted jobs are kept, and work goes on by itself"
        return LedgerUnavailable(f"the disk of the ledger {url} is full", hint=hint)
    if state == "53300":
        hint = "raise PostgreSQL's max_connections, or run fewer processes"
        return LedgerUnavailable(f"the ledger {url} takes no more connections: {what}", hint=hint)
    is_lost = error.connection_invalidated or (not state and isinstance(error, OperationalError))
    if is_lost or state.startswith(_UNREACHABLE):
        hint = "check that PostgreSQL runs, that the URL is right and that it takes more connections"
        return LedgerUnavailable(f"the ledger {url} cannot be reached: {what}", hint=hint)
    if state.startswith(_OF_THE_SERVER):
        hint = "see the log of PostgreSQL"
        return LedgerUnavailable(f"the ledger {url} cannot be read or written: {what}", hint=hint)
    return None


def is_checked_on_open(size: int) -> bool:
    """Whether a file is small enough to be checked whole each time that it is opened."""
    return size <= _QUICK_CHECK_BYTES


def known_revisions() -> set[str]:
    """The revisions that this program can bring up to date."""
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()}


def _alembic() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "limner.service.ledger:migrations")
    config.set_main_option("path_separator", "os")
    return config


def _upgrade(connection: Connection) -> None:
    from alembic import command

    config = _alembic()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _fill(connection: Connection, now: float) -> None:
    """Insert the rows that a ledger always has."""
    if connection.execute(select(accounts.c.id).where(accounts.c.id == LOCAL_ACCOUNT)).first() is None:
        connection.execute(
            insert(accounts).values(
                id=LOCAL_ACCOUNT,
                role="operator",
                weight=1.0,
                quotas={},
                policy={},
                created_at=now,
                disabled=False,
            )
        )
    known = set(connection.execute(select(counters.c.name)).scalars())
    for name in COUNTERS:
        if name not in known:
            connection.execute(insert(counters).values(name=name, value=0))


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError) as error:
        raise LedgerError(f"the ledger's URL cannot be read: {error}", hint=_URLS) from None
    if backend not in ("sqlite", "postgresql"):
        raise LedgerError(f"the ledger cannot be kept in {backend}", hint=_URLS)
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise LedgerError("a ledger in memory cannot be shared by processes", hint=_URLS)
    if backend == "postgresql" and parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed


_URLS = "give sqlite:////folder/ledger.sqlite3 or postgresql+psycopg://user:password@host/database"


def _repair(path: Path | None) -> str:
    return (
        f"restore a copy, or save what can be read: sqlite3 {path} .recover | sqlite3 recovered.sqlite3; "
        "then put the new file in its place, without the -wal and -shm files"
    )


def _check_place(path: Path) -> None:
    """Make the folder of a SQLite file, and refuse one where SQLite's locks do not hold."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(
            f"the ledger's folder {path.parent} cannot be made: {error.strerror}",
            hint="choose another folder, or make it writable for this user",
        ) from None
    kind = file_system(path.parent)
    if kind.startswith("nfs") or kind in _NETWORK_FILE_SYSTEMS:
        raise LedgerError(
            f"the ledger {path} is on a network file system ({kind}), where SQLite loses data",
            hint="keep it on a local disk, or give the URL of a PostgreSQL database",
        )


def file_system(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Type of the file system that a folder is on, such as "ext4"; "" where the system does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    where = os.path.realpath(folder)
    best, kind = "", ""
    for line in lines:
        fields = line.split()
        if len(fields) < 3:
            continue
        point = _MOUNT_ESCAPE.sub(lambda found: _MOUNT_ESCAPES[found[0]], fields[1])
        inside = where == point or where.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # a later mount covers an earlier one
            best, kind = point, fields[2]
    return kind


def _sqlite(url: URL) -> Engine:
    # Parameters are hidden from errors, and so from logs: prompts are among them.
    engine = create_engine(
        url, pool_size=16, max_overflow=48, pool_timeout=_BUSY_SECONDS, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions begin by `begin`, not where the driver thinks
        # SQLite's own clock counts whole milliseconds: what is due by `time` would not be due by it.
        connection.create_function("limner_now", 0, time.time)
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(_BUSY_SECONDS * 1000)}")
        _use_wal(cursor)
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA temp_store = MEMORY")
        cursor.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten
        cursor.close()

    return engine


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Switch the file to WAL mode, in which it stays.

    While another program switches it too, as when several open a new file, SQLite reports SQLITE_BUSY without
    the wait that `busy_timeout` asks for; so the wait is here.
    """
    until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(_SWITCH_PAUSE_SECONDS)


def _postgres(url: URL, *, durable: bool = True, autocommit: bool = False) -> Engine:
    """An engine of PostgreSQL.

    Args:
        durable: Whether a transaction is on the disk when it is confirmed.
        autocommit: Whether each statement is a transaction: for `Database.driver`.
    """
    alone: dict[str, Any] = (
        {"isolation_level": "AUTOCOMMIT", "pool_reset_on_return": None} if autocommit else {}
    )
    try:
        engine = create_engine(
            url,
            pool_size=16 if durable else 4,
            max_overflow=16,
            pool_recycle=1800,
            hide_parameters=True,
            **alone,
        )
    except ModuleNotFoundError:
        raise LedgerError(
            "PostgreSQL needs the driver psycopg, which is not installed",
            hint="pip install 'limner[postgres]'",
        ) from None

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        if not durable:
            connection.execute("SET synchronous_commit = off")
            connection.commit()
        if autocommit:
            from psycopg.types.json import JsonDumper

            connection.adapters.register_dumper(dict, JsonDumper)
            connection.execute("; ".join(f"SET {setting}" for setting in _PLANS))

    # A server that has been restarted is noticed before a statement is lost on it; but to ask each time would
    # double the round trips of a busy ledger.
    @event.listens_for(engine, "checkout")
    def _checked_out(connection: Any, record: Any, _proxy: object) -> None:
        if time.monotonic() - record.info.get("used_at", time.monotonic()) > _IDLE_SECONDS:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise DisconnectionError from error

    @event.listens_for(engine, "checkin")
    def _checked_in(_connection: Any, record: Any) -> None:
        record.info["used_at"] = time.monotonic()

    return engine
