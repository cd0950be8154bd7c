"""The workers' side of the ledger: taking jobs, with a lease and a fence.

A claim raises the job's fence. Later reports of a worker on a job count only while the job is running
under that very fence, so that of two workers that believe to have the same job only the later one is heard.

Statements are made once, when the module is imported: making one takes SQLAlchemy longer than SQLite takes to
run it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, bindparam, exists, func, insert, select, update

from limner.service.jobs import Claim, JobKind

from . import postgres
from .order import LOOKAHEAD, Candidate, Choice, Flow, Queue, charges, choose, ranked
from .rows import JOB_COLUMNS, job_of
from .schema import attempts, jobs, shares
from .states import QUEUED, charged, claim_values, claimable, flows, lanes_with, passed_values
from .writing import Writing

_SPARE = 16
"""On PostgreSQL, number of further jobs that are considered: other workers may be taking the first ones."""

_ANYTHING_WAITS = select(jobs.c.seq).where(QUEUED).limit(1)

_waits = exists().where(QUEUED, jobs.c.lane == shares.c.lane, jobs.c.account_id == shares.c.account_id)
_FLOWS, _ = lanes_with(flows(shares.c.account_id != "", _waits).subquery("its"))

_WINDOW = (
    select(jobs.c.seq, jobs.c.model, jobs.c.predicted_seconds, jobs.c.passed_over, jobs.c.passed_since)
    .where(
        *claimable(lane=bindparam("of_lane"), account_id=bindparam("of_account"), now=bindparam("now")),
        jobs.c.kind.in_(bindparam("kinds", expanding=True)),
    )
    .order_by(jobs.c.position, jobs.c.seq)
    .limit(bindparam("count"))
)
"""The first waiting jobs of an account in a lane."""

_TAKE = (
    update(jobs)
    .where(jobs.c.seq.in_(bindparam("wanted", expanding=True)), QUEUED)
    .values(claim_values(now=bindparam("now"), until=bindparam("until")))
    .returning(jobs.c.seq, *JOB_COLUMNS)
)


_CHARGE = charged(func.max)
_PASS = (
    update(jobs)
    .where(jobs.c.seq.in_(bindparam("passed", expanding=True)), QUEUED)
    .values(passed_values(now=bindparam("now")))
)
_ATTEMPT = insert(attempts)


class Claiming(Writing):
    """Claims."""

    _found_work = False  # by the last claim; a hint, which threads may overwrite

    def claim(
        self,
        worker: str,
        *,
        lease_seconds: float,
        limit: int = 1,
        warm: Sequence[str] = (),
        kinds: Sequence[JobKind] = ("generate",),
    ) -> list[Claim]:
        """Take up to `limit` waiting jobs, in the order of `limner.service.ledger.order`.

        Args:
            worker: Id of the worker.
            lease_seconds: Seconds for which they are its own, unless it renews.
            limit: Number of jobs at most.
            warm: Models that it has loaded, whose jobs go first within bounds.
            kinds: Kinds of jobs that it runs.
        """
        if limit < 1:
            return []
        if not self._db.is_sqlite:
            return self._claim_in_postgres(worker, lease_seconds, limit, warm, kinds)
        # Who finds nothing does not keep others from writing. Where there was work there is probably more.
        if not self._found_work and not self._anything_waits():
            return []
        self._found_work = False
        with self._db.write() as tx:
            now = self._db.time(tx)
            queues = self._queues(tx, now, limit, warm, kinds)
            served = choose(queues, count=limit, warm=warm, now=now)
            if not served:
                return []
            values = {"worker": worker, "lease": lease_seconds, "until": now + lease_seconds, "now": now}
            rows = tx.execute(_TAKE, values | {"wanted": [choice.job.seq for choice in served]}).all()
            taken = {row.seq: row for row in rows}
            ordered = [taken[choice.job.seq] for choice in served]
            begun = [
                {"job_id": row.id, "fence": row.fence, "number": row.attempt, "worker": worker}
                | {"started_at": now}
                for row in ordered
            ]
            tx.execute(_ATTEMPT, begun)
            data = [{"attempt": row.attempt, "worker": worker} for row in ordered]
            self._events(tx, "started", [row._mapping for row in ordered], now, data)
            tx.execute(_CHARGE, _charge_values(queues, served))
            if passed := _passed(served):
                tx.execute(_PASS, {"passed": passed, "now": now})
        self._found_work = True
        return [_claimed(row._mapping) for row in ordered]

    @staticmethod
    def _queues(
        tx: Connection, now: float, limit: int, warm: Sequence[str], kinds: Sequence[JobKind]
    ) -> list[Queue]:
        """The lanes with the accounts whose turn may come and their first jobs, from SQLite."""
        values = {"kinds": list(kinds), "now": now, "count": _count(limit, warm)}

        def waiting(lane: str, account_id: str) -> Iterable[Any]:
            return tx.execute(_WINDOW, values | {"of_lane": lane, "of_account": account_id})

        return _filled(lanes_in(tx), waiting, _width(limit, warm))

    def _claim_in_postgres(
        self, worker: str, lease_seconds: float, limit: int, warm: Sequence[str], kinds: Sequence[JobKind]
    ) -> list[Claim]:
        """The same, while others claim: statements of their own, so that nobody waits for somebody's commit.

        Others may take some of the chosen jobs first. So more are offered, and the database takes the first
        that are free.
        """
        offers, wide = limit + _SPARE, _width(limit, warm)
        window = {"kinds": list(kinds), "count": _count(offers, warm)}
        with self._db.driver() as cursor:
            rows = postgres.FLOWS.run(cursor, wide=wide, **window)
            if not rows:
                return []
            read = {
                (row["lane"], row["account_id"]): row["waiting"] or () for row in rows if row["place"] <= wide
            }

            def waiting(lane: str, account_id: str) -> Iterable[Any]:
                if (lane, account_id) in read:
                    return read[lane, account_id]
                [row] = postgres.WINDOW.run(cursor, of_lane=lane, of_account=account_id, **window)
                return row["waiting"] or ()

            queues = _filled(_lanes(rows), waiting, wide)
            choices = choose(queues, count=offers, warm=warm, now=rows[0]["now"])
            if not choices:
                return []
            wanted = [choice.job.seq for choice in choices]
            found = postgres.TAKE.run(cursor, worker=worker, lease=lease_seconds, wanted=wanted, count=limit)
            taken = {row["seq"]: row for row in found}
            served = [choice for choice in choices if choice.job.seq in taken]
            for charge in _charge_values(queues, served):
                postgres.CHARGE.run(cursor, **charge)
            if passed := _passed(served):
                postgres.PASS.run(cursor, passed=passed)
        return [_claimed(taken[choice.job.seq]) for choice in served]

    def _anything_waits(self) -> bool:
        with self._db.read() as connection:
            return connection.execute(_ANYTHING_WAITS).first() is not None


def _count(count: int, warm: Sequence[str]) -> int:
    """Number of an account's jobs to read where `count` are to be chosen."""
    return max(count, LOOKAHEAD if warm else 1)


def _width(limit: int, warm: Sequence[str]) -> int:
    """Number of a lane's accounts to read the jobs of."""
    return max(limit, 8) if warm else limit


def lanes_in(connection: Connection) -> list[Queue]:
    """The lanes with their accounts that have waiting jobs, without the jobs."""
    return _lanes(connection.execute(_FLOWS).mappings().all())


def _lanes(rows: Sequence[Mapping[Any, Any]]) -> list[Queue]:
    """The lanes with their accounts, from rows of `states.lanes_with`."""
    lanes = {row["lane"]: (row["lane"], row["start"], row["lane_finish"], row["virtual"]) for row in rows}
    its: dict[str, list[Flow]] = {lane: [] for lane in lanes}
    for row in rows:
        if row["account_id"] is not None:
            its[row["lane"]].append(Flow(row["account_id"], row["weight"], row["finish"]))
    return [Queue(*values, tuple(its[lane])) for lane, values in lanes.items()]


def _filled(queues: Sequence[Queue], waiting: Callable[[str, str], Iterable[Any]], wide: int) -> list[Queue]:
    """The lanes with the accounts whose turn may come and their first jobs.

    Args:
        waiting: Reads an account's first jobs in a lane, as fields of `Candidate`.
        wide: Number of accounts of a lane at most.
    """
    filled = []
    for queue in queues:
        flows: list[Flow] = []
        for flow in ranked(queue.flows, queue.virtual):
            if len(flows) == wide:
                break
            if found := tuple(Candidate(*fields) for fields in waiting(queue.lane, flow.account_id)):
                flows.append(replace(flow, jobs=found))
        filled.append(replace(queue, flows=tuple(flows)))
    return filled


def _charge_values(queues: Sequence[Queue], served: Sequence[Choice]) -> list[dict[str, Any]]:
    """Parameters of `states.charged` for those who were served."""
    return [
        {
            "of_lane": charge.lane,
            "of_account": charge.account_id,
            "floor": charge.floor,
            "amount": charge.amount,
            "last_start": charge.start,
            "new_virtual": charge.virtual,
        }
        for charge in charges(queues, served)
    ]


def _passed(served: Sequence[Choice]) -> list[int]:
    return [seq for choice in served for seq in choice.passed]


def _claimed(values: Mapping[Any, Any]) -> Claim:
    deadline = values["deadline_at"]
    return Claim(job_of(values), None if deadline is None else deadline - values["started_at"])
