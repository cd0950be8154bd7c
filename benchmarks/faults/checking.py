"""The checker: what clients were promised against what the ledger and the picture store hold."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image

from limner.service.audit.checking import check_ledger
from limner.service.jobs import FINAL_STATES, MAX_ATTEMPTS, Job
from limner.service.ledger.ledger import Ledger
from limner.service.storage import ImageStore

from .clients import Promise

Alone = Callable[[Job], str]
"""Draws the request of a job alone -> SHA-256 of the pixels."""


@dataclass
class Findings:
    """What the checker has found.

    Attributes:
        faults: What must not be, a sentence each.
        states: Number of jobs by their state.
        attempts: Number of attempts by their outcome.
        replayed: Number of requests that were sent more than once until there was an answer.
    """

    faults: list[str] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    replayed: int = 0

    def lines(self) -> list[str]:
        """The findings in words."""
        return [
            f"jobs: {', '.join(f'{count} {state}' for state, count in sorted(self.states.items()))}",
            f"attempts: {', '.join(f'{count} {how}' for how, count in sorted(self.attempts.items()))}",
            f"requests sent more than once: {self.replayed}",
            *(self.faults or ["no faults"]),
        ]


def check(
    ledger: Ledger, store: ImageStore, promises: Sequence[Promise], alone: Alone | None = None
) -> Findings:
    """Check that every promised job has ended exactly once, that every image that is done opens and is what
    its request draws alone, that usage was counted once, and that the audit log has each image once.

    Args:
        alone: Draws a request alone; None leaves that out.
    """
    found = Findings(replayed=sum(promise.sent > 1 for promise in promises))
    finals: Counter[str] = Counter()
    done_events: Counter[str] = Counter()
    after = 0
    while events := ledger.events(None, after=after):
        after = events[-1].seq
        finals.update(one.job_id for one in events if one.change in FINAL_STATES)
        done_events.update(one.job_id for one in events if one.change == "done")
    drawn: dict[str, str] = {}
    done = 0
    promised = {job: promise for promise in promises for job in promise.job_ids}
    if len(promised) != sum(len(promise.job_ids) for promise in promises):
        found.faults.append("two promises have a job in common")
    for promise in promises:
        jobs = ledger.get_set(promise.set_id).jobs
        if tuple(job.id for job in jobs) != promise.job_ids:
            found.faults.append(f"set {promise.set_id} has other jobs than were promised")
        for job in jobs:
            found.states[job.state] += 1
            attempts = ledger.attempts(job.id)
            found.attempts.update(str(one.outcome) for one in attempts)
            if finals[job.id] != 1:
                found.faults.append(f"job {job.id} has ended {finals[job.id]} times, and is {job.state}")
            if job.state == "done":
                done += 1
                found.faults += _image_faults(job, store, alone, drawn)
                if sum(one.outcome == "done" for one in attempts) != 1:
                    found.faults.append(f"job {job.id} is done and has attempts {attempts}")
            elif not (job.state == "dead" and len(attempts) == MAX_ATTEMPTS):
                found.faults.append(f"job {job.id} is {job.state}: {job.error}")
    found.faults += _audit_faults(ledger, {job for job in promised if ledger.get_job(job).state == "done"})
    everything = ledger.list_jobs(None, limit=100_000)
    unknown = {job.id for job in everything} - promised.keys()
    if unknown:
        found.faults.append(f"{len(unknown)} jobs were promised to nobody")
    [usage] = ledger.usage() or [None]
    images = 0 if usage is None else usage.images
    if images != done:
        found.faults.append(f"{images} images are in the usage, and {done} jobs are done")
    spent = sum(job.device_seconds or 0.0 for job in everything)
    if usage is not None and abs(usage.device_seconds - spent) > 1e-6 * max(1.0, spent):
        found.faults.append(
            f"{usage.device_seconds} device seconds are in the usage, and {spent} in the jobs"
        )
    return found


def _audit_faults(ledger: Ledger, done: set[str]) -> list[str]:
    """What is wrong with the audit log: it is whole, and has one entry for each image."""
    entries: Counter[str] = Counter()
    after = 0
    while page := ledger.audit_log(after=after, action="job.done"):
        after = page[-1].id
        entries.update(one.subject for one in page)
    wrong = [job for job in done | entries.keys() if entries[job] != (job in done)]
    faults = [f"job {job} has {entries[job]} audit entries" for job in wrong]
    return [*faults, *check_ledger(ledger, ledger.audit_signers()).faults]


def _image_faults(job: Job, store: ImageStore, alone: Alone | None, drawn: dict[str, str]) -> list[str]:
    image = job.image
    if image is None:
        return [f"job {job.id} is done and has no image"]
    data = store.get(image.key)
    with Image.open(io.BytesIO(data)) as opened:
        pixels = hashlib.sha256(opened.tobytes()).hexdigest()
    faults = []
    if hashlib.sha256(data).hexdigest() != image.sha256 or pixels != image.pixels_sha256:
        faults.append(f"the image of job {job.id} is not what was handed in")
    if alone is not None:
        request = repr(sorted(job.params.items()))
        drawn[request] = expected = drawn.get(request) or alone(job)
        if pixels != expected:
            faults.append(f"the image of job {job.id} is not what its request draws alone")
    return faults
