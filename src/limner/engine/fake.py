"""An engine without a model and without torch, for tests of programs that use one."""

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image

from limner import __version__
from limner.forks import renew_after_fork
from limner.images.picture import Picture
from limner.images.record import Record
from limner.request import GenerationRequest

from .events import Cancelled, StepDone, Subscriber
from .front import Desk, Front, Job
from .handle import Handle, Progress

_SIDE, _STEPS, _SEED = 64, 4, 1  # of requests that do not give them

Draw = Callable[[GenerationRequest], Image.Image]
"""Request for one image -> the image."""
DrawPreview = Callable[[GenerationRequest, int, int], Image.Image]
"""Request for one image, a step from 1 and the number of steps -> the preview of this step."""

FailureOf = Callable[[GenerationRequest, int, int], Exception | None]
"""Request, a step from 1 and the number of steps -> what the request fails with after this step."""


@dataclass(frozen=True)
class _Previewed(Progress):
    """A step with a preview.

    Attributes:
        draw: Draws it.
    """

    draw: Callable[[], Image.Image] = field(kw_only=True, repr=False)

    def preview(self) -> Image.Image:
        return self.draw()


@dataclass(eq=False)
class _FakeJob(Job):
    request: GenerationRequest = field(kw_only=True)  # with every default filled in


class FakeEngine(Front):
    """Generates images of one colour, which depends on prompt and seed.

    Priorities, cancelling, timeouts, the limit of the queue and events are those of `Engine`. Progress has no
    latents.

    Args:
        step_seconds: Seconds that each step takes.
        max_waiting: Number of requests that may wait at once.
        subscribers: Called with each `Event`.
        at_once: Number of requests that are drawn at once.
        draw: Draws images in place of those of one colour.
        draw_preview: Draws previews; without it there are none.
        failure_of: Returns the exception that a request fails with after a step; None to go on.
    """

    def __init__(
        self,
        *,
        step_seconds: float = 0.0,
        max_waiting: int = 4096,
        subscribers: Sequence[Subscriber] = (),
        at_once: int = 1,
        draw: Draw | None = None,
        draw_preview: DrawPreview | None = None,
        failure_of: FailureOf | None = None,
    ) -> None:
        super().__init__(Desk(max_waiting, subscribers))
        self._step_seconds, self._at_once = step_seconds, at_once
        self._draw, self._draw_preview, self._failure_of = draw or _flat, draw_preview, failure_of
        self.renew()
        renew_after_fork(self)

    def renew(self) -> None:
        """In a forked process: forget the threads, which only the parent has, and their requests."""
        self._changed = threading.Condition()
        self._queue: list[_FakeJob] = []
        self._threads: set[threading.Thread] = set()

    def _start(self, handle: Handle, rank: tuple[int, int], deadline: float) -> None:
        defaults = {"width": _SIDE, "height": _SIDE, "steps": _STEPS, "seed": _SEED}
        given = handle.request.model_dump(exclude_none=True)
        job = _FakeJob(handle, rank, deadline, request=GenerationRequest.of({**defaults, **given}))
        self._desk.accept(job)
        with self._changed:
            self._queue = sorted([*self._queue, job], key=lambda job: job.rank)
            if len(self._threads) < self._at_once:
                thread = threading.Thread(target=self._run, name="limner-fake-engine", daemon=True)
                self._threads.add(thread)
                thread.start()
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _is_own_thread(self) -> bool:
        return threading.current_thread() in self._threads

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._queue:
                    self._threads.discard(threading.current_thread())
                    return
                job = self._queue.pop(0)
            self._run_job(job)

    def _run_job(self, job: _FakeJob) -> None:
        for index in range(job.request.num_images):
            if job.ended or self._desk.drop(job):
                return
            if index + 1 in job.handle.cancelled_images:
                self._desk.publish(Cancelled(job=job.id, image=index + 1, device_seconds=0.0))
                continue
            if index == job.request.num_images - 1:
                self._desk.all_begun(job)
            self._desk.image_begins(job)
            try:
                self._run_image(job, index)
            finally:
                self._desk.image_leaves()
        if not (job.ended or self._desk.drop(job)):
            self._desk.finish(job, job.request)

    def _run_image(self, job: _FakeJob, index: int) -> None:
        """Generate one image, unless it or its request ends before."""
        request = job.request
        assert request.steps is not None
        for step in range(1, request.steps + 1):
            self._take_step(job, index, step, request.steps)
            if self._failure_of and (failure := self._failure_of(request, step, request.steps)) is not None:
                self._desk.fail(job, failure)
            if job.ended or self._desk.drop(job):
                return
            if index + 1 in job.handle.cancelled_images:
                spent = step * self._step_seconds
                self._desk.publish(Cancelled(job=job.id, image=index + 1, device_seconds=spent))
                return
        images, left = request.num_images, (request.num_images - index - 1) * request.steps
        picture = self._picture(request.of_picture(index))
        progress = Progress(
            index + 1, images, request.steps, request.steps, None, left * self._step_seconds, picture
        )
        self._desk.image_done(job, progress, 1, request.steps * self._step_seconds)

    def _take_step(self, job: _FakeJob, index: int, step: int, steps: int) -> None:
        self._wait(job, index)
        job.device_seconds += self._step_seconds
        left = ((job.request.num_images - index) * steps - step) * self._step_seconds
        job.handle.publish(self._progress(job, index, step, steps, left))
        self._desk.publish(
            StepDone(
                job=job.id,
                image=index + 1,
                step=step,
                steps=steps,
                batch_size=1,
                device_seconds=self._step_seconds,
            )
        )
        self._desk.count_passes("Denoise", [1], self._step_seconds)

    def _progress(self, job: _FakeJob, index: int, step: int, steps: int, left: float) -> Progress:
        draw, images = self._draw_preview, job.request.num_images
        if draw is None:
            return Progress(index + 1, images, step, steps, None, left)
        request = job.request.of_picture(index)
        return _Previewed(index + 1, images, step, steps, None, left, draw=lambda: draw(request, step, steps))

    def _picture(self, request: GenerationRequest) -> Picture:
        record = Record(
            request=request,
            model={"name": request.model, "family": "fake", "sha256": ""},
            environment={"limner": __version__, "backend": "fake"},
        )
        return Picture(self._draw(request), record)

    def _wait(self, job: _FakeJob, index: int) -> None:
        """Wait for the seconds of a step, unless the image is cancelled or late meanwhile."""
        end = min(time.monotonic() + self._step_seconds, job.deadline)

        def stopped() -> bool:
            return job.handle.done() or index + 1 in job.handle.cancelled_images

        with self._changed:
            self._changed.wait_for(stopped, max(0.0, end - time.monotonic()))


def _flat(request: GenerationRequest) -> Image.Image:
    """An image of one colour, a function of prompt and seed."""
    assert request.width is not None
    assert request.height is not None
    colour = hashlib.sha256(f"{request.prompt} {request.seed}".encode()).digest()[:3]
    return Image.new("RGB", (request.width, request.height), (colour[0], colour[1], colour[2]))
