"""The moderation queue: what the safety policy flags, blurs and blocks, and what people decide about it.

How an image is delivered follows from its rows alone. One that is withheld has no row in `images`, and so
there is no image for whatever reads images for callers; its review keeps its columns and its master.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, and_, delete, func, insert, null, select, update

from limner.errors import Conflict, NotFound
from limner.service.jobs import StoredImage
from limner.service.reviews import (
    BY_POLICY,
    Decided,
    Decision,
    DeliveredAs,
    DeliveredFile,
    Review,
    ReviewState,
)

from .ending import CONCERNED, Ending, hashes
from .library import by_account
from .rows import STORED_FIELDS
from .schema import album_images, albums, images, jobs, review_decisions, reviews, usage
from .writing import actor_of, parts

_STATES: Mapping[Decision, ReviewState] = {"uphold": "upheld", "release": "released", "block": "blocked"}
_NEEDLESS = {("flag", "release"), ("block", "block")}  # an action of the policy, and what changes nothing


_REVIEWS = (
    select(reviews, jobs.c.set_id, images.c.blurred)
    .join(jobs, jobs.c.id == reviews.c.job_id)
    .outerjoin(images, images.c.id == reviews.c.image_id)
)


class Moderating(Ending):
    """Reads reviews, and changes how images are delivered."""

    def list_reviews(
        self,
        account_id: str | None = None,
        *,
        state: ReviewState | None = None,
        action: str | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[Review]:
        """Reviews, newest first.

        Args:
            account_id: Whose images they are of; None: everybody's.
            state, action: What they must have.
            limit: Number of reviews at most.
            before: Id of a review: only older ones.

        Raises:
            NotFound: There is no review `before`.
        """
        query = _REVIEWS.order_by(reviews.c.seq.desc()).limit(limit)
        for column, value in (("account_id", account_id), ("state", state), ("action", action)):
            if value is not None:
                query = query.where(reviews.c[column] == value)
        with self._db.read() as connection:
            if before is not None:
                last = connection.execute(select(reviews.c.seq).where(reviews.c.id == before)).scalar()
                if last is None:
                    raise NotFound(f"no review {before}", fields=("before",))
                query = query.where(reviews.c.seq < last)
            return _whole(connection, query)

    def get_review(self, review_id: str) -> Review:
        """A review. Raises NotFound."""
        with self._db.read() as connection:
            return _review(connection, review_id)

    def open_reviews(self) -> dict[str, int]:
        """Number of reviews that nobody has decided, by the action of the policy."""
        count = func.count().label("number")
        query = select(reviews.c.action, count).where(reviews.c.state == "open").group_by(reviews.c.action)
        with self._db.read() as connection:
            return {row.action: row.number for row in connection.execute(query)}

    def reviewed_image(self, review_id: str) -> StoredImage:
        """The image of a review, delivered or withheld, for those who decide.

        Raises:
            NotFound: There is no such review, or its image is not stored any more.
        """
        with self._db.read() as connection:
            query = select(reviews.c.withheld, reviews.c.image_id).where(reviews.c.id == review_id)
            row = connection.execute(query).first()
            if row is None:
                raise NotFound(f"no review {review_id}")
            values = row.withheld
            if values is None:
                its = connection.execute(select(images).where(images.c.id == row.image_id)).first()
                if its is None:
                    raise _gone(review_id)
                values = its._mapping
        return StoredImage(**{name: values[name] for name in STORED_FIELDS})

    def decide(
        self, review_id: str, decision: Decision, *, note: str, file: DeliveredFile | None = None
    ) -> Review:
        """Decide a review.

        Args:
            note: Reason, which the account sees in a notice.
            file: What is delivered in clear, for "release".

        Raises:
            NotFound: There is no such review, or the image to be released is not stored any more.
            Conflict: It is decided, the decision changes nothing, or the job was tried again since.
        """
        with self._db.write() as tx:
            row, job = self._locked(tx, review_id)
            if row.state != "open":
                raise Conflict(
                    f"{review_id} is {row.state}", hint="reverse that decision first", fields=("decision",)
                )
            if (row.action, decision) in _NEEDLESS:
                raise Conflict(
                    f"the policy {row.action}s the image of {review_id}: {decision} changes nothing",
                    hint="say uphold",
                    fields=("decision",),
                )
            by_policy = BY_POLICY[row.action]
            outcomes: Mapping[Decision, DeliveredAs] = {"release": "clear", "block": "withheld"}
            delivery = outcomes.get(decision, by_policy)
            if delivery != by_policy:
                self._deliver_as(tx, row, job, delivery, file)
            self._settle(tx, row, _STATES[decision], decision, delivery, note, file)
            return _review(tx, review_id)

    def reverse(self, review_id: str, *, note: str, file: DeliveredFile | None = None) -> Review:
        """Undo the decision that holds: the review is open again, and its image delivered as the policy says.
        The decision stays on record.

        Args:
            note: Reason, which the account sees in a notice.
            file: What is delivered, where the policy flags or blurs the image and it was delivered otherwise.

        Raises:
            NotFound: There is no such review, or the image to be delivered is not stored any more.
            Conflict: It is not decided.
        """
        with self._db.write() as tx:
            row, job = self._locked(tx, review_id)
            if row.state == "open":
                raise Conflict(f"{review_id} is open: there is no decision to reverse")
            delivery = BY_POLICY[row.action]
            if row.state != "upheld":
                self._deliver_as(tx, row, job, delivery, file)
            self._settle(tx, row, "open", "reverse", delivery, note, file)
            return _review(tx, review_id)

    def expire_withheld(self, *, older_than: float, limit: int = 1000) -> list[str]:
        """Forget the images that have been withheld for some seconds; their reviews stay.

        Returns:
            Keys of their files; `limit` of them means that there may be more.
        """
        with self._db.read() as connection:
            old = reviews.c.withheld_at <= self._db.time(connection) - older_than
            if connection.execute(select(reviews.c.seq).where(old).limit(1)).first() is None:
                return []
        with self._db.write() as tx:
            now = self._db.time(tx)
            old = reviews.c.withheld_at <= now - older_than
            columns = [reviews.c[name] for name in ("seq", "account_id", "image_id", "withheld_key")]
            query = select(*columns).where(old).order_by(reviews.c.withheld_at).limit(limit)
            rows = tx.execute(query.with_for_update()).all()
            for part in parts([row.seq for row in rows]):
                tx.execute(update(reviews).where(reviews.c.seq.in_(part)).values(_NOT_WITHHELD))
            for account_id in by_account(rows):
                gone = [row.image_id for row in rows if row.account_id == account_id]
                self._audit(tx, now, "ledger", "images.expired", account_id, images=gone)
        return [row.withheld_key for row in rows]

    # -- parts of the above --

    @staticmethod
    def _locked(tx: Connection, review_id: str) -> tuple[Row[Any], Row[Any]]:
        """A review and its job, locked in the order in which sets are deleted. Raises NotFound."""
        its = select(reviews.c.job_id).where(reviews.c.id == review_id).scalar_subquery()
        job = tx.execute(select(*CONCERNED).where(jobs.c.id == its).with_for_update()).first()
        row = tx.execute(select(reviews).where(reviews.c.id == review_id).with_for_update()).first()
        if row is None or job is None:
            raise NotFound(f"no review {review_id}")
        return row, job

    def _settle(
        self,
        tx: Connection,
        row: Row[Any],
        state: ReviewState,
        decision: Decision | Literal["reverse"],
        delivery: DeliveredAs,
        note: str,
        file: DeliveredFile | None,
    ) -> None:
        """Record a decision. The account gets a notice where its image is or was not delivered in clear."""
        now, actor = self._db.time(tx), actor_of(None)
        tx.execute(update(reviews).where(reviews.c.seq == row.seq).values(state=state))
        made = insert(review_decisions).values(review_id=row.id, decision=decision, actor=actor)
        tx.execute(made.values(at=now, note=note))
        action = "reversed" if decision == "reverse" else state
        details = {"image": row.image_id, "job": row.job_id, "account": row.account_id}
        if file is not None:
            details["delivered_sha256"] = file.sha256
        self._audit(tx, now, actor, f"review.{action}", row.id, **details)
        if row.action != "flag" or "blocked" in (state, row.state):
            reason = str(row.decision["reason"])
            about = (row.account_id, row.job_id, row.image_id, decision, delivery, reason)
            self._give_notice(tx, *about, now, note)

    def _deliver_as(
        self, tx: Connection, row: Row[Any], job: Row[Any], delivery: DeliveredAs, file: DeliveredFile | None
    ) -> None:
        """Change how the image of a review is delivered. Arguments as `decide`."""
        now = self._db.time(tx)
        if delivery == "withheld":
            self._take_down(tx, row, now)
            return
        if file is None:
            raise _gone(row.id)
        values: dict[str, Any] = {"delivered_sha256": file.sha256, "delivered_bytes": file.bytes}
        values["blurred"] = delivery == "blurred"
        if row.withheld is None:
            its = update(images).where(images.c.id == row.image_id)
            changed = tx.execute(its.values(values).returning(images.c.seq, images.c.account_id)).all()
            if not changed:
                raise _gone(row.id)
            self._library_events(tx, "restored", by_account(changed), now)
        else:
            self._put_back(tx, row, job, {**row.withheld, **values}, now)

    def _take_down(self, tx: Connection, row: Row[Any], now: float) -> None:
        """Withhold an image, if it is there."""
        its = images.c.id == row.image_id
        image = tx.execute(select(images).where(its).with_for_update()).first()
        if image is None:
            return
        in_albums = select(album_images.c.album_id).where(album_images.c.number == image.seq)
        withheld = {**image._mapping, "albums": list(tx.execute(in_albums).scalars())}
        tx.execute(delete(images).where(its))
        kept = {"withheld": withheld, "withheld_key": image.key, "withheld_at": now}
        tx.execute(update(reviews).where(reviews.c.seq == row.seq).values(kept))
        self._library_events(tx, "deleted", by_account([image]), now)

    def _put_back(
        self, tx: Connection, row: Row[Any], job: Row[Any], values: Mapping[str, Any], now: float
    ) -> None:
        """Deliver an image that is withheld: where it was, or as the result of its job.

        Args:
            values: Columns of the image, and the ids of its albums.
        """
        columns = {name: values[name] for name in (column.name for column in images.c) if name in values}
        delivered_before = "seq" in columns
        if not delivered_before and (job.state, job.fence) != ("failed", row.fence):
            raise Conflict(
                f"the job of {row.id} was tried again or stopped: its image cannot be its result any more",
                hint="decide about the image of its last attempt",
            )
        made = insert(images).values(columns).returning(images.c.seq, images.c.account_id)
        [image] = tx.execute(made).all()
        tx.execute(update(reviews).where(reviews.c.seq == row.seq).values(_NOT_WITHHELD))
        if delivered_before:
            its = select(albums.c.id).where(albums.c.id.in_(values["albums"]))
            again = [{"album_id": one, "number": image.seq} for one in tx.execute(its).scalars()]
            if again:
                tx.execute(insert(album_images), again)
            self._library_events(tx, "restored", by_account([image]), now)
        else:
            self._finish_late(tx, job, StoredImage(**{name: columns[name] for name in STORED_FIELDS}), now)

    def _finish_late(self, tx: Connection, job: Row[Any], image: StoredImage, now: float) -> None:
        """End a job as done that failed as its image was blocked. Its device seconds are counted already."""
        tx.execute(update(jobs).where(jobs.c.id == job.id).values(state="done", error=null()))
        its = and_(usage.c.job_id == job.id, usage.c.fence == job.fence)
        if not tx.execute(update(usage).where(its).values(images=1)).rowcount:
            self._use(tx, job, now, 0.0, 0.0, pictures=1)
        data = {"image": image.id, "width": image.width, "height": image.height}
        data |= {"bytes": image.bytes, "sha256": image.sha256}
        self._close(tx, job, now, "done", data, actor=actor_of(None), recorded=hashes(image))


_NOT_WITHHELD = {"withheld": null(), "withheld_key": null(), "withheld_at": null()}


def _gone(review_id: str) -> NotFound:
    return NotFound(
        f"the image of {review_id} is not stored any more",
        hint="withheld images are kept for some days, and owners may delete what is delivered to them",
    )


def _review(connection: Connection, review_id: str) -> Review:
    found = _whole(connection, _REVIEWS.where(reviews.c.id == review_id))
    if not found:
        raise NotFound(f"no review {review_id}")
    return found[0]


def _whole(connection: Connection, query: Select[Any]) -> list[Review]:
    """Reviews with their decisions."""
    rows: Sequence[Row[Any]] = connection.execute(query).all()
    decided: dict[str, tuple[Decided, ...]] = {}
    for part in parts([row.id for row in rows]):
        its = review_decisions.c.review_id.in_(part)
        for one in connection.execute(
            select(review_decisions).where(its).order_by(review_decisions.c.seq)
        ).all():
            made = Decided(one.decision, one.actor, one.at, one.note)
            decided[one.review_id] = (*decided.get(one.review_id, ()), made)
    return [
        Review(
            id=row.id,
            account_id=row.account_id,
            job_id=row.job_id,
            set_id=row.set_id,
            image_id=row.image_id,
            stage=row.stage,
            action=row.action,
            decision=row.decision,
            state=row.state,
            delivery=_delivery(row),
            created_at=row.created_at,
            decisions=decided.get(row.id, ()),
        )
        for row in rows
    ]


def _delivery(row: Row[Any]) -> DeliveredAs | None:
    if row.withheld_key is not None:
        return "withheld"
    if row.blurred is None:
        return None
    return "blurred" if row.blurred else "clear"
