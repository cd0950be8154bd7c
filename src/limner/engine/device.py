"""The engine of a device: the one thread that runs networks there, for every `Engine` and other caller.

At each tick the thread takes over what others have prepared and begins images (schedule), answers one group
of calls in one forward pass (execute), and sends each generation its answer (update). So an image joins at
the next step and leaves at the next step, and rows of one batch may differ in prompt, seed, step, steps,
sampler, sigma schedule and guidance. The policy is in `scheduler`, the execution of calls in `execution`.

Models are loaded, files opened, images decoded and weights hashed in other threads, while this one continues.
"""

import atexit
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from math import inf
from typing import Any, cast
from weakref import WeakSet, ref

import torch
from torch import Tensor

from limner.errors import ImageRefused, InternalError
from limner.forks import renew_after_fork
from limner.generation.calls import (
    Answer,
    Call,
    DecodeLatents,
    Denoise,
    Denoised,
    EncodeText,
    Generation,
    ReadImagePrompt,
)
from limner.generation.story import picture_of
from limner.images.picture import Picture
from limner.model.model import Model

from .capacity import Capacity
from .events import Cancelled, StepDone
from .execution import IN_TILES, execute, limner_error, rows_of
from .front import ARRIVALS
from .handle import Progress
from .jobs import Batch, Client, DeviceJob, ImageRun, Waiting
from .memory import Limits, forget_idle, idle_bytes, weigh
from .plan import Models, Plan, opens_images
from .preparation import Preparation
from .review import reviewed
from .scheduler import Admission, Decision, choose, shares
from .workers import Workers

_LOG = logging.getLogger("limner.engine")

# Seconds that the idle thread stays. On a CPU its OpenMP workers slow those of other threads down; on a GPU
# the graphs that it has captured are its own.
_LINGER: dict[str, float | None] = {"cpu": 0.05, "cuda": None}
_WORKERS = 2  # threads
_PLANS_PER_TICK = 8  # requests that are planned while images wait for their next step

_ENGINES: dict[torch.device, "DeviceEngine"] = {}


def engine_of(device: torch.device) -> "DeviceEngine":
    """The engine of a device: one per process, made when it is first asked for."""
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    return _ENGINES.get(device) or _ENGINES.setdefault(device, DeviceEngine(device))


class DeviceEngine:
    """Runs the networks of all models on one device, in one thread. Safe to use from any thread.

    The thread starts with the first request and ends a little after the last. `engine_of` returns the engine
    of a device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._clients: WeakSet[Client] = WeakSet()
        self._hashed: WeakSet[Model] = WeakSet()  # models whose weights' hash is known
        self.renew()
        renew_after_fork(self)

    def renew(self) -> None:
        """In a forked process: forget the thread, which a fork does not copy, and its work."""
        atexit.unregister(self.close)
        self._changed = threading.Condition()
        # Guarded by `_changed`:
        self._inbox: list[DeviceJob | Batch] = []
        self._news = False  # whether there may be something new to do
        self._closing = False  # whether the thread is to end as soon as it is idle
        self._thread: threading.Thread | None = None  # that takes from the inbox
        # Used by the thread alone:
        self._waiting: list[DeviceJob] = []
        self._runs: list[ImageRun] = []
        self._batches: list[Batch] = []
        self._recording: dict[ImageRun, Future[Picture]] = {}  # finished images, getting their records
        self._tick = 0
        self._preparation = Preparation(self.wake)
        self._worker = Workers("limner-worker", _WORKERS)
        self._recorder = Workers("limner-recorder", _WORKERS)

    @cached_property
    def limits(self) -> Limits:
        """Limits of batches and memory."""
        return Limits.of(self.device)

    def submit(self, job: DeviceJob) -> None:
        """Generate the images of a request."""
        self._put(job)

    def answer(
        self,
        model: Model,
        calls: Sequence[Call],
        most: int | None = None,
        *,
        first: bool = False,
        timeout: float | None = None,
    ) -> list[Answer]:
        """Execute calls of one group, in turn with the other work of the device, and wait for their answers.

        Args:
            most: Largest number of calls in one forward pass; by default as many as are worthwhile and fit.
            first: Whether they go before the other work, after the forward pass that runs.
            timeout: Seconds to wait.

        Raises:
            TimeoutError: They were not answered in time.
        """
        if self.is_own_thread():
            return execute(model, calls, lambda _: None)
        batch = Batch(model, calls, len(calls) if most is None else most, (0, next(ARRIVALS)), first)
        self._put(batch)
        try:
            return batch.future.result(timeout)
        finally:
            batch.future.cancel()  # after Ctrl-C or the timeout nobody waits for the rest

    def wake(self) -> None:
        """Have the thread look for work: another thread is done, or a request was cancelled."""
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def is_own_thread(self) -> bool:
        """Whether this is the thread that runs the networks."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Cancel all requests, and wait for the current forward pass and the end of the thread."""
        with self._changed:
            self._closing, thread = True, self._thread
            jobs = [job for client in self._clients for job in client.desk.close()]
        for job in jobs:
            job.handle.cancel()
        self.wake()
        if thread not in (None, threading.current_thread()):
            thread.join()

    def _put(self, item: DeviceJob | Batch) -> None:
        with self._changed:
            if isinstance(item, DeviceJob):
                self._clients.add(item.client)
            self._inbox.append(item)
            self._news = True
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._run, name="limner-engine", daemon=True)
                self._thread.start()
                atexit.register(self.close)  # a process must not end in the middle of a forward pass
            self._changed.notify_all()

    # The methods below run in the thread.

    def _run(self) -> None:
        while self._collect():
            self._tick += 1
            try:
                self._update()
                self._admit()
                self._step()
                self._deliver()
            except Exception as error:
                self._fail_all(error)

    def _collect(self) -> bool:
        """Take new work, after waiting until there is something to do. False if the thread is to end."""
        with self._changed:
            ready = self._batches or any(run.pending for run in self._runs)
            if not (self._news or ready):
                jobs = self._jobs()
                if jobs:
                    left = min(job.deadline for job in jobs) - time.monotonic()
                    self._changed.wait_for(lambda: self._news, min(max(left, 0.0), threading.TIMEOUT_MAX))
                elif not self._changed.wait_for(lambda: self._news, self._linger()):
                    self._thread = None
                    atexit.unregister(self.close)
                    return False
            self._news = False
            arrived, self._inbox = self._inbox, []
        if arrived:
            for batch in (item for item in arrived if isinstance(item, Batch)):
                batch.since = self._tick
                self._batches.append(batch)
            self._waiting += [item for item in arrived if isinstance(item, DeviceJob)]
            self._waiting.sort(key=lambda job: job.rank)
        return True

    def _linger(self) -> float | None:
        """Seconds that the idle thread stays; None is without end."""
        return 0.0 if self._closing else _LINGER[self.device.type]

    def _jobs(self) -> list[DeviceJob]:
        """All jobs that have not ended, each once."""
        begun = (run.job for run in (*self._runs, *self._recording))
        return list(dict.fromkeys([*self._waiting, *begun]))

    def _update(self) -> None:
        """Drop requests that were cancelled or are late, and take over the results of other threads."""
        for job in self._jobs():
            if job.client.desk.drop(job):
                self._forget(job)
            elif len(job.handle.cancelled_images) > len(job.dropped):
                self._drop_images(job)
        for run in [one for one in self._runs if one.working is not None and one.working.done()]:
            working, run.working = run.working, None
            assert working is not None
            self._advance(run, working.result)
        for run in [one for one, recorded in self._recording.items() if recorded.done()]:
            if (recorded := self._recording.pop(run, None)) is not None:  # else its request has failed
                self._keep(run, recorded.result)

    def _drop_images(self, job: DeviceJob) -> None:
        """Drop the images of a job that were cancelled one by one."""
        for index in {image - 1 for image in job.handle.cancelled_images} - job.dropped:
            job.dropped.add(index)
            spent = 0.0
            for run in [one for one in self._runs if one.job is job and one.index == index]:
                spent = run.device_seconds
                self._leave(run)
            self._recording = {
                one: recorded
                for one, recorded in self._recording.items()
                if (one.job, one.index) != (job, index)
            }
            job.client.desk.publish(Cancelled(job=job.id, image=index + 1, device_seconds=spent))
        self._finish_if_complete(job)

    def _admit(self) -> None:
        """Begin images, in order of rank, as long as their batches have rows left."""
        begun = [run.demand for run in self._runs]
        admission, plans = Admission(begun, weigh), _PLANS_PER_TICK if begun else len(self._waiting)
        for job in list(self._waiting):
            if job.plan is not None and admission.is_full(job.plan.batch_key):
                continue
            if job.plan is None and plans <= 0:
                continue
            if job.client.source.crowded and job.loading is None:
                continue  # a model waits for memory, which is freed once images of other models are finished
            try:
                planned_before = job.plan is not None
                ready = self._preparation.of(job)
                if job.plan is not None and not planned_before:
                    plans -= 1
                if ready is not None and not self._begin_images(job, *ready, admission):
                    return
            except Exception as error:
                self._fail(job, error)

    def _begin_images(self, job: DeviceJob, models: Models, plan: Plan, admission: Admission) -> bool:
        """Begin the images of a job that are admitted. False if no image of a later job may begin either."""
        while job.begun < plan.request.num_images:
            if job.begun not in job.dropped:
                demand = plan.demands[job.begun]
                decision = admission.ask(demand)
                if decision is Decision.NO_MEMORY:
                    return False
                if decision is Decision.BATCH_FULL:
                    return True
                self._drop_idle_networks(job.client, admission, demand.memory)
                self._begin(job, plan, models)
            if job.ended:
                return True  # the image has failed already, and its request with it
            job.begun += 1
        self._waiting.remove(job)
        job.client.desk.all_begun(job)
        return True

    def _drop_idle_networks(self, client: Client, admission: Admission, memory: int) -> None:
        """Drop the auxiliary networks that no image uses, if an image that begins needs their memory."""
        in_use = admission.networks
        known = {ref(model): model for model in self._capacity().models(client)}
        idle = {model: in_use.get(key, frozenset()) for key, model in known.items()}
        if sum(idle_bytes(model, used) for model, used in idle.items()) > admission.spare(memory):
            for model, used in idle.items():
                forget_idle(model, used)

    def _begin(self, job: DeviceJob, plan: Plan, models: Models) -> None:
        """Begin an image: make its generation, which yields its first call."""
        job.client.desk.image_begins(job)
        spec, refiner = plan.resolved.pictures[job.begun], models.get("refiner")
        run = ImageRun(job, job.begun, spec, models, plan, warnings=[*plan.warnings])
        job.client.source.hold(models)
        self._preparation.let_go(job)
        self._runs.append(run)

        def begin() -> Call | Tensor:
            run.generation = picture_of(
                spec, models["model"].facts, None if refiner is None else refiner.facts, plan.images
            )
            return _sent(run.generation, None)

        self._work(run, begin, in_worker=opens_images(spec.request))

    def _work(self, run: ImageRun, work: Callable[[], Call | Tensor], *, in_worker: bool) -> None:
        """Advance a generation to its next call, in another thread if that takes long."""
        run.pending = None
        if in_worker:
            run.working = self._worker.submit(work)
            run.working.add_done_callback(lambda _: self.wake())
        else:
            self._advance(run, work)

    def _advance(self, run: ImageRun, work: Callable[[], Call | Tensor]) -> None:
        """Take over the next call of a generation, or its image."""
        try:
            made = work()
        except Exception as error:
            self._fail(run.job, error)
            return
        if isinstance(made, Tensor):
            run.image = made
        else:
            run.pending = self._pending(run, made)

    def _pending(self, run: ImageRun, call: Call) -> Waiting:
        model = run.models[call.role]
        alone = id(run) if run.request.exact else None
        return Waiting(
            group=(ref(model), alone, model.group(call)),
            rank=(*run.job.rank, run.index),
            since=self._tick,
            first=isinstance(call, EncodeText | ReadImagePrompt),
            model=model,
            call=call,
            owner=run,
        )

    def _step(self) -> None:
        """Answer one group of calls, and send each generation its answer."""
        pending = [run.pending for run in self._runs if run.pending is not None]
        for batch in list(self._batches):
            if batch.future.cancelled():
                self._batches.remove(batch)
            else:
                pending += batch.waiting()
        capacity = self._capacity()
        group = choose(pending, capacity.most)
        if not group:
            return
        passes: list[Sequence[int]] = []
        calls = [capacity.affordable(waiting) for waiting in group]
        began = time.monotonic()
        answers = execute(group[0].model, calls, passes.append)
        spent = shares(time.monotonic() - began, [rows_of(call) for call in calls])
        self._count(group, passes, spent)
        for waiting, call, answer, seconds in zip(group, calls, answers, spent, strict=True):
            if call is not waiting.call:
                answer = replace(answer, warnings=(*answer.warnings, IN_TILES))
            if isinstance(waiting.owner, Batch):
                self._answer_batch(waiting.owner, answer)
            else:
                self._answered(waiting.owner, waiting.call, answer, len(group), seconds)

    def _capacity(self) -> Capacity:
        with self._changed:  # another thread may add a client
            clients = list(self._clients)
        return Capacity(self.limits, clients, self._runs, self._batches)

    def _count(
        self, group: Sequence[Waiting], passes: Sequence[Sequence[int]], spent: Sequence[float]
    ) -> None:
        """Count forward passes for each client whose calls they have answered."""
        kind = type(group[0].call).__name__
        clients = [None if isinstance(one.owner, Batch) else one.owner.job.client for one in group]
        for client in {one for one in clients if one is not None}:
            calls = [sum(clients[index] is client for index in which) for which in passes]
            seconds = sum(share for share, one in zip(spent, clients, strict=True) if one is client)
            client.desk.count_passes(kind, [count for count in calls if count], seconds)

    def _answer_batch(self, batch: Batch, answer: Answer) -> None:
        batch.answers.append(answer)
        batch.since = self._tick
        if len(batch.answers) == len(batch.calls):
            self._batches.remove(batch)
            if batch.future.set_running_or_notify_cancel():
                batch.future.set_result(batch.answers)

    def _answered(self, run: ImageRun, call: Call, answer: Answer, batch_size: int, seconds: float) -> None:
        """Send a generation its answer."""
        job = run.job
        job.device_seconds += seconds
        run.device_seconds += seconds
        run.batch_size = batch_size
        if job.ended or job.handle.done():
            return  # the next tick drops it
        if answer.error is not None:
            self._fail(job, answer.error)
            return
        run.warnings += answer.warnings
        if isinstance(call, DecodeLatents):
            run.latents = call.latents
        if isinstance(call, Denoise) and isinstance(answer.value, Denoised):
            job.work += (call.step - run.step) * call.x.numel()
            run.step, run.latents = call.step, answer.value.latents
            self._publish_step(run, seconds)
        assert run.generation is not None
        in_worker = not isinstance(call, Denoise) and opens_images(run.request)
        self._work(run, partial(_sent, run.generation, answer.value), in_worker=in_worker)

    def _publish_step(self, run: ImageRun, seconds: float) -> None:
        job = run.job
        job.handle.publish(self._progress(run))
        job.client.desk.publish(
            StepDone(
                job=job.id,
                image=run.index + 1,
                step=run.step,
                steps=run.plan.steps,
                batch_size=run.batch_size,
                device_seconds=seconds,
            )
        )

    def _progress(self, run: ImageRun, picture: Picture | None = None) -> Progress:
        job, plan = run.job, run.plan
        images, spent = plan.request.num_images, time.monotonic() - job.started
        whole = (images - len(job.dropped)) * plan.work
        left = spent / job.work * max(0, whole - job.work) if job.work else inf
        model = run.models["model"]
        # A preview would show what the safety policy may withhold.
        latents, preview = (None, None) if model.checks_images else (run.latents, model.preview)
        return Progress(run.index + 1, images, run.step, plan.steps, latents, left, picture, preview)

    def _deliver(self) -> None:
        """Review finished images, those of one engine and size together, and make their records."""
        groups: dict[Hashable, list[ImageRun]] = defaultdict(list)
        for run in self._runs:
            if run.image is not None:
                groups[run.job.client, run.image.shape].append(run)
        for group in groups.values():
            for run, result in zip(group, reviewed(group), strict=True):
                if isinstance(result, Exception):
                    self._fail(run.job, result)
                else:
                    self._record(run, *result)

    def _record(self, run: ImageRun, image: Tensor, notes: Mapping[str, str]) -> None:
        """Make the record of a finished image, and check it by the safety policy; in another thread if files
        must be hashed or images checked."""
        if run not in self._runs:
            return  # another image of its request has failed
        self._leave(run)
        models, request = run.models, run.request

        def make() -> Picture:
            picture = models["model"].picture(
                image, run.spec, run.warnings, models.get("refiner"), run.plan.request
            )
            if notes:
                picture.record = picture.record.model_copy(update={"notes": dict(notes)})
            return models["model"].released(picture)

        hashes_files = opens_images(request) or any(one.adapters for one in run.spec.passes)
        in_another = hashes_files or models["model"].checks_images
        if in_another or not self._hashed.issuperset(models.values()):
            self._recording[run] = recorded = self._recorder.submit(make)
            recorded.add_done_callback(lambda _: self.wake())
        else:
            self._keep(run, make)

    def _keep(self, run: ImageRun, made: Callable[[], Picture]) -> None:
        """Hand over a finished image with its record."""
        try:
            picture = made()
        except ImageRefused as error:
            run.job.withheld[run.index] = error
            self._finish_if_complete(run.job)
            return
        except Exception as error:  # such as an adapter's file that was deleted; other requests continue
            self._fail(run.job, error)
            return
        self._hashed.update(run.models.values())
        job, progress = run.job, self._progress(run, picture)
        job.client.desk.image_done(job, progress, run.batch_size, run.device_seconds)
        self._finish_if_complete(job)

    def _finish_if_complete(self, job: DeviceJob) -> None:
        if job.plan is not None and job.complete and not job.ended:
            job.client.desk.finish(job, job.plan.request)
            self._forget(job)

    def _fail(self, job: DeviceJob, error: Exception) -> None:
        job.client.desk.fail(job, limner_error(error))
        self._forget(job)

    def _fail_all(self, error: Exception) -> None:
        """Fail every request after an error of the engine itself, so that no caller waits forever."""
        _LOG.error("the engine of %s failed, and all its requests with it", self.device, exc_info=error)
        fault = InternalError(f"the engine failed: {type(error).__name__}: {error}")
        fault.__cause__ = error
        jobs, runs, batches = self._jobs(), self._runs, self._batches
        self._waiting, self._runs, self._batches, self._recording = [], [], [], {}
        for run in runs:
            with suppress(Exception):
                self._release(run)
        for job in jobs:
            self._preparation.let_go(job)
            job.client.desk.fail(job, fault)
        for batch in batches:
            if batch.future.set_running_or_notify_cancel():
                batch.future.set_exception(fault)

    def _forget(self, job: DeviceJob) -> None:
        """Drop a job and all its images."""
        self._preparation.let_go(job)
        for run in [run for run in self._runs if run.job is job]:
            self._leave(run)
        for run in [run for run in self._recording if run.job is job]:
            del self._recording[run]
        if job in self._waiting:
            self._waiting.remove(job)

    def _leave(self, run: ImageRun) -> None:
        """Remove an image, finished or not."""
        self._runs.remove(run)
        self._release(run)

    def _release(self, run: ImageRun) -> None:
        job = run.job
        job.client.desk.image_leaves()
        job.client.source.let_go(run.models)
        if run.working is None:
            run.close()
        else:  # a generation cannot be closed while another thread runs it
            run.working.add_done_callback(lambda _: run.close())


def _sent(generation: Generation, value: Any) -> Call | Tensor:
    """The next call of a generation that is sent a value, or its image."""
    try:
        return generation.send(value)
    except StopIteration as done:
        return cast("Tensor", done.value)
