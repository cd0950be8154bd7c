"""The callers' side of the ledger: accepting sets of jobs, and changing one's own waiting jobs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, null, or_, select, union_all, update
from sqlalchemy.exc import IntegrityError

from limner.errors import Conflict, IdempotencyConflict, InvalidRequest, NotFound
from limner.service.events import Change
from limner.service.identity import Principal
from limner.service.jobs import FINAL_STATES, Job, JobError, JobSet, NewJob, Submission

from .ending import CONCERNED, Ending
from .library import find_images
from .quotas import check_quotas
from .reading import Reading
from .rows import account_of, error_value, new_id
from .schema import accounts, extensions, jobs, set_parents, sets, shares, uploads
from .states import PAUSED, QUEUED, RUNNING
from .writing import actor_of, check_name

_SET, _JOB, _PARENTS = insert(sets), insert(jobs), insert(set_parents)
_mine = (jobs.c.lane == bindparam("of_lane"), jobs.c.account_id == bindparam("of_account"))
_LAST_POSITIONS = select(
    *(select(func.max(jobs.c.position)).where(*_mine, state).scalar_subquery() for state in (QUEUED, PAUSED))
)
_SHARES_THERE = (
    select(func.count())
    .select_from(shares)
    .where(shares.c.lane == bindparam("of_lane"), shares.c.account_id.in_(["", bindparam("of_account")]))
)


MAX_SET_JOBS = 1000
"""Number of jobs up to which a set can be extended."""


@dataclass(frozen=True)
class Extended:
    """A set that got further jobs, and the ids of those that were cancelled for them."""

    jobs: JobSet
    cancelled: tuple[str, ...] = ()


class Submitting(Reading, Ending):
    """Accepting, cancelling, pausing, moving and retrying."""

    def accept(self, principal: Principal, submission: Submission) -> JobSet:
        """Accept a set of jobs in one transaction. What this has returned is on the disk.

        Returns:
            The set; an earlier one, with `replayed`, if the account has used the idempotency key for the same
            digest.

        Raises:
            IdempotencyConflict: If the account has used the key for another digest.
            QuotaExceeded: If the account has used up a quota.
            NotFound: If there is no such account any more.
            InvalidRequest: If it no longer has an upload that the jobs need, or parents are not images of it.
        """
        if not submission.jobs:
            raise InvalidRequest("a set of jobs needs at least one job")
        if bool(submission.parents) != (submission.relation is not None):
            raise InvalidRequest(
                "parents and relation go together",
                hint="name the images that these are made from, and what they are of them",
                fields=("parents", "relation"),
            )
        check_name("idempotency_key", submission.idempotency_key)
        check_name("external_id", submission.external_id)
        try:
            with self._db.write() as tx:
                earlier = self._replayed(tx, principal, submission)
                return earlier or self._accept(tx, principal, submission)
        except IntegrityError:
            with self._db.read() as connection:
                earlier = self._replayed(connection, principal, submission)  # accepted at the same time
                owner = select(accounts.c.id).where(accounts.c.id == principal.account.id)
                if connection.execute(owner).first() is None:
                    raise NotFound(f"no account {principal.account.id!r}") from None
            if earlier is None:
                raise
            return earlier

    def find_replayed(self, account_id: str, idempotency_key: str, digest: str) -> JobSet | None:
        """The set that an account was given for an idempotency key, with `replayed`; None if there is none.

        Raises:
            IdempotencyConflict: If the account has used the key for another digest.
        """
        check_name("idempotency_key", idempotency_key)
        with self._db.read() as connection:
            return self._find_replayed(connection, account_id, idempotency_key, digest)

    def find_left_over(self, account_id: str, client: str, digest: str, *, before: float) -> list[JobSet]:
        """An account's sets without an idempotency key for which no API process waits any more, oldest
        first, with `replayed`: they were accepted before `before` and had not ended by then, and no job has
        failed.

        Args:
            client, digest: As in `Submission`.
            before: Seconds since the epoch, as `now`: when the process that asks was started.
        """
        its_jobs = select(jobs.c.id).where(jobs.c.set_id == sets.c.id)
        late = or_(jobs.c.finished_at.is_(None), jobs.c.finished_at >= before)
        spoiled = or_(jobs.c.cancel_requested, jobs.c.state.in_(("failed", "cancelled", "dead")))
        query = (
            select(sets)
            .where(
                sets.c.account_id == account_id,
                sets.c.client == client,
                sets.c.digest == digest,
                sets.c.idempotency_key.is_(None),
                sets.c.created_at < before,
                its_jobs.where(late).exists(),
                ~its_jobs.where(spoiled).exists(),
            )
            .order_by(sets.c.seq)
        )
        with self._db.read() as connection:
            rows = connection.execute(query).all()
            return [self._set_of(connection, row, replayed=True) for row in rows]

    def _replayed(
        self, connection: Connection, principal: Principal, submission: Submission
    ) -> JobSet | None:
        if submission.idempotency_key is None:
            return None
        return self._find_replayed(
            connection, principal.account.id, submission.idempotency_key, submission.digest
        )

    def _find_replayed(
        self, connection: Connection, account_id: str, idempotency_key: str, digest: str
    ) -> JobSet | None:
        accepted, extended = (
            select(table.c.digest, its_id.label("set_id")).where(
                table.c.account_id == account_id, table.c.idempotency_key == idempotency_key
            )
            for table, its_id in ((sets, sets.c.id), (extensions, extensions.c.set_id))
        )
        known = connection.execute(union_all(accepted, extended)).first()
        if known is None:
            return None
        if known.digest != digest:
            raise _other_request(idempotency_key)
        row = connection.execute(select(sets).where(sets.c.id == known.set_id)).one()
        return self._set_of(connection, row, replayed=True)

    def _accept(self, tx: Connection, principal: Principal, submission: Submission) -> JobSet:
        account = principal.account
        now = self._db.time(tx)
        check_quotas(tx, account, submission.jobs, now)
        self._use_uploads(tx, account.id, submission.uploads, now)
        key_id = principal.key.id if principal.key else None
        set_row = {
            "id": new_id("set"),
            "account_id": account.id,
            "key_id": key_id,
            "kind": submission.kind,
            "lane": submission.lane,
            "client": submission.client,
            "request": dict(submission.request),
            "dial": None if submission.dial is None else submission.dial.model_dump(mode="json"),
            "relation": submission.relation,
            "warnings": list(submission.warnings),
            "idempotency_key": submission.idempotency_key,
            "digest": submission.digest,
            "external_id": submission.external_id,
            "webhook": dict(submission.webhook) if submission.webhook else None,
            "traceparent": submission.traceparent,
            "created_at": now,
        }
        parents = self._parents(tx, account.id, submission.parents)
        position = self._last_position(tx, account.id, submission.lane) + 1.0
        deadline = None if submission.deadline_seconds is None else now + submission.deadline_seconds
        tx.execute(_SET, set_row)
        if parents:
            of_set = {"set_id": set_row["id"]}
            its = [{**of_set, "position": place, "image_id": one} for place, one in enumerate(parents)]
            tx.execute(_PARENTS, its)
        made = self._queue(
            tx, set_row, submission.jobs, now, key_id=key_id, position=position, deadline=deadline
        )
        details = {"jobs": len(made), "client": submission.client, "key": key_id}
        self._audit(
            tx, now, account.id, "set.accepted", str(set_row["id"]), prompts=submission.prompts, **details
        )
        return JobSet(
            id=str(set_row["id"]),
            account_id=account.id,
            kind=submission.kind,
            lane=submission.lane,
            client=submission.client,
            request=submission.request,
            created_at=now,
            jobs=made,
            dial=submission.dial,
            external_id=submission.external_id,
            webhook=submission.webhook,
            warnings=submission.warnings,
            parents=parents,
            relation=submission.relation,
        )

    def _queue(
        self,
        tx: Connection,
        of_set: Mapping[str, Any],
        new: Sequence[NewJob],
        now: float,
        *,
        key_id: str | None,
        position: float,
        deadline: float | None,
        first: int = 0,
    ) -> tuple[Job, ...]:
        """Insert jobs of a set, which wait.

        Args:
            of_set: Row of the set.
            position: Place of the first of them among the jobs of its account.
            first: Index of the first of them in the set.
        """
        same = {name: of_set[name] for name in ("account_id", "kind", "lane")}
        rows: list[dict[str, Any]] = [
            {
                **same,
                "id": new_id("job"),
                "set_id": of_set["id"],
                "index": first + place,
                "key_id": key_id,
                "state": "queued",
                "params": dict(job.params),
                "model": job.model,
                "predicted_seconds": job.predicted_seconds,
                "safety": None if job.safety is None else dict(job.safety),
                "position": position + place,
                "notify": of_set["webhook"] is not None,
                "deadline_at": deadline,
                "created_at": now,
                "queued_at": now,
            }
            for place, job in enumerate(new)
        ]
        tx.execute(_JOB, rows)
        self._open_shares(tx, same["account_id"], same["lane"])
        self._events(tx, "queued", rows, now)
        return tuple(
            Job(
                **{name: row[name] for name in Job.__dataclass_fields__ if name in row},
                attempt=0,
                fence=0,
                cancel_requested=False,
            )
            for row in rows
        )

    def extend(
        self,
        principal: Principal,
        set_id: str,
        new: Sequence[NewJob],
        *,
        known: int,
        uploads: Sequence[str] = (),
        instead_of: Sequence[str] = (),
        idempotency_key: str | None = None,
        digest: str = "",
    ) -> Extended | None:
        """Add jobs to a set of the caller's own account, with the deadline that its others had.

        Args:
            known: Number of jobs that the set has, as far as the caller knows.
            uploads: Hashes of the account's uploads that the jobs need.
            instead_of: Jobs of the set to be cancelled. As many are added as have not ended, and they are
                next among those of the account.
            idempotency_key, digest: As in `Submission`.

        Returns:
            What was done; None, with nothing changed, if the set has another number of jobs by now. The set
            with `replayed`, if the account has used the idempotency key for the same digest.

        Raises:
            IdempotencyConflict: If the account has used the key for another digest.
            NotFound: If the set or a job does not exist for the account.
            Conflict: If the set would get too large.
            QuotaExceeded, InvalidRequest: As `accept`.
        """
        check_name("idempotency_key", idempotency_key)
        account = principal.account
        with self._db.write() as tx:
            row = tx.execute(select(sets).where(sets.c.id == set_id).with_for_update()).first()
            if row is None or row.account_id != account.id:
                raise NotFound(f"no set {set_id}")
            if idempotency_key is not None:
                earlier = self._find_replayed(tx, account.id, idempotency_key, digest)
                if earlier is not None:
                    return Extended(earlier)
            its = tx.execute(
                select(*[jobs.c.created_at, jobs.c.deadline_at]).where(jobs.c.set_id == set_id)
            ).all()
            if len(its) != known:
                return None
            if idempotency_key is not None:
                its_key = {"account_id": account.id, "idempotency_key": idempotency_key}
                entry = self._upsert(extensions).values(**its_key, digest=digest, set_id=set_id)
                if not tx.execute(entry.on_conflict_do_nothing()).rowcount:  # used for another set just now
                    raise _other_request(idempotency_key)
            if known + len(new) > MAX_SET_JOBS:
                raise Conflict(
                    f"{set_id} has {known} jobs and may have {MAX_SET_JOBS}",
                    hint="send the request again, as a set of its own",
                )
            now = self._db.time(tx)
            position = self._last_position(tx, account.id, row.lane) + 1.0
            cancelled: list[str] = []
            if instead_of:
                replaced = self._own(tx, account.id, instead_of, None)
                if outside := [one.id for one in replaced if one.set_id != set_id]:
                    raise NotFound(f"{set_id} has no job {outside[0]}")
                cancelled = self._cancel(tx, replaced, now, account.id)
                new = new[: len(cancelled)]
                waiting = (jobs.c.account_id == account.id, jobs.c.lane == row.lane, QUEUED)
                lowest = tx.execute(select(func.min(jobs.c.position)).where(*waiting)).scalar()
                position = position if lowest is None else lowest - len(new)
            if new:
                check_quotas(tx, account, new, now)
                self._use_uploads(tx, account.id, uploads, now)
                allowed = [one.deadline_at - one.created_at for one in its if one.deadline_at is not None]
                self._queue(
                    tx,
                    row._asdict(),
                    new,
                    now,
                    key_id=principal.key.id if principal.key else None,
                    position=position,
                    deadline=now + max(allowed) if allowed else None,
                    first=known,
                )
                self._audit(tx, now, account.id, "set.extended", set_id, jobs=len(new))
            return Extended(self._set_of(tx, row), tuple(cancelled))

    @staticmethod
    def _parents(tx: Connection, account_id: str, names: Sequence[str]) -> tuple[str, ...]:
        """Ids of the images that a request names as parents. Raises InvalidRequest."""
        found, unknown = find_images(tx, names, account_id)
        if unknown:
            raise InvalidRequest(
                f"parents has {unknown[0]!r}, which is not an image of this account", fields=("parents",)
            )
        return tuple(row.id for row in found)

    @staticmethod
    def _use_uploads(tx: Connection, account_id: str, hashes: Sequence[str], now: float) -> None:
        """Note that uploads are used, so that they are kept for as long again."""
        if not hashes:
            return
        its = (uploads.c.account_id == account_id, uploads.c.sha256.in_(hashes))
        if tx.execute(update(uploads).where(*its).values(used_at=now)).rowcount != len({*hashes}):
            raise InvalidRequest(
                "an input image of this request was deleted a moment ago", hint="upload it again"
            )

    @staticmethod
    def _last_position(tx: Connection, account_id: str, lane: str) -> float:
        row = tx.execute(_LAST_POSITIONS, {"of_lane": lane, "of_account": account_id}).one()
        return max(position or 0.0 for position in row)

    def _open_shares(self, tx: Connection, account_id: str, lane: str) -> None:
        """Make the rows of a lane and of an account in it, which stay."""
        rows = [{"lane": lane, "account_id": ""}, {"lane": lane, "account_id": account_id}]
        if tx.execute(_SHARES_THERE, {"of_lane": lane, "of_account": account_id}).scalar() != len(rows):
            tx.execute(self._upsert(shares).on_conflict_do_nothing(), rows)

    # -- one's own jobs --

    def cancel(
        self,
        *,
        account_id: str | None,
        job_ids: Sequence[str] = (),
        set_id: str | None = None,
        all_of: str | None = None,
        because: JobError | None = None,
    ) -> list[str]:
        """Cancel jobs: waiting ones end at once, running ones as soon as their worker has stopped them.

        Args:
            account_id: Whose jobs they must be; None: anybody's.
            job_ids: Ids of jobs.
            set_id: Id of a set: all its jobs.
            all_of: Id of an account: all its jobs.
            because: The jobs' error, where nobody has asked for this.

        Returns:
            Ids of the jobs that this affected: not those that had ended or were being cancelled already.

        Raises:
            NotFound: If one of them does not exist for the account.
        """
        with self._db.write() as tx:
            rows = self._own(tx, account_id, job_ids, set_id)
            if all_of is not None:
                still = select(*CONCERNED).where(jobs.c.account_id == all_of, or_(QUEUED, PAUSED, RUNNING))
                rows += tx.execute(still.order_by(jobs.c.seq).with_for_update()).all()
            actor = actor_of(account_id) if because is None else "ledger"
            return self._cancel(tx, rows, self._db.time(tx), actor, because)

    def _cancel(
        self,
        tx: Connection,
        rows: Sequence[Row[Any]],
        now: float,
        actor: str,
        because: JobError | None = None,
    ) -> list[str]:
        """Cancel jobs whose rows are locked, and return the ids of those that this affected."""
        waiting = [row for row in rows if row.state in ("queued", "paused")]
        running = [row for row in rows if row.state == "running" and not row.cancel_requested]
        self._stop_waiting(tx, waiting, now, "cancelled", because, actor=actor)
        if running:
            ids = [row.id for row in running]
            values = {"cancel_requested": True, "error": error_value(because)}
            tx.execute(update(jobs).where(jobs.c.id.in_(ids), RUNNING).values(values))
            for row in running:
                self._audit(tx, now, actor, "job.cancel_requested", row.id)
        return [row.id for row in (*waiting, *running)]

    def pause(
        self, *, account_id: str | None, job_ids: Sequence[str] = (), set_id: str | None = None
    ) -> list[str]:
        """Have waiting jobs wait until they are resumed. Arguments as `cancel`; returns the ids affected."""
        return self._switch(account_id, job_ids, set_id, "queued", "paused")

    def resume(
        self, *, account_id: str | None, job_ids: Sequence[str] = (), set_id: str | None = None
    ) -> list[str]:
        """Let paused jobs wait for a worker again, at their old place. Returns the ids affected."""
        return self._switch(account_id, job_ids, set_id, "paused", "queued")

    def _switch(
        self, account_id: str | None, job_ids: Sequence[str], set_id: str | None, old: str, new: str
    ) -> list[str]:
        with self._db.write() as tx:
            rows = [row for row in self._own(tx, account_id, job_ids, set_id) if row.state == old]
            now = self._db.time(tx)
            ids = [row.id for row in rows]
            if rows:
                tx.execute(update(jobs).where(jobs.c.id.in_(ids)).values(state=new, queued_at=now))
                change: Change = "paused" if new == "paused" else "queued"
                self._events(tx, change, [row._mapping for row in rows], now)
                for one in ids:
                    self._audit(tx, now, actor_of(account_id), f"job.{change}", one)
            return ids

    def move(self, job_id: str, *, before: str | None, account_id: str | None = None) -> None:
        """Move a waiting job among its account's jobs in its lane.

        Args:
            before: The waiting job that it is to precede; None: it goes to the end.
            account_id: Whose job it must be; None: anybody's.

        Raises:
            NotFound: If a job does not exist for the account.
            Conflict: If one does not wait, or they are of two accounts or lanes.
        """
        with self._db.write() as tx:
            (job,) = self._own(tx, account_id, [job_id], None)
            now = self._db.time(tx)
            if job.state not in ("queued", "paused"):
                raise Conflict(f"{job_id} is {job.state}; only a job that waits can be moved")
            if before is None:
                position = self._last_position(tx, job.account_id, job.lane) + 1.0
            else:
                position = self._gap(tx, job, before)
            tx.execute(update(jobs).where(jobs.c.id == job_id).values(position=position))
            self._events(tx, "moved", [job._mapping], now, {"before": before})
            self._audit(tx, now, actor_of(account_id), "job.moved", job_id, before=before)

    def _gap(self, tx: Connection, job: Row[Any], before: str) -> float:
        """A position just before another job's."""
        other = tx.execute(select(*CONCERNED, jobs.c.position).where(jobs.c.id == before)).first()
        if other is None or other.account_id != job.account_id:
            raise NotFound(f"no job {before}", fields=("before",))
        if other.state not in ("queued", "paused") or other.lane != job.lane or other.id == job.id:
            raise Conflict(
                f"{job.id} cannot be moved before {before}, which is {other.state} in the lane {other.lane}",
                hint="name another waiting job of the same lane",
                fields=("before",),
            )
        mine = (jobs.c.account_id == job.account_id, jobs.c.lane == job.lane, or_(QUEUED, PAUSED))
        ahead = select(func.max(jobs.c.position)).where(
            *mine, jobs.c.position < other.position, jobs.c.id != job.id
        )
        lower = tx.execute(ahead).scalar()
        if lower is None:
            return float(other.position - 1.0)
        middle = (lower + other.position) / 2
        if not lower < middle < other.position:  # the doubles between them are used up: make room
            later = update(jobs).where(*mine, jobs.c.position >= other.position)
            tx.execute(later.values(position=jobs.c.position + 1.0))
            middle = other.position + 0.5
        return float(middle)

    def retry(self, *, account_id: str | None, job_id: str) -> Job:
        """Queue a job again that failed, is dead or was cancelled: with all its attempts, without a deadline.

        Args:
            account_id: Whose job it must be, within the quotas; None: anybody's, whatever the quotas.

        Raises:
            NotFound: If it does not exist for the account.
            Conflict: If it is done or has not ended.
            QuotaExceeded: If the account has used up a quota.
        """
        with self._db.write() as tx:
            (row,) = self._own(tx, account_id, [job_id], None)
            if row.state not in FINAL_STATES - {"done"}:
                raise Conflict(
                    f"{job_id} is {row.state}; only one that failed, is dead or was cancelled can be retried"
                )
            now = self._db.time(tx)
            if account_id is not None:
                owner = tx.execute(select(accounts).where(accounts.c.id == account_id)).one()
                check_quotas(tx, account_of(owner), [NewJob({}, row.model, row.predicted_seconds)], now)
            tx.execute(
                update(jobs)
                .where(jobs.c.id == job_id)
                .values(
                    state="queued",
                    attempt=0,
                    cancel_requested=False,
                    owner=null(),
                    error=None,
                    not_before=null(),
                    deadline_at=null(),
                    started_at=null(),
                    finished_at=null(),
                    passed_over=0,
                    passed_since=null(),
                    queued_at=now,
                    position=self._last_position(tx, row.account_id, row.lane) + 1.0,
                )
            )
            self._open_shares(tx, row.account_id, row.lane)
            self._events(tx, "queued", [row._mapping], now, {"retried": True})
            self._audit(tx, now, actor_of(account_id), "job.retried", job_id)
            return self._job(tx, job_id, None)

    @staticmethod
    def _own(
        tx: Connection, account_id: str | None, job_ids: Sequence[str], set_id: str | None
    ) -> list[Row[Any]]:
        """The jobs of these ids and this set, locked, in the order in which they were accepted."""
        rows: list[Row[Any]] = []
        order = select(*CONCERNED).order_by(jobs.c.seq).with_for_update()
        if set_id is not None:
            found = tx.execute(order.where(jobs.c.set_id == set_id)).all()
            if not found or (account_id is not None and found[0].account_id != account_id):
                raise NotFound(f"no set {set_id}")
            rows += found
        if job_ids:
            found = tx.execute(order.where(jobs.c.id.in_(job_ids))).all()
            visible = {row.id for row in found if account_id in (None, row.account_id)}
            missing = [one for one in job_ids if one not in visible]
            if missing:
                raise NotFound(f"no job {missing[0]}")
            there = {row.id for row in rows}
            rows += [row for row in found if row.id not in there]
        return rows


def _other_request(idempotency_key: str) -> IdempotencyConflict:
    return IdempotencyConflict(
        f"the idempotency key {idempotency_key!r} was used for another request",
        hint="use a new key for each request, and the same one only to send it again",
    )
