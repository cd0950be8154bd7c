"""How the ledger forgets: images and sets that are old, and everything of an account.

Rows go first and files afterwards: these methods return the files without an owner. A crash in between
leaves files without rows, which garbage collection of the stores finds (`Reading.known_keys`).
"""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    and_,
    delete,
    exists,
    func,
    null,
    or_,
    select,
    update,
)

from limner.errors import Conflict, NotFound
from limner.service.identity import LOCAL_ACCOUNT

from .auditing import ERASED, Auditing
from .library import by_account, find_image
from .reading import Reading
from .schema import (
    accounts,
    album_images,
    albums,
    api_keys,
    attempts,
    deliveries,
    drafts,
    events,
    extensions,
    images,
    jobs,
    notices,
    preferences,
    review_decisions,
    reviews,
    set_parents,
    sets,
    shares,
    uploads,
    usage,
)
from .writing import actor_of, parts

_LOG = logging.getLogger("limner.ledger")

_OPEN = ("queued", "paused", "running")
_LEFT_OUT = {  # columns that an export does not have, by its kinds of values
    "key": ("hash",),
    "review": ("withheld", "withheld_key"),
    "review_decision": ("actor",),
}


@dataclass(frozen=True)
class Freed:
    """Files without an owner.

    Attributes:
        keys: Keys of images in the image store.
        uploads: Hashes of uploads in the asset store.
        sets: Number of sets that were deleted.
    """

    keys: tuple[str, ...] = ()
    uploads: tuple[str, ...] = ()
    sets: int = 0


class Retention(Reading, Auditing):
    """Deleting, expiring, exporting and erasing."""

    def delete_image(self, name: str, *, account_id: str | None = None) -> str:
        """Delete an image from the ledger permanently; its job stays. Raises NotFound.

        Returns:
            Key of its file, which the caller deletes.
        """
        with self._db.write() as tx:
            row, now = find_image(tx, name, account_id), self._db.time(tx)
            tx.execute(delete(images).where(images.c.seq == row.seq))
            self._audit(tx, now, actor_of(account_id), "image.deleted", row.id, job=row.job_id)
            self._library_events(tx, "deleted", by_account([row]), now)
        return str(row.key)

    def empty_trash(
        self, *, deleted_for: float, account_id: str | None = None, limit: int = 1000
    ) -> list[str]:
        """Delete images permanently that were deleted some seconds ago. Returns as `expire_images`."""
        with self._db.write() as tx:
            now = self._db.time(tx)
            old = images.c.deleted_at <= now - deleted_for
            if account_id is not None:
                old = old & (images.c.account_id == account_id)
            return self._delete_images(tx, now, old, images.c.deleted_at, limit, "images.emptied")

    def expire_images(
        self, *, older_than: float, account_id: str | None = None, limit: int = 1000
    ) -> list[str]:
        """Delete images that are older than some seconds.

        Returns:
            Keys of their files; `limit` of them means that there may be more.
        """
        with self._db.write() as tx:
            now = self._db.time(tx)
            old = images.c.created_at < now - older_than
            if account_id is not None:
                old = old & (images.c.account_id == account_id)
            return self._delete_images(tx, now, old, images.c.created_at, limit, "images.expired")

    def _delete_images(
        self, tx: Connection, now: float, which: ColumnElement[bool], order: Any, limit: int, action: str
    ) -> list[str]:
        """Delete images, the first by `order`, and return the keys of their files."""
        columns = [images.c.seq, images.c.id, images.c.account_id, images.c.key]
        rows = tx.execute(select(*columns).where(which).order_by(order).limit(limit).with_for_update()).all()
        for part in parts([row.seq for row in rows]):
            tx.execute(delete(images).where(images.c.seq.in_(part)))
        its = by_account(rows)
        self._library_events(tx, "deleted", its, now)
        for account_id in its:
            gone = [row.id for row in rows if row.account_id == account_id]
            self._audit(tx, now, "ledger", action, account_id, images=gone)
        return [row.key for row in rows]

    def expire_uploads(self, *, unused_for: float, limit: int = 1000) -> list[str]:
        """Forget uploads that no request has used for some seconds and none that is open needs.

        Returns:
            Hashes of the files without an owner.
        """
        with self._db.write() as tx:
            now = self._db.time(tx)
            busy = exists().where(jobs.c.account_id == uploads.c.account_id, jobs.c.state.in_(_OPEN))
            old = select(uploads.c.account_id, uploads.c.sha256).where(
                uploads.c.used_at < now - unused_for, ~busy
            )
            rows = tx.execute(old.limit(limit)).all()
            for row in rows:
                mine = (uploads.c.account_id == row.account_id, uploads.c.sha256 == row.sha256)
                tx.execute(delete(uploads).where(*mine))
            return _nobodys(tx, [row.sha256 for row in rows])

    def forget_sets(self, *, older_than: float, limit: int = 200) -> Freed:
        """Delete sets that ended long ago, with their jobs, images and events. Usage and audit log stay.

        Args:
            older_than: Seconds since the last of the jobs ended.
            limit: Number of sets at most.
        """
        with self._db.write() as tx:
            now = self._db.time(tx)
            recent = exists().where(
                jobs.c.set_id == sets.c.id,
                or_(jobs.c.state.in_(_OPEN), jobs.c.finished_at >= now - older_than),
            )
            old = select(sets.c.id).where(sets.c.created_at < now - older_than, ~recent)
            ids = list(tx.execute(old.order_by(sets.c.seq).limit(limit)).scalars())
            keys = [key for part in parts(ids) for key in self._drop_sets(tx, sets.c.id.in_(part))]
            if ids:
                details: dict[str, Any] = {"sets": ids, "older_than": older_than}
                self._audit(tx, now, "ledger", "sets.forgotten", "all", **details)
        return Freed(tuple(keys), sets=len(ids))

    def forget_events(self, *, older_than: float) -> int:
        """Delete events older than some seconds; the last one stays. Returns how many."""
        with self._db.write() as tx:
            before = self._db.time(tx) - older_than
            last = select(func.max(events.c.id)).scalar_subquery()
            return tx.execute(delete(events).where(events.c.at < before, events.c.id < last)).rowcount

    def _drop_sets(self, tx: Connection, which: ColumnElement[bool]) -> list[str]:
        """Delete sets and all rows that belong to them; reviews and notices go with their jobs. Returns the
        keys of their images, of withheld ones too."""
        its_sets = select(sets.c.id).where(which)
        its_jobs = select(jobs.c.id).where(jobs.c.set_id.in_(its_sets))
        # A worker that is just handing in an image of one is waited for, or waits and finds the job gone.
        tx.execute(its_jobs.order_by(jobs.c.seq).with_for_update()).all()
        gone = [images.c.seq, images.c.account_id, images.c.key]
        rows = tx.execute(select(*gone).where(images.c.job_id.in_(its_jobs))).all()
        withheld = and_(reviews.c.job_id.in_(its_jobs), reviews.c.withheld_key.is_not(None))
        keys = [row.key for row in rows]
        keys += tx.execute(select(reviews.c.withheld_key).where(withheld)).scalars()
        tx.execute(delete(images).where(images.c.job_id.in_(its_jobs)))
        self._library_events(tx, "deleted", by_account(rows), self._db.time(tx))
        tx.execute(delete(attempts).where(attempts.c.job_id.in_(its_jobs)))
        tx.execute(delete(events).where(events.c.job_id.in_(its_jobs)))
        tx.execute(delete(deliveries).where(deliveries.c.set_id.in_(its_sets)))
        tx.execute(delete(jobs).where(jobs.c.set_id.in_(its_sets)))
        tx.execute(delete(sets).where(which))
        return keys

    def delete_set(self, set_id: str, *, account_id: str | None = None) -> Freed:
        """Delete a set whose jobs have all ended, with their images. Raises NotFound, Conflict."""
        with self._db.write() as tx:
            row = tx.execute(select(sets).where(sets.c.id == set_id).with_for_update()).first()
            if row is None or account_id not in (None, row.account_id):
                raise NotFound(f"no set {set_id}")
            still = select(jobs.c.id).where(jobs.c.set_id == set_id, jobs.c.state.in_(_OPEN)).limit(1)
            if tx.execute(still).first() is not None:
                raise Conflict(f"{set_id} has jobs that have not ended", hint="cancel them first")
            keys = self._drop_sets(tx, sets.c.id == set_id)
            self._audit(tx, self._db.time(tx), actor_of(account_id), "set.deleted", set_id)
        return Freed(tuple(keys))

    # -- everything of an account --

    def export_account(self, account_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Everything that is kept of an account, as pairs of a kind and its values: "account", "key", "set",
        "job", "attempt", "image", "album", "album_image", "parent", "extension", "upload", "draft",
        "preference", "webhook", "review", "review_decision", "notice", "usage", "event", "audit".

        Hashes of keys, secrets of webhooks, images that are withheld, and who decided about them are left
        out. Raises NotFound.
        """
        account = self.get_account_row(account_id)
        yield "account", account
        mine = select(jobs.c.id).where(jobs.c.account_id == account_id)
        my_albums = select(albums.c.id).where(albums.c.account_id == account_id)
        my_reviews = select(reviews.c.id).where(reviews.c.account_id == account_id)
        my_sets = select(sets.c.id).where(sets.c.account_id == account_id)
        kinds: tuple[tuple[str, Table, ColumnElement[bool]], ...] = (
            ("key", api_keys, api_keys.c.account_id == account_id),
            ("set", sets, sets.c.account_id == account_id),
            ("job", jobs, jobs.c.account_id == account_id),
            ("attempt", attempts, attempts.c.job_id.in_(mine)),
            ("image", images, images.c.account_id == account_id),
            ("album", albums, albums.c.account_id == account_id),
            ("album_image", album_images, album_images.c.album_id.in_(my_albums)),
            ("parent", set_parents, set_parents.c.set_id.in_(my_sets)),
            ("extension", extensions, extensions.c.account_id == account_id),
            ("upload", uploads, uploads.c.account_id == account_id),
            ("draft", drafts, drafts.c.account_id == account_id),
            ("preference", preferences, preferences.c.account_id == account_id),
            ("webhook", deliveries, deliveries.c.account_id == account_id),
            ("review", reviews, reviews.c.account_id == account_id),
            ("review_decision", review_decisions, review_decisions.c.review_id.in_(my_reviews)),
            ("notice", notices, notices.c.account_id == account_id),
            ("usage", usage, usage.c.account_id == account_id),
            ("event", events, events.c.account_id == account_id),
        )
        with self._db.read() as connection:
            for kind, table, which in kinds:
                for row in connection.execute(select(table).where(which).execution_options(yield_per=200)):
                    left_out = _LEFT_OUT.get(kind, ())
                    values = {name: value for name, value in row._mapping.items() if name not in left_out}
                    if values.get("webhook"):
                        hidden = {"secret": "hidden"} if "secret" in values["webhook"] else {}
                        values["webhook"] = {**values["webhook"], **hidden}
                    yield kind, values
        for entry in self.audit_of_account(account_id):
            yield "audit", asdict(entry)

    def get_account_row(self, account_id: str) -> dict[str, Any]:
        """An account's row as a dictionary. Raises NotFound."""
        with self._db.read() as connection:
            row = connection.execute(select(accounts).where(accounts.c.id == account_id)).first()
        if row is None:
            raise NotFound(f"no account {account_id!r}", fields=("account",))
        return dict(row._mapping)

    def erase_account(self, account_id: str, *, actor: str = "operator") -> Freed:
        """Erase an account and everything of it. Jobs that run are dropped: their workers lose them.

        Its usage stays, summed under the account "erased", and so do audit entries, without its name and
        prompts.

        Returns:
            The files without an owner.

        Raises:
            NotFound: If there is no such account.
            Conflict: For the account that the service itself needs.
        """
        if account_id == LOCAL_ACCOUNT:
            raise Conflict(f"the account {LOCAL_ACCOUNT!r} belongs to the service and cannot be erased")
        with self._db.write() as tx:
            if not tx.execute(
                select(accounts.c.id).where(accounts.c.id == account_id).with_for_update()
            ).first():
                raise NotFound(f"no account {account_id!r}", fields=("account",))
            keys = self._drop_sets(tx, sets.c.account_id == account_id)
            mine = select(uploads.c.sha256).where(uploads.c.account_id == account_id)
            hashes = list(tx.execute(mine).scalars())
            for table in (albums, uploads, drafts, preferences, api_keys, shares, events):
                tx.execute(delete(table).where(table.c.account_id == account_id))
            tx.execute(
                update(usage).where(usage.c.account_id == account_id).values(account_id=ERASED, key_id=null())
            )
            its = review_decisions.c.actor == account_id
            tx.execute(update(review_decisions).where(its).values(actor=ERASED))
            alias = self._erase_from_audit(tx, account_id)
            tx.execute(delete(accounts).where(accounts.c.id == account_id))
            details: dict[str, Any] = {"images": len(keys), "uploads": len(hashes)}
            by = alias if actor == account_id else actor
            self._audit(tx, self._db.time(tx), by, "account.erased", alias, **details)
            freed = Freed(tuple(keys), tuple(_nobodys(tx, hashes)))
        if not self._db.clear_log():
            _LOG.warning("what was erased is still in SQLite's log, until it is written over")
        return freed


def _nobodys(tx: Connection, hashes: list[str]) -> list[str]:
    """Those of the hashes that no account has uploaded."""
    kept: set[str] = set()
    for part in parts(hashes):
        kept |= set(tx.execute(select(uploads.c.sha256).where(uploads.c.sha256.in_(part))).scalars())
    return [one for one in dict.fromkeys(hashes) if one not in kept]
