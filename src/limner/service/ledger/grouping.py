"""Group commit for SQLite: transactions of several threads reach the disk together.

Waiting for the disk takes longer than anything else in a transaction, and SQLite writes one transaction at a
time. So a thread whose changes are made leaves them to the next one that is waiting to write, and the last in
line commits for all. Nobody returns before his own changes are on the disk.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

GROUP_SIZE = 32


def begin(connection: Connection, statement: str) -> None:
    """Begin a transaction of SQLite: BEGIN or BEGIN IMMEDIATE.

    The driver is asked directly: SQLAlchemy's events, and its way of running a text, take longer than SQLite.

    Raises:
        DBAPIError: As for any other statement.
    """
    raw: Any = connection.connection.dbapi_connection
    try:
        raw.execute(statement)
    except sqlite3.Error as error:
        raise DBAPIError.instance(statement, None, error, sqlite3.Error, hide_parameters=True) from error


class _Group:
    """Transactions that are committed together.

    Attributes:
        size: Number of transactions in it.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.size = 0
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._transaction = connection.begin()
        begin(connection, "BEGIN IMMEDIATE")

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
            self._ended.set()

    def fail(self, error: BaseException) -> None:
        """Undo everything, and tell the members."""
        self._error = error
        try:
            self._transaction.rollback()
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
        self._connection: Connection | None = None  # of all groups: there is one at a time
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
            group = self._open = self._open or self._new_group()
            try:
                with group.member() as connection:
                    yield connection
            except BaseException as error:
                if not group.size or not group.alive:
                    self._open = None
                    try:
                        group.fail(error)
                    finally:
                        self._drop_connection()
                raise
        finally:
            try:
                self._commit_unless_others_follow()
            finally:
                self._turn.release()
        group.wait()

    def close(self) -> None:
        """Close the connection. Another transaction opens it again."""
        with self._turn:
            self._drop_connection()

    def _new_group(self) -> _Group:
        if self._connection is None:
            self._connection = self._engine.connect()
        try:
            return _Group(self._connection)
        except BaseException:
            self._drop_connection()  # which undoes what was begun
            raise

    def _drop_connection(self) -> None:
        """Close the connection: after a failure, another one is taken."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

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
            try:
                group.commit()
            except BaseException:
                self._drop_connection()
                raise
