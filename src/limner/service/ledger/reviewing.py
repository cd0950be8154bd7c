"""Reviews and notices, which are written in the transaction of what they are about.

A review is of an image that the safety policy flags, blurs or blocks, for a person to look at (`moderating`).
A notice tells an account what became of an image, and why.
"""

from typing import Any

from sqlalchemy import Connection, Row, insert, null, select, update

from limner.errors import NotFound
from limner.service.jobs import NewReview, StoredImage
from limner.service.reviews import BY_POLICY, Cause, DeliveredAs, Notice

from .rows import STORED_FIELDS, new_id
from .schema import events, notices, reviews
from .writing import Writing

IN_AUDIT_LOG = {"flag": "image.flagged", "blur": "image.blurred", "block": "image.blocked"}
"""What the audit log calls an action of the safety policy."""


_NOTICE = [notices.c[name] for name in Notice.__dataclass_fields__]


class Reviewing(Writing):
    """Writes reviews and notices; reads notices."""

    def _add_review(
        self, tx: Connection, job: Row[Any], review: NewReview, image: StoredImage | None, now: float
    ) -> None:
        """Write the review of an image that has just been drawn.

        Args:
            job: Its job, with id, fence, account and owner.
            image: The image; None: it is not stored.
        """
        action, review_id = str(review.decision["action"]), new_id("rev")
        image_id = None if image is None else image.id
        values: dict[str, Any] = {"withheld": null()}
        if review.withheld is not None:
            own = {"job_id": job.id, "account_id": job.account_id, "created_at": now}
            withheld = {name: getattr(review.withheld, name) for name in STORED_FIELDS} | own
            values = {"withheld": withheld, "withheld_key": review.withheld.key, "withheld_at": now}
        tx.execute(
            insert(reviews).values(
                id=review_id,
                account_id=job.account_id,
                job_id=job.id,
                fence=job.fence,
                image_id=image_id,
                stage=review.stage,
                action=action,
                decision=dict(review.decision),
                state="open",
                created_at=now,
                **values,
            )
        )
        if review.stage == "image":
            said = {name: review.decision[name] for name in ("rule", "score", "version")}
            actor = job.owner or "ledger"
            self._audit(tx, now, actor, IN_AUDIT_LOG[action], job.id, review=review_id, **said)
        if BY_POLICY[action] != "clear":
            reason = str(review.decision["reason"])
            self._give_notice(tx, job.account_id, job.id, image_id, "policy", BY_POLICY[action], reason, now)

    @staticmethod
    def _give_notice(
        tx: Connection,
        account_id: str,
        job_id: str,
        image_id: str | None,
        cause: Cause,
        delivery: DeliveredAs,
        reason: str,
        now: float,
        note: str = "",
    ) -> None:
        """Write a notice, and the event of it. Arguments as `Notice`."""
        notice_id = new_id("ntc")
        its = {"job_id": job_id, "image_id": image_id, "cause": cause, "delivery": delivery}
        texts = {"reason": reason, "note": note}
        tx.execute(insert(notices).values(id=notice_id, account_id=account_id, at=now, **its, **texts))
        tx.execute(
            insert(events).values(
                account_id=account_id,
                set_id="",
                job_id="",
                index=0,
                change="notice",
                at=now,
                data={"notice": notice_id, **its},
            )
        )

    def list_notices(
        self, account_id: str | None, *, unread: bool = False, limit: int = 100, before: str | None = None
    ) -> list[Notice]:
        """Notices, newest first.

        Args:
            account_id: Whose they are; None: everybody's.
            unread: Only those that have not been read.
            limit: Number of notices at most.
            before: Id of a notice: only older ones.

        Raises:
            NotFound: There is no notice `before`.
        """
        mine = [] if account_id is None else [notices.c.account_id == account_id]
        query = select(*_NOTICE).where(*mine).order_by(notices.c.seq.desc()).limit(limit)
        if unread:
            query = query.where(notices.c.read_at.is_(None))
        with self._db.read() as connection:
            if before is not None:
                last = connection.execute(select(notices.c.seq).where(*mine, notices.c.id == before)).scalar()
                if last is None:
                    raise NotFound(f"no notice {before}", fields=("before",))
                query = query.where(notices.c.seq < last)
            return [Notice(**row._mapping) for row in connection.execute(query)]

    def read_notice(self, notice_id: str, *, account_id: str) -> Notice:
        """Note that an account has read a notice of its own, and return it. Raises NotFound."""
        mine = (notices.c.id == notice_id, notices.c.account_id == account_id)
        with self._db.write() as tx:
            new = update(notices).where(*mine, notices.c.read_at.is_(None))
            tx.execute(new.values(read_at=self._db.time(tx)))
            row = tx.execute(select(*_NOTICE).where(*mine)).first()
        if row is None:
            raise NotFound(f"no notice {notice_id}")
        return Notice(**row._mapping)
