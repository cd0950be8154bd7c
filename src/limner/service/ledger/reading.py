"""What the ledger tells: sets, jobs and events. Images are in `library`.

Methods that take an `account_id` see that account's objects alone: another account's raises `NotFound`, as if
it did not exist. With None they see everybody's.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, func, select, update

from limner.errors import NotFound
from limner.service.events import LedgerEvent
from limner.service.jobs import Attempt, Job, JobSet, JobState, Lane

from .library import parents_of_sets
from .rows import IMAGE_COLUMNS, JOB_COLUMNS, attempt_of, event_of, job_of, set_of
from .schema import accounts, attempts, counters, events, images, jobs, reviews, sets, uploads, usage
from .states import QUEUED, RUNNING
from .writing import Writing, parts

_LOCKED_OUT = select(accounts.c.id).where(accounts.c.disabled)
_RATE_SECONDS = 300.0


@dataclass(frozen=True)
class Load:
    """How much there is to do.

    Attributes:
        waiting: Number of waiting jobs in each lane.
        waiting_seconds: Predicted device seconds of the waiting jobs in each lane.
        running: Number of running jobs.
        oldest_seconds: Seconds that the oldest waiting job of each lane has waited.
        work_per_second: Predicted device seconds of the jobs that were done in the last minutes over the
            seconds in which any was running; None if none was done. A waiting time is `waiting_seconds` over
            this.
    """

    waiting: dict[Lane, int] = field(default_factory=dict)
    waiting_seconds: dict[Lane, float] = field(default_factory=dict)
    running: int = 0
    oldest_seconds: dict[Lane, float] = field(default_factory=dict)
    work_per_second: float | None = None

    @property
    def all_waiting(self) -> int:
        """Number of waiting jobs."""
        return sum(self.waiting.values())

    @property
    def all_waiting_seconds(self) -> float:
        """Predicted device seconds of all waiting jobs."""
        return sum(self.waiting_seconds.values())


JOBS = select(*JOB_COLUMNS, *IMAGE_COLUMNS).outerjoin(images, images.c.job_id == jobs.c.id)
"""Jobs with their images."""

_JOB = JOBS.where(jobs.c.id == bindparam("of_job"))
_JOBS_OF_SET = JOBS.where(jobs.c.set_id == bindparam("of_set")).order_by(jobs.c.index)
_SET = select(sets).where(sets.c.id == bindparam("of_set"))


def _events_query(sqlite: bool, one_account: bool) -> Select[Any]:
    number = events.c.id if sqlite else events.c.seq
    query = select(events, number.label("number")).where(number > bindparam("after")).order_by(number)
    if one_account:
        query = query.where(events.c.account_id == bindparam("of_account"))
    return query.limit(bindparam("count"))


_EVENTS = {(one, two): _events_query(one, two) for one in (True, False) for two in (True, False)}


class Reading(Writing):
    """Queries."""

    # -- jobs and sets --

    def get_set(self, set_id: str, *, account_id: str | None = None) -> JobSet:
        """A set with its jobs. Raises NotFound."""
        with self._db.read() as connection:
            row = connection.execute(_SET, {"of_set": set_id}).first()
            if row is None or account_id not in (None, row.account_id):
                raise NotFound(f"no set {set_id}")
            return self._set_of(connection, row)

    def get_job(self, job_id: str, *, account_id: str | None = None) -> Job:
        """A job, with its image if it is done. Raises NotFound."""
        with self._db.read() as connection:
            return self._job(connection, job_id, account_id)

    def find_external(self, account_id: str, external_id: str) -> JobSet | None:
        """An account's newest set of an external id; None without one."""
        with self._db.read() as connection:
            row = connection.execute(
                select(sets)
                .where(sets.c.account_id == account_id, sets.c.external_id == external_id)
                .order_by(sets.c.seq.desc())
                .limit(1)
            ).first()
            return None if row is None else self._set_of(connection, row)

    def list_jobs(
        self,
        account_id: str | None,
        *,
        states: Collection[JobState] = (),
        set_id: str | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[Job]:
        """Jobs, newest first.

        Args:
            states: States that they may have; empty: any.
            set_id: Their set.
            limit: Number of jobs at most.
            before: Id of a job: only older ones. With the last one's id this is the next page.
        """
        query = JOBS.order_by(jobs.c.seq.desc()).limit(limit)
        if account_id is not None:
            query = query.where(jobs.c.account_id == account_id)
        if states:
            query = query.where(jobs.c.state.in_(sorted(states)))
        if set_id is not None:
            query = query.where(jobs.c.set_id == set_id)
        with self._db.read() as connection:
            if before is not None:
                query = query.where(jobs.c.seq < _number(connection, jobs, before, "job", account_id))
            return [job_of(row._mapping) for row in connection.execute(query)]

    def list_sets(
        self, account_id: str | None, *, limit: int = 50, before: str | None = None
    ) -> list[JobSet]:
        """Sets with their jobs, newest first. Arguments as `list_jobs`."""
        query = select(sets).order_by(sets.c.seq.desc()).limit(limit)
        if account_id is not None:
            query = query.where(sets.c.account_id == account_id)
        with self._db.read() as connection:
            if before is not None:
                query = query.where(sets.c.seq < _number(connection, sets, before, "set", account_id))
            return [self._set_of(connection, row) for row in connection.execute(query).all()]

    def traceparent(self, set_id: str) -> str | None:
        """The trace context that a set was submitted in; None without one."""
        with self._db.read() as connection:
            return connection.execute(select(sets.c.traceparent).where(sets.c.id == set_id)).scalar()

    def attempts(self, job_id: str, *, account_id: str | None = None) -> list[Attempt]:
        """The attempts at a job, oldest first."""
        with self._db.read() as connection:
            self._job(connection, job_id, account_id)
            its = select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.fence)
            return [attempt_of(row) for row in connection.execute(its)]

    @staticmethod
    def _job(connection: Connection, job_id: str, account_id: str | None) -> Job:
        row = connection.execute(_JOB, {"of_job": job_id}).first()
        if row is None or account_id not in (None, row.account_id):
            raise NotFound(f"no job {job_id}")
        return job_of(row._mapping)

    @staticmethod
    def _set_of(connection: Connection, row: Row[Any], *, replayed: bool = False) -> JobSet:
        rows = connection.execute(_JOBS_OF_SET, {"of_set": row.id})
        its = tuple(job_of(one._mapping) for one in rows)
        parents = parents_of_sets(connection, [row.id] if row.relation is not None else [])
        return set_of(row, its, parents.get(row.id, ()), replayed=replayed)

    # -- load --

    def load(self) -> Load:
        """How much waits and runs, and how fast work was done in the last minutes.

        Jobs of locked accounts do not count: they are not claimed.
        """
        with self._db.read() as connection:
            now = self._db.time(connection)
            lanes = connection.execute(
                select(
                    jobs.c.lane,
                    func.count(),
                    func.sum(jobs.c.predicted_seconds),
                    func.min(jobs.c.queued_at),
                )
                .where(QUEUED, jobs.c.account_id.not_in(_LOCKED_OUT))
                .group_by(jobs.c.lane)
            ).all()
            running = connection.execute(select(func.count()).select_from(jobs).where(RUNNING)).scalar_one()
            rate = self._rate(connection, now)
        return Load(
            waiting={lane: count for lane, count, _, _ in lanes},
            waiting_seconds={lane: float(seconds) for lane, _, seconds, _ in lanes},
            running=running,
            oldest_seconds={lane: max(0.0, now - since) for lane, _, _, since in lanes},
            work_per_second=rate,
        )

    _rated: tuple[float, float | None] = (float("-inf"), None)

    def _rate(self, connection: Connection, now: float) -> float | None:
        """Predicted seconds done per busy second, measured at most once a second."""
        measured, rate = self._rated
        if time.monotonic() - measured < 1.0:
            return rate
        recent = connection.execute(
            select(usage.c.started_at, usage.c.at, usage.c.predicted_seconds, usage.c.images)
            .where(usage.c.at > now - _RATE_SECONDS)
            .order_by(usage.c.at.desc())
            .limit(1000)
        ).all()
        work = sum(row.predicted_seconds for row in recent if row.images)
        busy, until = 0.0, float("inf")
        for row in recent:  # the newest first: the union of the times in which they ran
            end = min(row.at, until)
            if row.started_at < end:
                busy += end - row.started_at
                until = row.started_at
        rate = work / busy if work and busy > 0 else None
        self._rated = (time.monotonic(), rate)
        return rate

    # -- events --

    def events(self, account_id: str | None, *, after: int, limit: int = 500) -> list[LedgerEvent]:
        """Events with numbers above `after`, in order. No event with a lower number ever appears later."""
        self._number_events()
        query = _EVENTS[self._db.is_sqlite, account_id is not None]
        values = {"after": after, "count": limit} | ({} if account_id is None else {"of_account": account_id})
        with self._db.read() as connection:
            return [event_of(row) for row in connection.execute(query, values)]

    def last_event(self) -> int:
        """Number of the newest event; 0 before the first."""
        self._number_events()
        number = func.max(events.c.id) if self._db.is_sqlite else func.max(events.c.seq)
        with self._db.read() as connection:
            return int(connection.execute(select(number)).scalar() or 0)

    def _number_events(self) -> None:
        """PostgreSQL: number the events that have become visible since the last time.

        Numbers given by the inserting transactions would not do: a later one can commit first, and who has
        read its events would never see those of the earlier one.
        """
        if self._db.is_sqlite:
            return  # one transaction writes at a time
        with self._db.read() as connection:
            if connection.execute(select(events.c.id).where(events.c.seq.is_(None)).limit(1)).first() is None:
                return
        with self._db.write() as tx:
            counter = select(counters.c.value).where(counters.c.name == "events")
            last = tx.execute(counter.with_for_update()).scalar_one()
            rank = func.row_number().over(order_by=events.c.id)
            new = select(events.c.id, (rank + last).label("number")).where(events.c.seq.is_(None)).subquery()
            done = tx.execute(update(events).where(events.c.id == new.c.id).values(seq=new.c.number))
            tx.execute(update(counters).where(counters.c.name == "events").values(value=last + done.rowcount))

    # -- files --

    def known_keys(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys of the image store that are an image's, delivered or withheld. The others are of
        stale attempts."""
        known: set[str] = set()
        with self._db.read() as connection:
            for part in parts(keys):
                for key in (images.c.key, reviews.c.withheld_key):
                    known |= set(connection.execute(select(key).where(key.in_(part))).scalars())
        return known

    def known_uploads(self, hashes: Sequence[str]) -> set[str]:
        """Those of the hashes that an account has uploaded."""
        known: set[str] = set()
        with self._db.read() as connection:
            for part in parts(hashes):
                its = uploads.c.sha256.in_(part)
                known |= set(connection.execute(select(uploads.c.sha256).where(its)).scalars())
        return known


def _number(connection: Connection, table: Any, one: str, what: str, account_id: str | None) -> int:
    """Number of an object in the order of creation."""
    row = connection.execute(select(table.c.seq, table.c.account_id).where(table.c.id == one)).first()
    if row is None or account_id not in (None, row.account_id):
        raise NotFound(f"no {what} {one}", fields=("before",))
    return int(row.seq)
