"""Group commit: threads share the wait for the disk, and nobody returns before his changes are there."""

import sqlite3
import threading

import pytest
from sqlalchemy import text

from limner.errors import LedgerUnavailable
from limner.service.ledger.database import Database
from tests.waiting import DEADLINE, until


@pytest.fixture
def database(sqlite_url):
    opened = Database(sqlite_url)
    with opened.write() as tx:
        tx.execute(text("CREATE TABLE notes (name TEXT UNIQUE, page BLOB)"))
    yield opened
    opened.close()


def insert(tx, name, size=1):
    tx.execute(text("INSERT INTO notes VALUES (:name, zeroblob(:size))"), {"name": name, "size": size})


def names(database):
    """What another connection sees."""
    with sqlite3.connect(database.url.removeprefix("sqlite:///")) as other:
        return {name for (name,) in other.execute("SELECT name FROM notes")}


def in_a_row(database, actions):
    """Runs each action in a transaction and thread of its own, lined up behind the first. Returns errors."""
    errors = {}
    first_inside, all_waiting = threading.Event(), threading.Event()

    def run(index, action):
        try:
            with database.write() as tx:
                if index == 0:
                    first_inside.set()
                    assert all_waiting.wait(DEADLINE)
                action(tx)
            assert f"n{index}" in names(database)  # it is there when the transaction has ended
        except Exception as error:
            errors[index] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(actions)]
    threads[0].start()
    assert first_inside.wait(DEADLINE)
    for thread in threads[1:]:
        thread.start()
    until(lambda: database._group._waiting == len(actions) - 1)
    all_waiting.set()
    for thread in threads:
        thread.join(DEADLINE)
    return errors


def test_transactions_in_line_are_committed_together(database):
    seen = []

    def action(index):
        def act(tx):
            insert(tx, f"n{index}")
            seen.append(len(names(database)))

        return act

    assert in_a_row(database, [action(index) for index in range(6)]) == {}
    assert seen == [0] * 6  # while they made their changes, none was committed
    assert len(names(database)) == 6


@pytest.mark.parametrize("bad", [0, 2, 4])
def test_a_failure_undoes_its_own_changes_alone(database, bad):
    def action(index):
        def act(tx):
            insert(tx, f"n{index}")
            if index == bad:
                raise ValueError(index)

        return act

    errors = in_a_row(database, [action(index) for index in range(5)])
    assert {index: str(error) for index, error in errors.items()} == {bad: str(bad)}
    assert names(database) == {f"n{index}" for index in range(5)} - {f"n{bad}"}


def test_a_broken_constraint_undoes_its_own_changes_alone(database):
    def act(tx):
        insert(tx, "n1")
        insert(tx, "n0")

    errors = in_a_row(database, [lambda tx: insert(tx, "n0"), act, lambda tx: insert(tx, "n2")])
    assert errors.keys() == {1}
    assert names(database) == {"n0", "n2"}


def test_a_full_disk_is_told_to_all_whose_changes_it_undoes(database):
    with database.read() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    raw = []

    def limited(tx):
        raw.append(tx.connection.dbapi_connection)
        tx.exec_driver_sql(f"PRAGMA max_page_count = {pages + 20}")
        insert(tx, "n0")

    errors = in_a_row(database, [limited, lambda tx: insert(tx, "n1", 10**6), lambda tx: insert(tx, "n2")])
    assert isinstance(errors[1], LedgerUnavailable)
    assert "full" in str(errors[1])
    # The database holds exactly the commits that the threads saw succeed.
    assert names(database) == {f"n{index}" for index in range(3) if index not in errors}
    raw[0].execute("PRAGMA max_page_count = 1000000")
    with database.write() as tx:
        insert(tx, "after")
    assert "after" in names(database)
