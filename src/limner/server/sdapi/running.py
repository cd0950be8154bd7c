"""Requests of this API that run: their progress, and interrupting them.

The ledger says which sets a caller has and what has become of their jobs; the hub has the newest step of
each. Kept here is only what makes the answer pleasant: progress that never falls, and the image of a job that
is interrupted.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from limner.errors import LimnerError
from limner.server.state import ServerState, in_thread
from limner.service.events import JobProgress
from limner.service.jobs import FINAL_STATES, Job, JobSet, JobState
from limner.service.worker_calls import UNFINISHED

from .info import timestamp

CLIENT = "sdapi"
_BEGIN, _MOST = 0.01, 0.99
_OPEN: tuple[tuple[JobState, ...], ...] = (("running",), ("queued", "paused"))
_DECODING = 0.6  # seconds that an interrupted image may take to be decoded; else it is a preview
_ANSWERING = 0.9  # seconds that its worker may take to send it
_LOOK = 200  # jobs that are looked at for a caller's requests

Latest = Callable[[str], JobProgress | None]


@dataclass(frozen=True)
class Unfinished:
    """An image that was interrupted, as far as it is.

    Attributes:
        data: The file.
        step, steps: How far it is.
        decoded: Whether it is the decoded image; else it is a preview.
    """

    data: bytes
    step: int
    steps: int
    decoded: bool


@dataclass
class Run:
    """A request that this process waits for.

    Attributes:
        task: "txt2img" or "img2img".
        iterations: `n_iter`.
        hires: Whether it has a hires pass.
        highest: Largest progress that was answered.
        interrupted, skipped: Whether somebody asked for it.
        seen: Newest progress of each job.
        unfinished: Image of the job that was furthest when the request was interrupted, and of those that
            were skipped; None where there is none.
        over: Set once the whole request has been interrupted: nobody waits for its jobs any more.
    """

    task: str
    iterations: int
    hires: bool
    highest: float = 0.0
    interrupted: bool = False
    skipped: bool = False
    seen: dict[str, JobProgress] = field(default_factory=dict)
    unfinished: dict[str, "asyncio.Task[Unfinished | None]"] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Runs:
    """The requests that this process waits for, by the ids of their sets."""

    by_set: dict[str, Run] = field(default_factory=dict)

    def of(self, job_set: JobSet) -> Run:
        """What is known of a set; of one of another process, what its jobs tell."""
        found = self.by_set.get(job_set.id)
        if found is None:
            request = job_set.request
            hires = any(request.get(f"hires_{name}") for name in ("scale", "width", "height"))
            found = Run("img2img" if request.get("image") else "txt2img", len(job_set.jobs), hires)
        return found


def is_stopped(job: Job) -> bool:
    """Whether a job was cancelled, or is about to end because of that."""
    return job.state == "cancelled" or (job.state not in FINAL_STATES and job.cancel_requested)


def open_jobs(job_set: JobSet) -> list[Job]:
    """The jobs of a set that have not ended and are not about to."""
    return [job for job in job_set.jobs if job.state not in FINAL_STATES and not is_stopped(job)]


def share_done(job_set: JobSet, latest: Latest) -> float:
    """Share of a set's steps that have been taken."""
    shares = []
    for job in job_set.jobs:
        step = latest(job.id) if job.state == "running" else None
        if job.state in FINAL_STATES:
            shares.append(1.0)
        else:
            shares.append(0.0 if step is None or not step.steps else step.step / step.steps)
    return sum(shares) / len(shares)


def idle() -> dict[str, Any]:
    """The answer of `progress` where nothing runs."""
    state = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "",
        "job_count": 0,
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": 0,
    }
    return {"progress": 0.0, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}


def progress_of(job_set: JobSet, run: Run, latest: Latest, *, now: float | None = None) -> dict[str, Any]:
    """The answer of `progress` about a set, without an image. Progress never falls and stays below 1.

    Args:
        now: Seconds since the epoch.
    """
    now = time.time() if now is None else now
    answer = idle()
    begun = [job.started_at for job in job_set.jobs if job.started_at is not None]
    steps = [one.steps for job in job_set.jobs if (one := latest(job.id)) is not None]
    count = run.iterations * (2 if run.hires else 1)
    done = share_done(job_set, latest)
    number = min(int(done * count), count - 1)
    per_job = max(steps, default=_steps_of(job_set))
    run.highest = max(run.highest, min(_MOST, _BEGIN + done))
    elapsed = now - min(begun) if begun else 0.0
    answer["progress"] = run.highest
    answer["eta_relative"] = max(0.0, elapsed / run.highest - elapsed) if begun else 0.0
    answer["state"] |= {
        "skipped": run.skipped,
        "interrupted": run.interrupted,
        "job": f"scripts_{run.task}",
        "job_count": count if begun else -1,
        "job_timestamp": timestamp(job_set.created_at),
        "job_no": number,
        "sampling_step": int((done * count - number) * per_job),
        "sampling_steps": per_job,
    }
    answer["textinfo"] = None if begun else "Waiting..."
    return answer


def _steps_of(job_set: JobSet) -> int:
    steps = job_set.jobs[0].params.get("steps") if job_set.jobs else None
    return steps if isinstance(steps, int) else 0


def newest_preview(job_set: JobSet, latest: Latest) -> JobProgress | None:
    """The newest preview of a set's running jobs."""
    found = [one for job in job_set.jobs if (one := latest(job.id)) is not None and one.preview]
    return max(found, key=lambda one: (one.step, -one.index), default=None)


async def running_sets(state: ServerState, account_id: str) -> list[JobSet]:
    """An account's sets of this API that go on, those that run first, then the oldest first."""

    def read() -> list[JobSet]:
        sets: dict[str, JobSet] = {}
        for states in _OPEN:
            for job in reversed(state.ledger.list_jobs(account_id, states=states, limit=_LOOK)):
                if job.set_id not in sets:
                    sets[job.set_id] = state.ledger.get_set(job.set_id, account_id=account_id)
        own = [one for one in sets.values() if one.client == CLIENT and open_jobs(one)]
        return sorted(own, key=lambda one: (not _runs(one), one.created_at))

    return await in_thread(read)


async def _unfinished(state: ServerState, job: Job) -> Unfinished | None:
    """The image of a running job as far as it is: of its worker, or the last preview that is known where the
    worker does not send one in time; None where there is none."""
    last = state.hub.latest(job.id)
    try:
        found, [image] = await state.hub.call(
            UNFINISHED, {"job": job.id, "seconds": _DECODING}, timeout=_ANSWERING, worker=job.owner or ""
        )
    except LimnerError:
        if last is None or last.preview is None:
            return None
        return Unfinished(last.preview, last.step, last.steps, decoded=False)
    return Unfinished(image, int(found["step"]), int(found["steps"]), bool(found["decoded"]))


def _runs(job_set: JobSet) -> bool:
    return any(job.state == "running" for job in job_set.jobs)


async def named_set(state: ServerState, account_id: str, task: str) -> JobSet | None:
    """An account's set by its `force_task_id`; None if there is none."""
    return await in_thread(state.ledger.find_external, account_id, task)


async def stop(
    state: ServerState, runs: Runs, account_id: str, *, task: str | None = None, one: bool = False
) -> None:
    """Stop the caller's requests that run; where none does, the oldest that waits. Of each request the image
    that is furthest is kept as far as it is.

    Args:
        task: Only the request of this name.
        one: Only the first image that runs, of the oldest request.
    """
    sets = await running_sets(state, account_id)
    if task is not None:
        sets = [job_set for job_set in sets if job_set.external_id == task]
    running = [job_set for job_set in sets if _runs(job_set)]
    chosen = running[:1] if one else (running or sets[:1])
    for job_set in chosen:
        stopped = open_jobs(job_set)
        if one:
            stopped = [job for job in stopped if job.state == "running"][:1]
        run = runs.by_set.get(job_set.id)
        if run is not None:
            run.skipped, run.interrupted = run.skipped or one, run.interrupted or not one
            for job in stopped:
                if (step := state.hub.latest(job.id)) is not None:
                    run.seen[job.id] = step
            if (kept := furthest(stopped, state.hub.latest)) is not None:
                run.unfinished[kept.id] = asyncio.create_task(_unfinished(state, kept))
            await asyncio.sleep(0)  # so that a worker gets this call before the cancellation
        ids = [job.id for job in stopped]
        affected = await in_thread(state.ledger.cancel, account_id=account_id, job_ids=ids)
        state.hub.cancel(affected)
        if run is not None and not one:
            run.over.set()


def furthest(jobs: Sequence[Job], latest: Latest) -> Job | None:
    """The running job that has taken the most steps; None where none has taken any."""
    steps = {job.id: step.step for job in jobs if job.state == "running" and (step := latest(job.id))}
    return max((job for job in jobs if job.id in steps), key=lambda job: steps[job.id], default=None)
