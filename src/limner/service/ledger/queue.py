"""The order of the queue: the place of each job, and an estimate of when it starts."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, bindparam, select

from limner.service.jobs import Job, JobState, Lane

from .claiming import lanes_in
from .order import LANES, Candidate, upcoming
from .reading import JOBS, Reading
from .rows import job_of
from .schema import jobs
from .states import PAUSED, QUEUED, RUNNING
from .writing import parts

_PLACES = 10_000
"""Number of waiting jobs of a lane that are put in order."""

_RANKS = {"running": 0, "queued": 1, "paused": 2}
_WAITING = (
    select(*[jobs.c[name] for name in ("id", "account_id", "seq", "model", "predicted_seconds")])
    .where(QUEUED, jobs.c.lane == bindparam("of_lane"))
    .order_by(jobs.c.account_id, jobs.c.position, jobs.c.seq)
    .limit(_PLACES)
)


@dataclass(frozen=True)
class QueuedJob:
    """A job that has not ended.

    Attributes:
        job: The job.
        place: Number of jobs that go before it in its lane: 0 is next. None unless it waits.
        starts_in: Estimate of the seconds until it begins. None unless it waits.
    """

    job: Job
    place: int | None = None
    starts_in: float | None = None


class Queueing(Reading):
    """The queue in order.

    Places are counted as the fair order serves jobs if nothing new comes; loaded models may change it a
    little. Waiting jobs of locked accounts, which nobody claims, are not in this order: `list_queue` gives
    them no place, and `place` its upper limit.
    """

    def place(self, job_id: str, *, account_id: str | None = None) -> int:
        """Number of jobs that go before a waiting one in its lane: 0 is next. 0 too for one that does not
        wait. At most 10,000, which jobs of locked accounts get. Raises NotFound."""
        with self._db.read() as connection:
            job = self._job(connection, job_id, account_id)
            if job.state != "queued":
                return 0
            return _turns(connection, (job.lane,)).get(job_id, _LAST).place

    def list_queue(
        self,
        account_id: str | None,
        *,
        states: Collection[JobState] = ("running", "queued", "paused"),
        limit: int = 100,
    ) -> tuple[list[QueuedJob], int]:
        """Jobs that have not ended: first what runs, then what waits in the order in which it is served, then
        what is paused.

        Args:
            account_id: Whose jobs; None: everybody's.
            states: States that they may have.
            limit: Number of jobs at most.

        Returns:
            The jobs, and how many there are in all.
        """
        with self._db.read() as connection:
            now = self._db.time(connection)
            turns = _turns(connection)
            its = [jobs.c.id, jobs.c.seq, jobs.c.state, jobs.c.position, jobs.c.started_at]
            mine = [] if account_id is None else [jobs.c.account_id == account_id]
            found = [
                row
                for state, condition in (("running", RUNNING), ("queued", QUEUED), ("paused", PAUSED))
                if state in states
                for row in connection.execute(select(*its).where(condition, *mine))
            ]
            found.sort(
                key=lambda row: (_RANKS[row.state], turns.get(row.id, _LAST).number, row.position, row.seq)
            )
            ids = [row.id for row in found[:limit]]
            whole = {
                job.id: job
                for part in parts(ids)
                for job in map(job_of, connection.execute(JOBS.where(jobs.c.id.in_(part))).mappings())
            }
            running = select(jobs.c.predicted_seconds, jobs.c.started_at).where(RUNNING)
            going_on = sum(
                max(0.0, predicted - (now - (started_at or now)))
                for predicted, started_at in connection.execute(running)
            )
            rate = self._rate(connection, now) or 1.0
        listed = []
        for one in ids:
            if one not in whole:
                continue  # deleted in between
            turn = turns.get(one)
            listed.append(
                QueuedJob(whole[one])
                if turn is None
                else QueuedJob(whole[one], turn.place, (going_on + turn.seconds) / rate)
            )
        return listed, len(found)


@dataclass(frozen=True)
class _Turn:
    """When it is a waiting job's turn.

    Attributes:
        number: Number of all jobs before it.
        place: Number of those in its lane.
        seconds: Predicted device seconds of all jobs before it.
    """

    number: int
    place: int
    seconds: float


_LAST = _Turn(len(LANES) * _PLACES, _PLACES, 0.0)
"""For a job that is not put in order."""


def _turns(connection: Connection, lanes: Sequence[Lane] = LANES) -> dict[str, _Turn]:
    """The turns of the waiting jobs of all accounts.

    Args:
        lanes: Lanes whose jobs are put in order. Places do not depend on other lanes; numbers and seconds
            are those of all jobs only with every lane.
    """
    waiting: dict[tuple[str, str], list[Candidate]] = {}
    ids: dict[int, str] = {}
    for lane in lanes:
        for row in connection.execute(_WAITING, {"of_lane": lane}):
            job = Candidate(row.seq, row.model, row.predicted_seconds)
            waiting.setdefault((lane, row.account_id), []).append(job)
            ids[row.seq] = row.id
    queues = [
        replace(
            queue,
            flows=tuple(
                replace(flow, jobs=tuple(waiting.get((queue.lane, flow.account_id), ())))
                for flow in queue.flows
            ),
        )
        for queue in lanes_in(connection)
    ]
    found: dict[str, _Turn] = {}
    before: Counter[str] = Counter()
    seconds = 0.0
    for number, choice in enumerate(upcoming(queues)):
        found[ids[choice.job.seq]] = _Turn(number, before[choice.lane], seconds)
        before[choice.lane] += 1
        seconds += choice.job.seconds
    return found
