"""How attempts and jobs end: renewal of leases, results, failures, cancellation and the reconciler."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import (
    Connection,
    Row,
    bindparam,
    case,
    exists,
    func,
    insert,
    null,
    select,
    tuple_,
    update,
)

from limner.service.events import Change
from limner.service.jobs import (
    MAX_ATTEMPTS,
    Completion,
    JobError,
    JobState,
    NewReview,
    StoredImage,
)

from . import postgres
from .reviewing import Reviewing
from .rows import STORED_FIELDS, error_value, new_id
from .schema import attempts, deliveries, images, jobs, sets, usage
from .states import QUEUED, RUNNING, WAITING

RETRY_SECONDS = (0.5, 3.0)
"""Seconds that a job waits before its second and its third attempt."""

WORKER_LOST = JobError(
    "worker_lost",
    "the worker that ran the job stopped answering",
    hint="try again; if it happens again, the request may be too large for the machine",
)
TOO_LATE = JobError("deadline_exceeded", "the job was not done by its deadline", hint="allow more time")
CLIENT_GONE = JobError(
    "client_disconnected",
    "the client that waited for the image hung up, or the service stopped",
    hint="send the request again",
)

CONCERNED = [  # what the changes below need of a job
    *(jobs.c[name] for name in ("id", "set_id", "index", "account_id", "key_id", "kind", "model", "notify")),
    *(jobs.c[name] for name in ("predicted_seconds", "attempt", "fence", "owner", "started_at")),
    *(jobs.c[name] for name in ("cancel_requested", "deadline_at", "state", "lane")),
]
_USED = ("fence", "account_id", "key_id", "kind", "model", "predicted_seconds", "started_at")
_ATTEMPT_ENDS = (
    update(attempts)
    .where(attempts.c.job_id == bindparam("of_job"), attempts.c.fence == bindparam("of_fence"))
    .values(ended_at=bindparam("now"), outcome=bindparam("how"), error=bindparam("why"))
)
_HOLDS = (RUNNING, jobs.c.id == bindparam("of_job"), jobs.c.fence == bindparam("of_fence"))
_why: Any = bindparam("why", type_=jobs.c.error.type)
_stopped = bindparam("new_state", type_=jobs.c.state.type) == "cancelled"
_END = (
    update(jobs)
    .where(*_HOLDS)
    .values(
        state=bindparam("new_state"),
        lease_until=null(),
        finished_at=bindparam("now"),
        # Why a job was to be stopped counts, whatever its last attempt said.
        error=case((_stopped, func.coalesce(jobs.c.error, _why)), else_=_why),
        device_seconds=func.coalesce(jobs.c.device_seconds, 0.0) + bindparam("seconds"),
        cost=func.coalesce(jobs.c.cost, 0.0) + bindparam("price"),
    )
    .returning(*CONCERNED)
)
_RENEW = (
    update(jobs)
    .where(
        RUNNING,
        jobs.c.owner == bindparam("worker"),
        tuple_(jobs.c.id, jobs.c.fence).in_(bindparam("held", expanding=True)),
    )
    .values(lease_until=bindparam("until"), lease_seconds=bindparam("lease"))
    .returning(jobs.c.id, jobs.c.cancel_requested)
)
_HELD = select(*CONCERNED).where(*_HOLDS).with_for_update()
_IMAGE, _USAGE = insert(images), insert(usage)
_counted = exists().where(usage.c.job_id == attempts.c.job_id, usage.c.fence == attempts.c.fence)
_OF_LOST = [
    *(jobs.c[name] for name in ("id", "account_id", "key_id", "kind", "model", "predicted_seconds")),
    attempts.c.fence,
    attempts.c.started_at,
]
_LOST = (
    select(*_OF_LOST)
    .join(attempts, attempts.c.job_id == jobs.c.id)
    .where(jobs.c.id == bindparam("of_job"), attempts.c.fence == bindparam("of_fence"))
    .where(attempts.c.outcome == "lost", ~_counted)
    .with_for_update(of=jobs)
)

_now: Any = bindparam("now")
_EXPIRED = select(*CONCERNED).where(RUNNING, jobs.c.lease_until < _now)
_LATE = select(*CONCERNED).where(WAITING, jobs.c.deadline_at < _now)
_misdated = (RUNNING, jobs.c.lease_until > _now + jobs.c.lease_seconds + 1.0)
_CUT_LEASES = update(jobs).where(*_misdated).values(lease_until=_now + jobs.c.lease_seconds)
_misdelayed = (QUEUED, jobs.c.not_before > _now + max(RETRY_SECONDS) + 1.0)
_CUT_DELAYS = update(jobs).where(*_misdelayed).values(not_before=_now + max(RETRY_SECONDS))
_NEGLECTED = (_EXPIRED, _LATE, *(select(*CONCERNED).where(*which) for which in (_misdated, _misdelayed)))

_BATCH = 200
"""Number of jobs that a reconciliation takes up in one transaction."""


def hashes(image: StoredImage) -> dict[str, Any]:
    """What the audit log keeps of an image besides, to know its files again."""
    found = {"pixels_sha256": image.pixels_sha256}
    more = {"watermark": image.watermark, "delivered_sha256": image.delivered_sha256, "safety": image.safety}
    return found | {name: value for name, value in more.items() if value is not None}


@dataclass(frozen=True)
class Renewal:
    """What a worker learns when it renews its leases.

    Attributes:
        lost: Ids of jobs that are no longer its own: it must drop them.
        cancelled: Ids of jobs that it is to stop.
    """

    lost: frozenset[str] = frozenset()
    cancelled: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Reconciled:
    """Ids of the jobs that a reconciliation took up.

    Attributes:
        requeued: Their worker was lost; they wait again.
        dead: Their worker was lost, and they have used up their attempts.
        late: They were not done by their deadline.
        cancelled: They were to be stopped by a worker that was lost.
    """

    requeued: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.requeued or self.dead or self.late or self.cancelled)


class Ending(Reviewing):
    """Reports of workers on the jobs that they have claimed, and recovery of jobs without reports."""

    def renew(self, worker: str, claims: Mapping[str, int], lease_seconds: float) -> Renewal:
        """Extend the leases of a worker's jobs.

        Args:
            claims: Fence of each job, by the job's id.

        Returns:
            Which of them are no longer its own, and which it is to stop.
        """
        if not claims:
            return Renewal()
        with self._db.write() as tx:
            values = {"worker": worker, "lease": lease_seconds, "held": sorted(claims.items())}
            rows = tx.execute(_RENEW, values | {"until": self._db.time(tx) + lease_seconds}).all()
        return Renewal(
            lost=frozenset(claims.keys() - {row.id for row in rows}),
            cancelled=frozenset(row.id for row in rows if row.cancel_requested),
        )

    def finish(self, job_id: str, fence: int, completion: Completion) -> bool:
        """End a job as done: its result, usage, review, audit row and event, in one transaction.

        Returns:
            False, with nothing changed, if the job is no longer running under this fence: the caller's image
            is of a stale attempt and may be deleted.
        """
        image, seconds = completion.image, completion.device_seconds
        cost = seconds * completion.price
        data: dict[str, Any] = {"device_seconds": seconds, "cost": cost}
        if image is not None:
            data |= {"image": image.id, "width": image.width, "height": image.height}
            data |= {"bytes": image.bytes, "sha256": image.sha256}
            alone = not self._db.is_sqlite and completion.review is None
            if alone and self._finish_in_postgres(job_id, fence, image, data):
                return True
        with self._db.write() as tx:
            now = self._db.time(tx)
            row = self._end(tx, job_id, fence, "done", now, seconds, cost)
            if row is None:
                return False
            if image is not None:
                values = {name: getattr(image, name) for name in STORED_FIELDS}
                owned = {"job_id": job_id, "account_id": row.account_id, "created_at": now}
                tx.execute(_IMAGE, values | owned)
            self._use(tx, row, now, seconds, cost, pictures=int(image is not None))
            if completion.review is not None:
                self._add_review(tx, row, completion.review, image, now)
            self._close(tx, row, now, "done", data, recorded={} if image is None else hashes(image))
        return True

    def _finish_in_postgres(
        self, job_id: str, fence: int, image: StoredImage, data: Mapping[str, Any]
    ) -> bool:
        """The same in one statement. False if the job is stale, or has a webhook and takes more than that."""
        values = {f"image_{name}": getattr(image, name) for name in STORED_FIELDS}
        used = {"seconds": data["device_seconds"], "price": data["cost"]}
        details = {"fence": fence, **data, **hashes(image)}
        with self._db.driver() as cursor:
            ended = postgres.FINISH.run(
                cursor, of_job=job_id, of_fence=fence, data=data, details=details, **used, **values
            )
        return bool(ended)

    def fail(
        self,
        job_id: str,
        fence: int,
        error: JobError,
        *,
        retryable: bool,
        device_seconds: float = 0.0,
        price: float = 0.0,
        review: NewReview | None = None,
    ) -> JobState | None:
        """End an attempt that failed.

        Args:
            review: What a person is to look at, where the image was blocked.

        Returns:
            The state of the job now: "queued" if it will be tried again, "dead" if it has used up its
            attempts, "failed" if trying again cannot help, "cancelled" if it was to be stopped anyway. None,
            with nothing changed, if the job is no longer running under this fence.
        """
        with self._db.write() as tx:
            row = self._held(tx, job_id, fence)
            if row is None:
                return None
            now = self._db.time(tx)
            cost = device_seconds * price
            if review is not None:
                self._add_review(tx, row, review, review.withheld, now)
            return self._failed(tx, row, now, error, "failed", retryable, device_seconds, cost)

    def cancelled(self, job_id: str, fence: int, *, device_seconds: float = 0.0, price: float = 0.0) -> bool:
        """End a job that its worker has stopped. False if it is no longer running under this fence."""
        with self._db.write() as tx:
            now = self._db.time(tx)
            cost = device_seconds * price
            row = self._end(tx, job_id, fence, "cancelled", now, device_seconds, cost)
            if row is None:
                return False
            self._use(tx, row, now, device_seconds, cost)
            self._close(tx, row, now, "cancelled", {"device_seconds": device_seconds})
        return True

    def release(self, job_id: str, fence: int, *, device_seconds: float = 0.0, price: float = 0.0) -> bool:
        """Give a job back to the queue, which does not count as an attempt. False if it is not held any more.

        What it has used so far counts. A job that was to be stopped is cancelled instead.
        """
        with self._db.write() as tx:
            row = self._held(tx, job_id, fence)
            if row is None:
                return False
            now, cost = self._db.time(tx), device_seconds * price
            self._use(tx, row, now, device_seconds, cost)
            if row.cancel_requested:
                self._end(tx, job_id, fence, "cancelled", now, device_seconds, cost, outcome="released")
                self._close(tx, row, now, "cancelled", {})
            else:
                attempt = row.attempt - 1
                self._requeue(
                    tx, row, now, "released", None, attempt=attempt, seconds=device_seconds, cost=cost
                )
        return True

    def count_lost(self, job_id: str, fence: int, *, device_seconds: float, price: float = 0.0) -> bool:
        """Count as usage what a lost attempt used, as its worker tells after all. The job stays as it is.

        Returns:
            False, with nothing changed, if the attempt was not lost or has been counted.
        """
        with self._db.write() as tx:
            row = tx.execute(_LOST, {"of_job": job_id, "of_fence": fence}).first()
            if row is None:
                return False
            self._use(tx, row, self._db.time(tx), device_seconds, device_seconds * price)
        return True

    def reconcile(self) -> Reconciled:
        """Handle expired leases, deadlines, and cancellations of lost workers.

        Any number of processes may call this at once. A lease that ends later than it is long, because the
        clock was set back, is cut to its length, and so is the wait before another attempt.
        """
        with self._db.read() as connection:
            now = self._db.time(connection)
            if not any(connection.execute(query.limit(1), {"now": now}).first() for query in _NEGLECTED):
                return Reconciled()
        result: dict[str, list[str]] = {"requeued": [], "dead": [], "late": [], "cancelled": []}
        full = True
        while full:
            with self._db.write() as tx:
                now = self._db.time(tx)
                tx.execute(_CUT_LEASES, {"now": now})
                tx.execute(_CUT_DELAYS, {"now": now})
                full = False
                for query in (_EXPIRED, _LATE):
                    locked = query.order_by(jobs.c.seq).limit(_BATCH).with_for_update(skip_locked=True)
                    rows = tx.execute(locked, {"now": now}).all()
                    full = full or len(rows) == _BATCH
                    for row in rows:
                        result[self._take_up(tx, row, now)].append(row.id)
        return Reconciled(**{name: tuple(ids) for name, ids in result.items()})

    def _take_up(self, tx: Connection, row: Row[Any], now: float) -> str:
        """End or requeue a job that is late or whose worker is lost. What it was counts as."""
        if row.state != "running":
            self._stop_waiting(tx, [row], now, "failed", TOO_LATE)
            return "late"
        late = row.deadline_at is not None and row.deadline_at < now
        state = self._failed(tx, row, now, TOO_LATE if late else WORKER_LOST, "lost", retryable=not late)
        if late and state == "failed":
            return "late"
        return {"queued": "requeued", "dead": "dead", "cancelled": "cancelled"}[state]

    # -- parts of the above --

    @staticmethod
    def _held(tx: Connection, job_id: str, fence: int) -> Row[Any] | None:
        """The job if it runs under a fence, locked until the end of the transaction."""
        return tx.execute(_HELD, {"of_job": job_id, "of_fence": fence}).first()

    def _end(
        self,
        tx: Connection,
        job_id: str,
        fence: int,
        state: JobState,
        now: float,
        device_seconds: float = 0.0,
        cost: float = 0.0,
        error: JobError | None = None,
        outcome: str | None = None,
    ) -> Row[Any] | None:
        """Compare-and-set on the fence: the job in a final state, and its attempt ended."""
        values = {"of_job": job_id, "of_fence": fence, "new_state": state, "now": now}
        values |= {"seconds": device_seconds, "price": cost, "why": error_value(error)}
        row = tx.execute(_END, values).first()
        if row is not None:
            self._end_attempt(tx, job_id, fence, now, outcome or state, error)
        return row

    @staticmethod
    def _end_attempt(
        tx: Connection, job_id: str, fence: int, now: float, outcome: str, error: JobError | None
    ) -> None:
        values = {"of_job": job_id, "of_fence": fence, "now": now, "how": outcome, "why": error_value(error)}
        tx.execute(_ATTEMPT_ENDS, values)

    def _failed(
        self,
        tx: Connection,
        row: Row[Any],
        now: float,
        error: JobError,
        outcome: str,
        retryable: bool,
        device_seconds: float = 0.0,
        cost: float = 0.0,
    ) -> JobState:
        """Requeue a running job whose row is locked, or end it."""
        self._use(tx, row, now, device_seconds, cost)
        data = {"error": error_value(error), "attempt": row.attempt}
        if retryable and not row.cancel_requested and row.attempt < MAX_ATTEMPTS:
            later = now + RETRY_SECONDS[min(row.attempt, len(RETRY_SECONDS)) - 1]
            self._requeue(tx, row, now, outcome, error, not_before=later, seconds=device_seconds, cost=cost)
            return "queued"
        state: JobState = "cancelled" if row.cancel_requested else "dead" if retryable else "failed"
        self._end(tx, row.id, row.fence, state, now, device_seconds, cost, error, outcome)
        self._close(tx, row, now, cast(Change, state), data)
        return state

    def _requeue(
        self,
        tx: Connection,
        row: Row[Any],
        now: float,
        outcome: str,
        error: JobError | None,
        *,
        attempt: int | None = None,
        not_before: float | None = None,
        seconds: float = 0.0,
        cost: float = 0.0,
    ) -> None:
        """Put a running job whose row is locked back into the queue, at its old place."""
        tx.execute(
            update(jobs)
            .where(jobs.c.id == row.id)
            .values(
                state="queued",
                owner=null(),
                lease_until=null(),
                not_before=not_before,
                queued_at=now,
                attempt=row.attempt if attempt is None else attempt,
                device_seconds=func.coalesce(jobs.c.device_seconds, 0.0) + seconds,
                cost=func.coalesce(jobs.c.cost, 0.0) + cost,
            )
        )
        self._end_attempt(tx, row.id, row.fence, now, outcome, error)
        data = {"reason": outcome, "attempt": row.attempt}
        self._close(tx, row, now, "requeued", data | ({"error": error_value(error)} if error else {}))

    def _stop_waiting(
        self,
        tx: Connection,
        rows: list[Row[Any]],
        now: float,
        state: JobState,
        error: JobError | None = None,
        actor: str = "ledger",
    ) -> None:
        """End jobs that wait or are paused, whose rows are locked."""
        if not rows:
            return
        tx.execute(
            update(jobs)
            .where(jobs.c.id.in_([row.id for row in rows]))
            .values(state=state, finished_at=now, error=error_value(error), not_before=null())
        )
        data = {"error": error_value(error)} if error else {}
        for row in rows:
            self._close(tx, row, now, cast(Change, state), data, actor=actor)

    @staticmethod
    def _use(
        tx: Connection, row: Row[Any], now: float, device_seconds: float, cost: float, *, pictures: int = 0
    ) -> None:
        """Count what an attempt used; its key is the fence, so that it cannot be counted twice."""
        if not device_seconds and not pictures:
            return
        same = {name: row._mapping[name] for name in _USED}
        counts = {
            "job_id": row.id,
            "images": pictures,
            "device_seconds": device_seconds,
            "cost": cost,
            "at": now,
        }
        tx.execute(_USAGE, same | counts)

    def _close(
        self,
        tx: Connection,
        row: Row[Any],
        now: float,
        change: Change,
        data: Mapping[str, Any],
        *,
        actor: str | None = None,
        recorded: Mapping[str, Any] | None = None,
    ) -> None:
        """Audit row and event of a change, and the webhook if it was the last of the set.

        Args:
            data: More about it, for both.
            recorded: More about it, for the audit log alone.
        """
        # The audit log outlasts the job: no message stays in it, which may repeat a part of the request.
        error = data.get("error")
        entry = {**data, **(recorded or {}), **({"error": error["code"]} if error else {})}
        self._audit(
            tx, now, actor or row.owner or "ledger", f"job.{change}", row.id, fence=row.fence, **entry
        )
        self._events(tx, change, [row._mapping], now, data)
        if row.notify and change != "requeued":
            self._notify(tx, row.set_id, now)

    @staticmethod
    def _notify(tx: Connection, set_id: str, now: float) -> None:
        """Queue the webhook of a set if all its jobs have ended."""
        # Locked, so that of two jobs that end at once the later one sees the other.
        its = tx.execute(select(sets).where(sets.c.id == set_id).with_for_update()).one()
        open_states = ("queued", "paused", "running")
        going_on = exists().where(jobs.c.set_id == set_id, jobs.c.state.in_(open_states))
        if its.webhook is None or tx.execute(select(going_on)).scalar():
            return
        tx.execute(
            insert(deliveries).values(
                id=new_id("dlv"),
                set_id=set_id,
                account_id=its.account_id,
                webhook=its.webhook,
                created_at=now,
                due_at=now,
                attempts=0,
            )
        )
