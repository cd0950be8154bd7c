"""Events and audit rows, which every change of a job writes in its own transaction."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, insert
from sqlalchemy.dialects import postgresql, sqlite

from limner.errors import InvalidRequest
from limner.service.events import Change, LibraryChange
from limner.service.jobs import LoggedPrompts

from .database import Database
from .schema import audit, events

T = TypeVar("T")

_EVENT, _AUDIT = insert(events), insert(audit)
_PART = 500  # values of one IN

MAX_NAME = 500
"""Characters of a name that callers give, such as an idempotency key. Indexes hold no more than a few KiB."""


ACTING: ContextVar[str] = ContextVar("acting", default="operator")
"""Name for the audit log of whoever acts as an operator, that is, with access to all accounts: the operator's
account, "cli", or "operator" where it is not known."""


def actor_of(account_id: str | None) -> str:
    """Who acts, for the audit log.

    Args:
        account_id: Account whose objects alone may be changed; None for an operator.
    """
    return account_id or ACTING.get()


def check_name(field: str, name: str | None) -> None:
    """Check the length of a name that a caller gives. Raises InvalidRequest."""
    if name is not None and not 1 <= len(name) <= MAX_NAME:
        raise InvalidRequest(
            f"`{field}` has {len(name)} characters; expected 1 to {MAX_NAME}", fields=(field,)
        )


def parts(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Values in parts that a statement can name."""
    for start in range(0, len(values), _PART):
        yield values[start : start + _PART]


class Writing:
    """Base of the parts of the ledger: its database, and the rows that go with a change."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def _upsert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that can say what it does on conflict, for the database in use."""
        return (sqlite.insert if self._db.is_sqlite else postgresql.insert)(table)

    @staticmethod
    def _events(
        tx: Connection,
        change: Change,
        its_jobs: Iterable[Mapping[Any, Any]],
        now: float,
        data: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
    ) -> None:
        """Write an event for each job.

        Args:
            its_jobs: The jobs, with their id, set_id, index and account_id.
            data: More about it: one for each job, or one for all.
        """
        its_jobs = list(its_jobs)
        each = data if isinstance(data, Sequence) else [data or {}] * len(its_jobs)
        rows = [
            {
                "account_id": job["account_id"],
                "set_id": job["set_id"],
                "job_id": job["id"],
                "index": job["index"],
                "change": change,
                "at": now,
                "data": dict(more),
            }
            for job, more in zip(its_jobs, each, strict=True)
        ]
        if rows:
            tx.execute(_EVENT, rows)

    @staticmethod
    def _library_events(
        tx: Connection,
        change: LibraryChange,
        numbers: Mapping[str, Sequence[int]],
        now: float,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Write an event for each account whose library has changed.

        Args:
            numbers: Numbers of the images concerned, by account.
            data: More about it.
        """
        rows = [
            {
                "account_id": account_id,
                "set_id": "",
                "job_id": "",
                "index": 0,
                "change": change,
                "at": now,
                "data": {"numbers": list(its), **(data or {})},
            }
            for account_id, its in numbers.items()
        ]
        if rows:
            tx.execute(_EVENT, rows)

    @staticmethod
    def _audit(
        tx: Connection,
        now: float,
        actor: str,
        action: str,
        subject: str,
        *,
        prompts: LoggedPrompts | None = None,
        **details: Any,
    ) -> None:
        """Append an entry to the audit log: it becomes a leaf of the tree a moment later.

        Args:
            actor: Who did it: an account, a worker, "operator", "cli" or "ledger".
            subject: What it was done to: an id.
            prompts: Prompts of the request, to be sealed for the account `actor`.
            **details: More about it, which is never erased: no part of a request, and the name of an account
                only as `account`.
        """
        row = {"at": now, "actor": actor, "action": action, "subject": subject, "details": details}
        tx.execute(_AUDIT, row | {"prompts": None if prompts is None else asdict(prompts)})
