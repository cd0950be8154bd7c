"""Which waiting jobs a worker gets next: pure functions over values that the ledger reads.

Two levels of start-time fair queuing (Goyal, Vin, Cheng: Start-time Fair Queuing, 1996): between the lanes,
and within a lane between the accounts. A flow that is served is charged its predicted device seconds over its
weight; the next to be served is the one with the least start tag, max(virtual time, its finish tag). The
virtual time is the start tag of what was served last, so that nobody saves up turns while idle. Between two
lanes with work, device seconds are shared as LANE_WEIGHTS say: interactive jobs go first, and batch jobs
always move.

A job whose model is not loaded may be passed over for one whose model is, at most MAX_PASSES times and
MAX_PASSED_SECONDS after its turn had come.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from limner.service.jobs import Lane

LANES: tuple[Lane, ...] = ("interactive", "batch")
LANE_WEIGHTS: Mapping[Lane, float] = {"interactive": 4.0, "batch": 1.0}
MAX_PASSES = 24
MAX_PASSED_SECONDS = 20.0
LOOKAHEAD = 32
"""Number of an account's waiting jobs among which one of a loaded model is looked for."""


class Candidate(NamedTuple):
    """A waiting job.

    Attributes:
        seq: Its number in the ledger.
        model: Id of its checkpoint; "" for none.
        seconds: Predicted device seconds.
        passed_over: How often it was passed over when its turn had come.
        passed_since: When that first happened; None for never.
    """

    seq: int
    model: str
    seconds: float
    passed_over: int = 0
    passed_since: float | None = None


@dataclass(frozen=True)
class Flow:
    """An account's waiting jobs in a lane.

    Attributes:
        account_id: The account.
        weight: Its share relative to the others.
        finish: Its finish tag.
        jobs: The first of its jobs, in its own order.
    """

    account_id: str
    weight: float
    finish: float
    jobs: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Queue:
    """A lane.

    Attributes:
        lane: Its name.
        start, finish: Its tags; the greatest start tag is the virtual time between the lanes.
        virtual: Virtual time between its accounts.
        flows: The accounts with waiting jobs.
    """

    lane: Lane
    start: float = 0.0
    finish: float = 0.0
    virtual: float = 0.0
    flows: tuple[Flow, ...] = ()


@dataclass(frozen=True)
class Choice:
    """A job that is to be claimed, and the waiting jobs that were passed over for it."""

    lane: Lane
    account_id: str
    job: Candidate
    passed: tuple[int, ...] = ()


def ranked(flows: Iterable[Flow], virtual: float) -> list[Flow]:
    """Flows in the order in which they are to be served: the least start tag first."""
    return sorted(flows, key=lambda flow: (max(virtual, flow.finish), flow.account_id))


def choose(
    queues: Sequence[Queue],
    *,
    count: int,
    warm: Collection[str] = (),
    now: float = 0.0,
) -> list[Choice]:
    """The jobs to claim, best first, as if each were served and charged in turn.

    Args:
        queues: The lanes with what waits in them.
        count: Number of jobs to choose at most.
        warm: Models that the worker has loaded.
        now: The ledger's clock.
    """
    virtual = max((queue.start for queue in queues), default=0.0)
    lanes = {queue.lane: queue.finish for queue in queues}
    virtuals = {queue.lane: queue.virtual for queue in queues}
    waiting = {queue.lane: {flow.account_id: flow for flow in queue.flows if flow.jobs} for queue in queues}
    chosen: list[Choice] = []
    while len(chosen) < count:
        ready = [lane for lane in LANES if waiting.get(lane)]
        if not ready:
            break
        lane = min(ready, key=lambda lane: max(virtual, lanes[lane]))  # a tie goes to the first
        choice = _next_of(lane, ranked(waiting[lane].values(), virtuals[lane]), warm, now)
        chosen.append(choice)
        flow = waiting[lane][choice.account_id]
        virtual = max(virtual, lanes[lane])
        lanes[lane] = virtual + choice.job.seconds / LANE_WEIGHTS[lane]
        start = max(virtuals[lane], flow.finish)
        virtuals[lane] = start
        place = flow.jobs.index(choice.job)
        rest = flow.jobs[:place] + flow.jobs[place + 1 :]
        if rest:
            finish = start + choice.job.seconds / flow.weight
            waiting[lane][flow.account_id] = Flow(flow.account_id, flow.weight, finish, rest)
        else:
            del waiting[lane][flow.account_id]
    return chosen


def _next_of(lane: Lane, flows: Sequence[Flow], warm: Collection[str], now: float) -> Choice:
    first = flows[0].jobs[0]
    turn = Choice(lane, flows[0].account_id, first)
    if not warm or _is_warm(first, warm) or not may_be_passed(first, now):
        return turn
    for flow in flows:
        for job in flow.jobs:
            if _is_warm(job, warm):
                return Choice(lane, flow.account_id, job, passed=(first.seq,))
    return turn


def _is_warm(job: Candidate, warm: Collection[str]) -> bool:
    return not job.model or job.model in warm


def may_be_passed(job: Candidate, now: float) -> bool:
    """Whether a job whose turn it is may wait for others whose model is loaded."""
    since = now if job.passed_since is None else job.passed_since
    return job.passed_over < MAX_PASSES and now - since < MAX_PASSED_SECONDS


@dataclass(frozen=True)
class Charge:
    """A change of the tags of an account in a lane, or of a lane itself, whose account is "".

    Attributes:
        floor: Virtual time that the finish tag is raised to first.
        amount: What the finish tag grows by then.
        start: Start tag of what was served last.
        virtual: New virtual time between the accounts of a lane; 0 for an account.
    """

    lane: Lane
    account_id: str
    floor: float
    amount: float
    start: float
    virtual: float = 0.0


def charges(queues: Sequence[Queue], served: Sequence[Choice]) -> list[Charge]:
    """What those who were served are charged, by lane and account, so that it can be added to their tags.

    Args:
        queues: The lanes, as the choices were made.
        served: The choices, in order.
    """
    between = max((queue.start for queue in queues), default=0.0)
    found: list[Charge] = []
    for queue in queues:
        its = [choice for choice in served if choice.lane == queue.lane]
        if not its:
            continue
        virtual = queue.virtual
        for flow in sorted(
            queue.flows, key=lambda flow: flow.account_id
        ):  # in one order, so none waits in a ring
            amounts = [
                choice.job.seconds / flow.weight for choice in its if choice.account_id == flow.account_id
            ]
            if amounts:
                start = max(queue.virtual, flow.finish) + sum(amounts[:-1])
                found.append(Charge(queue.lane, flow.account_id, queue.virtual, sum(amounts), start))
                virtual = max(virtual, start)
        amounts = [choice.job.seconds / LANE_WEIGHTS[queue.lane] for choice in its]
        start = max(between, queue.finish) + sum(amounts[:-1])
        found.append(Charge(queue.lane, "", between, sum(amounts), start, virtual))
    return found


def upcoming(queues: Sequence[Queue]) -> Iterator[Choice]:
    """All that waits, in the order in which it is served if nothing new arrives, whatever models are loaded.

    It is the order of `choose`, which would take the square of the time for all of it.
    """
    between = max((queue.start for queue in queues), default=0.0)
    lanes = {queue.lane: max(between, queue.finish) for queue in queues}
    # What is served raises the virtual time to its own start tag, which no other one is below.
    waiting: dict[Lane, list[tuple[float, str, int]]] = {}
    flows = {(queue.lane, flow.account_id): flow for queue in queues for flow in queue.flows if flow.jobs}
    for queue in queues:
        tags = [(max(queue.virtual, flow.finish), flow.account_id, 0) for flow in queue.flows if flow.jobs]
        heapify(tags)
        waiting[queue.lane] = tags
    while ready := [lane for lane in LANES if waiting.get(lane)]:
        lane = min(ready, key=lambda lane: max(between, lanes[lane]))
        start, account_id, place = heappop(waiting[lane])
        flow = flows[lane, account_id]
        job = flow.jobs[place]
        yield Choice(lane, account_id, job)
        between = max(between, lanes[lane])
        lanes[lane] = between + job.seconds / LANE_WEIGHTS[lane]
        if place + 1 < len(flow.jobs):
            heappush(waiting[lane], (start + job.seconds / flow.weight, account_id, place + 1))
