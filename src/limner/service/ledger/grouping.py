"""Group commit for SQLite: transactions of several threads reach the disk together.

Waiting for the disk takes longer than anything else in a transaction, and SQLite writes one transaction at a
time. So a thread whose changes are made leaves them to the next one that is waiting to write, and the last in
line commits for all. Nobody returns before his own changes are on the disk.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

GROUP_SIZE = 32


class _Group:
    """Transactions that are committed together.

    Attributes:
        size: Number of transactions in it.
    """

    def __init__(self, engine: Engine) -> None:
        self.connection: Connection = engine.connect().execution_options(limner_write=True)
        self.size = 0
        self._error: BaseException | None = None
        self._ended = threading.Event()
        try:
            self._transaction = self.connection.begin()
        except BaseException:
            self.connection.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether SQLite still has the transaction. It undoes all of it when the disk is full."""
        raw = self.connection.connection.dbapi_connection
        return bool(raw is not None and raw.in_transaction)

    @contextmanager
    def member(self) -> Iterator[Connection]:
        """One of the transactions; an exception undoes it alone."""
        if self.size:
            self.connection.exec_driver_sql("SAVEPOINT member")
            try:
                yield self.connection
            except BaseException:
                if self.alive:
                    self.connection.exec_driver_sql("ROLLBACK TO member")
                    self.connection.exec_driver_sql("RELEASE member")
                raise
            self.connection.exec_driver_sql("RELEASE member")
        else:
            yield self.connection  # the first: there is nothing else to be kept
        self.size += 1

    def commit(self) -> None:
        """Write everything to the disk, and wake the members."""
        try:
            self._transaction.commit()
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._end()

    def fail(self, error: BaseException) -> None:
        """Undo everything, and tell the members."""
        self._error = error
        try:
            self._transaction.rollback()
        finally:
            self._end()

    def _end(self) -> None:
        try:
            self.connection.close()
        finally:
            self._ended.set()

    def wait(self) -> None:
        """Return when the changes are on the disk; raise what prevented it."""
        self._ended.wait()
        if self._error is not None:
            raise self._error


class GroupCommit:
    """Transactions of a SQLite database, for all threads of a process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = threading.Lock()
        self._counting = threading.Lock()
        self._waiting = 0
        self._open: _Group | None = None

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction: on the disk when this ends, undone by an exception."""
        self._take_turn()
        group = None
        try:
            group = self._open = self._open or _Group(self._engine)
            try:
                with group.member() as connection:
                    yield connection
            except BaseException as error:
                if not group.size or not group.alive:
                    self._open = None
                    group.fail(error)
                raise
        finally:
            try:
                self._commit_unless_others_follow()
            finally:
                self._turn.release()
        group.wait()

    def _take_turn(self) -> None:
        with self._counting:
            self._waiting += 1
        try:
            self._turn.acquire()
        except BaseException:  # Ctrl-C: those before may have left their changes to this thread
            with self._turn:
                with self._counting:
                    self._waiting -= 1
                self._commit_unless_others_follow()
            raise
        with self._counting:
            self._waiting -= 1

    def _commit_unless_others_follow(self) -> None:
        group = self._open
        if group is None:
            return
        with self._counting:
            follow = self._waiting > 0
        if not follow or group.size >= GROUP_SIZE:
            self._open = None
            group.commit()
