"""What the ledger keeps besides jobs: uploads, drafts, webhooks to be delivered, and known workers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, func, insert, or_, select, text, update

from limner.errors import Conflict, NotFound, QuotaExceeded

from .quotas import stored_bytes
from .rows import account_of
from .schema import accounts, deliveries, drafts, uploads, workers
from .writing import Writing, check_name

MAX_DRAFTS = 1000
"""Number of drafts of an account."""


@dataclass(frozen=True)
class Upload:
    """A file that an account has uploaded; its content is in the asset store under its hash.

    Attributes:
        sha256: Hash of its bytes, in hex.
        bytes: Its size.
        media_type: What it is, such as "image/png".
        created_at, used_at: Seconds since the epoch: when it was uploaded first, and when it was last used.
    """

    account_id: str
    sha256: str
    bytes: int
    media_type: str
    created_at: float
    used_at: float


@dataclass(frozen=True)
class Draft:
    """A request that an account has put aside.

    Attributes:
        name: Its name, which is the account's own.
        value: The request, as a JSON object; it need not be valid.
        version: Number of times that it was stored.
        updated_at: Seconds since the epoch.
    """

    account_id: str
    name: str
    value: Mapping[str, Any] = field(repr=False)
    version: int
    updated_at: float


@dataclass(frozen=True)
class Delivery:
    """A webhook to be called because a set has ended.

    Attributes:
        webhook: As in `Submission`: {"url": …, "secret": …}.
        attempts: Number of attempts begun, this one included.
        due_at: When it is to be tried again; None once it is delivered or given up.
        status: HTTP status of the last answer.
        error: Why the last attempt failed.
    """

    id: str
    set_id: str
    account_id: str
    webhook: Mapping[str, str] = field(repr=False)
    created_at: float
    attempts: int
    due_at: float | None = None
    delivered_at: float | None = None
    status: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class WorkerRow:
    """A worker, as it has last reported.

    Attributes:
        device: Its device.
        warm: Models that it has loaded.
        details: More about it: memory, running jobs, the process.
        started_at, seen_at: Seconds since the epoch.
    """

    id: str
    device: str
    warm: Sequence[str]
    details: Mapping[str, Any]
    started_at: float
    seen_at: float


class Keeping(Writing):
    """Uploads, drafts, webhooks, workers."""

    # -- uploads --

    def add_upload(self, account_id: str, sha256: str, size: int, media_type: str) -> Upload:
        """Note a file that an account has uploaded, or that it was uploaded once more.

        Raises:
            QuotaExceeded: If the account may not keep as many bytes.
        """
        with self._db.write() as tx:
            mine = (uploads.c.account_id == account_id, uploads.c.sha256 == sha256)
            now = self._db.time(tx)
            if tx.execute(select(uploads.c.sha256).where(*mine)).first() is None:
                owner = tx.execute(
                    select(accounts).where(accounts.c.id == account_id).with_for_update()
                ).first()
                if owner is None:
                    raise NotFound(f"no account {account_id!r}")
                limit = account_of(owner).quotas.stored_bytes
                kept = 0 if limit is None else stored_bytes(tx, account_id)
                if limit is not None and kept + size > limit:
                    raise QuotaExceeded(
                        f"{account_id} keeps {kept:,} bytes of images and uploads and may keep {limit:,}; "
                        f"this file has {size:,} more",
                        hint="delete some of them",
                    )
            upsert = self._upsert(uploads).values(
                account_id=account_id,
                sha256=sha256,
                bytes=size,
                media_type=media_type,
                created_at=now,
                used_at=now,
            )
            again = {"used_at": now}
            tx.execute(upsert.on_conflict_do_update(index_elements=["account_id", "sha256"], set_=again))
            return Upload(**tx.execute(select(uploads).where(*mine)).one()._mapping)

    def has_upload(self, account_id: str, sha256: str) -> bool:
        """Whether an account has uploaded the file of this hash."""
        mine = (uploads.c.account_id == account_id, uploads.c.sha256 == sha256)
        with self._db.read() as connection:
            return connection.execute(select(uploads.c.sha256).where(*mine)).first() is not None

    def get_upload(self, account_id: str, sha256: str) -> Upload:
        """An upload. Raises NotFound."""
        mine = (uploads.c.account_id == account_id, uploads.c.sha256 == sha256)
        with self._db.read() as connection:
            row = connection.execute(select(uploads).where(*mine)).first()
        if row is None:
            raise NotFound(f"no upload {sha256}")
        return Upload(**row._mapping)

    def list_uploads(
        self, account_id: str | None, *, limit: int = 100, before: float | None = None
    ) -> list[Upload]:
        """Uploads, newest first; only those made before a time if one is given."""
        query = select(uploads).order_by(uploads.c.created_at.desc(), uploads.c.sha256).limit(limit)
        if account_id is not None:
            query = query.where(uploads.c.account_id == account_id)
        if before is not None:
            query = query.where(uploads.c.created_at < before)
        with self._db.read() as connection:
            return [Upload(**row._mapping) for row in connection.execute(query)]

    def delete_upload(self, account_id: str, sha256: str) -> bool:
        """Forget an upload.

        Returns:
            Whether no account has the file any more, so that its content can go (`delete_unowned`).

        Raises:
            NotFound: If the account has no such upload.
        """
        with self._db.write() as tx:
            mine = (uploads.c.account_id == account_id, uploads.c.sha256 == sha256)
            if not tx.execute(delete(uploads).where(*mine)).rowcount:
                raise NotFound(f"no upload {sha256}")
            others = select(uploads.c.sha256).where(uploads.c.sha256 == sha256).limit(1)
            return tx.execute(others).first() is None

    def delete_unowned(self, hashes: Sequence[str], delete_content: Callable[[str], None]) -> list[str]:
        """Delete the content of uploads that no account has, while none can be added.

        Args:
            delete_content: Deletes the content of a hash.

        Returns:
            The hashes whose content was deleted.
        """
        with self._db.write(durable=False) as tx:
            if not self._db.is_sqlite:
                tx.execute(text("LOCK TABLE uploads IN SHARE ROW EXCLUSIVE MODE"))
            owned = set(tx.execute(select(uploads.c.sha256).where(uploads.c.sha256.in_(hashes))).scalars())
            gone = [one for one in dict.fromkeys(hashes) if one not in owned]
            for one in gone:
                delete_content(one)
        return gone

    # -- drafts --

    def put_draft(
        self, account_id: str, name: str, value: Mapping[str, Any], *, version: int | None = None
    ) -> Draft:
        """Store a draft.

        Args:
            version: Version that it must have before: 0 for none; None: any.

        Raises:
            Conflict: If it has another version, because it was stored from somewhere else.
            QuotaExceeded: If the account has as many drafts as it may have.
        """
        check_name("name", name)
        with self._db.write() as tx:
            mine = (drafts.c.account_id == account_id, drafts.c.name == name)
            stored = tx.execute(select(drafts.c.version).where(*mine).with_for_update()).scalar() or 0
            if version is not None and version != stored:
                raise Conflict(
                    f"the draft {name!r} has version {stored}; it was to be replaced at version {version}",
                    hint="read it again and decide which of the two to keep",
                    fields=("version",),
                )
            if not stored:
                its = select(func.count()).select_from(drafts).where(drafts.c.account_id == account_id)
                if tx.execute(its).scalar_one() >= MAX_DRAFTS:
                    raise QuotaExceeded(f"{account_id} has {MAX_DRAFTS} drafts", hint="delete some of them")
            values: dict[str, Any] = {"value": dict(value), "version": stored + 1}
            values["updated_at"] = self._db.time(tx)
            upsert = self._upsert(drafts).values(account_id=account_id, name=name, **values)
            tx.execute(upsert.on_conflict_do_update(index_elements=["account_id", "name"], set_=values))
            return Draft(account_id, name, **values)

    def get_draft(self, account_id: str, name: str) -> Draft:
        """A draft. Raises NotFound."""
        mine = (drafts.c.account_id == account_id, drafts.c.name == name)
        with self._db.read() as connection:
            row = connection.execute(select(drafts).where(*mine)).first()
        if row is None:
            raise NotFound(f"no draft {name!r}")
        return Draft(**row._mapping)

    def list_drafts(self, account_id: str) -> list[Draft]:
        """An account's drafts, the last changed first."""
        query = select(drafts).where(drafts.c.account_id == account_id).order_by(drafts.c.updated_at.desc())
        with self._db.read() as connection:
            return [Draft(**row._mapping) for row in connection.execute(query)]

    def delete_draft(self, account_id: str, name: str) -> None:
        """Delete a draft. Raises NotFound."""
        mine = (drafts.c.account_id == account_id, drafts.c.name == name)
        with self._db.write() as tx:
            if not tx.execute(delete(drafts).where(*mine)).rowcount:
                raise NotFound(f"no draft {name!r}")

    # -- webhooks --

    def due_deliveries(self, *, limit: int = 20, hold_seconds: float = 120.0) -> list[Delivery]:
        """Webhooks to call now.

        Whoever gets one reports with `record_delivery`. If that does not happen within `hold_seconds`, as the
        process has died, it is due again: a webhook is called at least once.
        """
        with self._db.read() as connection:
            due = select(deliveries.c.id).where(deliveries.c.due_at <= self._db.clock).limit(1)
            if connection.execute(due).first() is None:
                return []
        with self._db.write() as tx:
            now = self._db.time(tx)
            ids = tx.execute(
                select(deliveries.c.id)
                .where(deliveries.c.due_at <= now)
                .order_by(deliveries.c.due_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            ).scalars()
            rows = tx.execute(
                update(deliveries)
                .where(deliveries.c.id.in_(ids.all()))
                .values(due_at=now + hold_seconds, attempts=deliveries.c.attempts + 1)
                .returning(deliveries)
            ).all()
        return [Delivery(**row._mapping) for row in rows]

    def record_delivery(
        self,
        delivery_id: str,
        *,
        status: int | None = None,
        error: str | None = None,
        retry_in: float | None = None,
    ) -> None:
        """Note how a call of a webhook ended.

        Args:
            status: HTTP status of the answer, if there was one.
            error: Why it failed; None: it was delivered.
            retry_in: Seconds until it is tried again; None with an error: it is given up.
        """
        with self._db.write() as tx:
            now = self._db.time(tx)
            values: dict[str, Any] = {"status": status, "error": error}
            values["delivered_at"] = now if error is None else None
            values["due_at"] = now + retry_in if error is not None and retry_in is not None else None
            row = tx.execute(
                update(deliveries)
                .where(deliveries.c.id == delivery_id)
                .values(**values)
                .returning(deliveries.c.set_id, deliveries.c.attempts)
            ).first()
            if row is not None and values["due_at"] is None:
                action = "webhook.delivered" if error is None else "webhook.given_up"
                details = {"status": status, "attempts": row.attempts}
                self._audit(tx, now, "ledger", action, row.set_id, **details)

    def list_deliveries(self, set_id: str) -> list[Delivery]:
        """The webhooks of a set, oldest first."""
        query = select(deliveries).where(deliveries.c.set_id == set_id).order_by(deliveries.c.created_at)
        with self._db.read() as connection:
            return [Delivery(**row._mapping) for row in connection.execute(query)]

    # -- workers --

    def heartbeat(
        self,
        worker: str,
        *,
        device: str,
        warm: Sequence[str] = (),
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Record that a worker is alive and what it has loaded."""
        values: dict[str, Any] = {"device": device, "warm": list(warm), "details": dict(details or {})}
        with self._db.write(durable=False) as tx:
            now = self._db.time(tx)
            seen = tx.execute(update(workers).where(workers.c.id == worker).values(**values, seen_at=now))
            if not seen.rowcount:
                tx.execute(insert(workers).values(id=worker, **values, started_at=now, seen_at=now))

    def list_workers(self, *, seen_within: float = 30.0) -> list[WorkerRow]:
        """The workers that reported within some seconds, by their ids."""
        with self._db.read() as connection:
            since = self._db.time(connection) - seen_within
            query = select(workers).where(workers.c.seen_at >= since).order_by(workers.c.id)
            return [WorkerRow(**row._mapping) for row in connection.execute(query)]

    def forget_workers(self, *, workers_gone: Sequence[str] = (), unseen_for: float = 86400.0) -> None:
        """Delete workers that have ended, and those that have not reported for long."""
        with self._db.write(durable=False) as tx:
            since = self._db.time(tx) - unseen_for
            tx.execute(delete(workers).where(or_(workers.c.id.in_(workers_gone), workers.c.seen_at < since)))
