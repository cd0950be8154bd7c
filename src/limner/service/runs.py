"""A job that a worker has claimed, from the claim to the hand-in."""

import time
from dataclasses import dataclass, field

from limner.engine.handle import Handle, Progress
from limner.images.picture import Picture

from .jobs import MAX_ATTEMPTS, Claim
from .step_strips import StepStrip
from .tracing import Tracing


@dataclass(eq=False)
class Run:
    """A claimed job.

    Attributes:
        claim: The claim.
        handle: The request in the engine; None before it is there.
        began: Whether its image has begun.
        cancelled: Whether it is to be stopped.
        released: Whether it goes back into the queue.
        lost: Whether it is no longer this worker's.
        progress: The newest progress.
        batch_size: Number of images in its last forward pass.
        device_seconds: Its share of forward passes so far.
        picture: The finished image.
        strip: Its steps; None where they are not kept.
        withheld: Whether nothing of it is shown before it is checked by the safety policy.
        drawn_at: When it was finished, in seconds since the epoch.
    """

    claim: Claim
    handle: Handle | None = None
    began: bool = False
    cancelled: bool = False
    released: bool = False
    lost: bool = False
    progress: Progress | None = None
    batch_size: int = 1
    device_seconds: float = 0.0
    picture: Picture | None = field(default=None, repr=False)
    strip: StepStrip | None = field(default=None, repr=False)
    withheld: bool = False
    drawn_at: float | None = None

    @property
    def id(self) -> str:
        """Name of the request in the engine: a job that is claimed again has another."""
        return f"{self.claim.job.id}.{self.claim.job.fence}"

    @property
    def suspect(self) -> bool:
        """Whether the job has failed so often that it runs alone."""
        return self.claim.job.attempt >= MAX_ATTEMPTS


def trace(run: Run, tracing: Tracing, parent: str | None, error: BaseException | None) -> None:
    """Send the spans of a run that has ended: the wait in the queue, the drawing, and the hand-in.

    Args:
        parent: Trace context that the job was submitted in.
        error: Why it has failed.
    """
    job, now = run.claim.job, time.time()
    began = job.started_at or now
    whole = tracing.record(
        "job",
        began,
        now,
        parent=parent,
        error=error,
        limner_job=job.id,
        limner_model=job.model,
        limner_attempt=job.attempt,
        limner_batch_size=run.batch_size,
        limner_device_seconds=run.device_seconds,
    )
    if job.attempt == 1:
        tracing.record("queue", job.created_at, began, parent=parent)
    if run.drawn_at is not None:
        tracing.record("draw", began, run.drawn_at, parent=whole)
        tracing.record("hand in", run.drawn_at, now, parent=whole)
