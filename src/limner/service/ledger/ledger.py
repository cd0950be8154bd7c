"""`Ledger`: the one place where jobs, results, accounts and usage are kept.

It can be used from any thread and from many processes at once. Its parts: `submitting` (callers), `claiming`
and `ending` (workers), `reading` and `queue`, `library`, `albums` and `searching` (finished images),
`moderating` (reviews), `accounts`, `usage`, `keeping` (uploads, drafts, webhooks, workers), `retention` and
`auditing`.
"""

from .accounts import Accounts
from .albums import Albums
from .auditing import Auditing
from .claiming import Claiming
from .database import Database
from .keeping import Keeping
from .library import Library
from .moderating import Moderating
from .queue import Queueing
from .retention import Retention
from .searching import Searching
from .submitting import Submitting
from .usage import Usage


class Ledger(
    Submitting,
    Claiming,
    Queueing,
    Moderating,
    Retention,
    Library,
    Albums,
    Searching,
    Accounts,
    Usage,
    Keeping,
    Auditing,
):
    """A ledger in SQLite or PostgreSQL."""

    @classmethod
    def open(cls, url: str, *, migrate: bool = True) -> "Ledger":
        """Open a ledger.

        Args:
            url: "sqlite:////data/ledger.sqlite3" or "postgresql+psycopg://user:password@host/database".
            migrate: Whether to make it if there is none, and to bring an older schema up to date.

        Raises:
            LedgerError: If it cannot be opened, is broken, lies on a network file system, or is of a newer
                version.
        """
        return cls(Database(url, migrate=migrate))

    def close(self) -> None:
        """Close its connections."""
        self._db.close()

    @property
    def url(self) -> str:
        """Where it is, without the password."""
        return self._db.url

    def now(self) -> float:
        """The database's clock, in seconds since the epoch."""
        with self._db.read() as connection:
            return self._db.time(connection)
