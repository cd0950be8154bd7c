"""Many generations at once, batched anew at every step.

At each tick the engine groups the pending calls of all generations by what can share a forward pass, answers
one group, and sends each generation its answer. So a request joins at the next step and leaves at the next
step, and rows of one batch may differ in prompt, seed, step, steps, sampler, sigma schedule and guidance.

Groups that cannot share a forward pass take turns: the one whose oldest call has waited longest goes first.
Within a group, and for a place in it, requests go by priority, then by age. As many pictures of one size are
begun as share a forward pass; those behind wait for a place. A request whose networks do not fit into memory
beside those at work waits until they do, and all behind it wait too.

Models are read, and networks that requests name beside them are fetched, in other threads than the one that
owns the device, which goes on with what is there.
"""

import atexit
import threading
import time
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from math import inf, lcm, prod

import torch

from limner.errors import (
    DeadlineExceeded,
    EngineClosed,
    OutOfMemory,
    QueueFull,
)
from limner.request import GenerationRequest

from .backends.base import Guest
from .calls import (
    Answer,
    Call,
    DecodeLatents,
    Denoise,
    Denoised,
    EncodeImage,
    EncodeText,
    ReadImagePrompt,
    Role,
)
from .generation import Generation, passes_of, picture_of, rows_of, script_of
from .handle import Handle, Progress
from .idle import elsewhere, idle
from .limits import Limits
from .metadata import Picture
from .model import Model
from .models import ModelCache
from .result import GenerationResult

_LINGER = 0.05  # seconds that the idle thread stays: its OpenMP workers slow those of other threads down
_IN_TILES = "decoded or encoded in tiles, as the memory does not suffice for the whole"
_FETCHES = 16  # at once: they wait for the hub, and what is at hand must not wait behind them
_STRETCH = 4  # how many times its own length a context may be repeated to fit others


@dataclass(frozen=True)
class Stats:
    """What an engine has done and has to do.

    Attributes:
        waiting: requests none of whose pictures has begun.
        drawing: pictures that have begun.
        done, failed, cancelled: requests that have ended.
        forwards, rows: forward passes by kind of call, and calls answered in them.
        seconds: spent in forward passes.
    """

    waiting: int = 0
    drawing: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    forwards: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(eq=False)
class _Job:
    """A request on its way."""

    handle: Handle
    rank: tuple[int, int]  # priority, the highest first, then age
    deadline: float
    loading: Future[list[Model]] | None = None
    fetching: tuple[Model, Future[None]] | None = None  # what it names beside this model
    plan: "_Resolved | None" = None  # once its model was there
    begun: int = 0  # pictures
    since: float = 0.0  # when the first began
    work: int = 0  # done: numbers of latents in all steps of all pictures
    pictures: dict[int, Picture] = field(default_factory=dict)

    def expired(self) -> bool:
        return time.monotonic() > self.deadline

    def awaits(self) -> bool:
        """Whether something goes on for it in another thread."""
        if self.loading is not None:
            return not self.loading.done()
        return self.fetching is not None and not self.fetching[1].done()


@dataclass(frozen=True)
class _Resolved:
    """A request with its defaults filled in, and what follows from it.

    Attributes:
        steps: of one of its pictures.
        work: numbers of latents in all of these.
        rows: of the U-Net that it takes at most.
        place: what pictures must have in common with it to share its forward passes.
        guests: the networks that it names beside its model.
        pass_bytes: what its most demanding forward pass makes.
        told: the warnings that it brings itself.
    """

    request: GenerationRequest
    steps: int
    work: int
    rows: int
    place: Hashable
    guests: frozenset[Guest]
    pass_bytes: int
    told: tuple[str, ...]


@dataclass(eq=False)
class _Drawing:
    """A picture on its way."""

    job: _Job
    index: int
    request: GenerationRequest  # of this picture alone
    models: Mapping[Role, Model]
    generation: Generation
    call: Call
    ready: int = 0  # the tick that the call was made in
    step: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def rank(self) -> tuple[int, int, int]:
        return *self.job.rank, self.index

    @property
    def model(self) -> Model:
        """The one that its call is for."""
        return self.models[self.call.role]

    @property
    def group(self) -> Hashable:
        return id(self.model), self.request.exact and id(self), self.model.group(self.call)


class Engine:
    """Runs any number of requests together. Safe to use from any thread.

    One thread owns the device. It starts with the first request and ends a little after the last.

        with Engine(limner.load("picturebook")) as engine:
            handles = [engine.submit(request) for request in requests]
            results = [handle.result() for handle in handles]

    Leaving the block waits for what was submitted, or cancels it if the block raised.

    Args:
        models: one model for every request, or a cache that the requests' models are loaded into.
        limits: by default most of the device's memory, and estimates of what pays.
        max_waiting: how many requests may wait at once.
    """

    def __init__(
        self,
        models: Model | ModelCache | None = None,
        *,
        limits: Limits | None = None,
        max_waiting: int = 4096,
    ) -> None:
        self._models = ModelCache() if models is None else models
        self._limits, self._max_waiting = limits, max_waiting
        self._changed = threading.Condition()
        # Guarded by `_changed`:
        self._inbox: list[_Job] = []
        self._unfinished = 0
        self._closed = False
        self._fetches: dict[Hashable, Future[None]] = {}  # under way, by model and names
        self._thread: threading.Thread | None = None  # that looks at the inbox
        self._ages = count()
        # The thread's own:
        self._waiting: list[_Job] = []
        self._drawings: list[_Drawing] = []
        self._tick = 0
        self._ended: dict[str, int] = defaultdict(int)
        self._forwards: dict[str, int] = defaultdict(int)
        self._rows: dict[str, int] = defaultdict(int)
        self._seconds = 0.0
        self._loader: ThreadPoolExecutor | None = None
        self._fetcher: ThreadPoolExecutor | None = None

    def submit(
        self, request: GenerationRequest, *, priority: int = 0, timeout: float | None = None
    ) -> Handle:
        """Have a request drawn.

        Args:
            request: fields at None take the defaults of its model.
            priority: higher goes first.
            timeout: seconds until it fails with `DeadlineExceeded` if it is not done.

        Raises:
            QueueFull: too many requests are waiting.
            EngineClosed: the engine was drained or closed.
        """
        handle = Handle(request)
        deadline = inf if timeout is None else time.monotonic() + timeout
        with self._changed:
            if self._closed:
                raise EngineClosed("this engine takes no more requests", hint="make a new one")
            if len(self._inbox) + len(self._waiting) >= self._max_waiting:
                raise QueueFull(
                    f"{self._max_waiting} requests are waiting already", hint="try again when some are done"
                )
            self._inbox.append(_Job(handle, (-priority, next(self._ages)), deadline))
            self._unfinished += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="limner-engine", daemon=True)
                self._thread.start()
                atexit.register(self.close)  # a process must not end in the middle of a forward pass
            self._changed.notify_all()
        handle.when_done(self._wake)
        return handle

    def stats(self) -> Stats:
        """What it has done so far, and has to do."""
        with self._changed:
            return Stats(
                waiting=len(self._inbox) + len(self._waiting),
                drawing=len(self._drawings),
                forwards=dict(self._forwards),
                rows=dict(self._rows),
                seconds=self._seconds,
                **self._ended,
            )

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, and wait for those that were taken. False after `timeout` seconds."""
        with self._changed:
            self._closed = True
            return self._changed.wait_for(lambda: not self._unfinished, timeout)

    def close(self) -> None:
        """Take no more requests, cancel those that were taken, and wait for the step that is being made."""
        with self._changed:
            self._closed = True
            jobs, thread = [*self._inbox, *self._jobs()], self._thread
        for job in jobs:
            job.handle.cancel()
        self._wake()
        if thread not in (None, threading.current_thread()):
            thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self.drain()
        else:
            self.close()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _arrived(self, fetched: Hashable) -> None:
        with self._changed:
            del self._fetches[fetched]
            self._changed.notify_all()

    # What follows runs in the engine's thread.

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._inbox and not self._drawings:
                    self._changed.wait_for(self._has_news, _LINGER)
                    if not self._inbox and not self._waiting:
                        self._thread = None
                        atexit.unregister(self.close)
                        return
                self._waiting = sorted(self._waiting + self._inbox, key=lambda job: job.rank)
                self._inbox.clear()
            self._tick += 1
            try:
                self._drop()
                self._admit()
                self._step()
            except Exception as error:  # of the engine's own making; nobody may wait forever for it
                for job in self._jobs():
                    self._end(job, "failed", error)

    def _has_news(self) -> bool:
        if self._inbox or (self._closed and not self._waiting):
            return True
        return any(job.handle.done() or job.expired() or not job.awaits() for job in self._waiting)

    def _jobs(self) -> list[_Job]:
        """All that have not ended, each once."""
        return list(dict.fromkeys([*self._waiting, *(drawing.job for drawing in self._drawings)]))

    def _drop(self) -> None:
        """Let go of what was cancelled or is late."""
        for job in self._jobs():
            if job.handle.done():
                self._end(job, "cancelled")
            elif job.expired():
                late = DeadlineExceeded("the request was not done in the time it was given")
                self._end(job, "failed", late)

    def _admit(self) -> None:
        """Begin pictures, in order of rank, as long as there is a place for them."""
        if isinstance(self._models, ModelCache) and self._models.crowded:
            return  # a model waits for room, which there is once the drawings of others are done
        taken: dict[Hashable, int] = defaultdict(int)
        for drawing in self._drawings:
            assert drawing.job.plan is not None
            taken[drawing.job.plan.place] += drawing.job.plan.rows
        full = set[Hashable]()
        for job in list(self._waiting):
            if job.plan is not None and job.plan.place in full:
                continue
            try:
                models = self._models_of(job)
                if models is None or not self._fetched(job, models["model"]):
                    continue
                model = models["model"]
                plan = job.plan = job.plan or self._resolved(job, models)
                height, width = model.latent_shape(plan.request)[2:]
                most = self._limits_of(model).rows_of(model, height, width)
                while job.begun < plan.request.num_images and plan.place not in full:
                    if taken[plan.place] + plan.rows > most:
                        full.add(plan.place)
                    elif not self._make_room(models, plan):
                        return
                    else:
                        taken[plan.place] += plan.rows
                        self._begin(job, plan.request, models)
            except Exception as error:
                self._end(job, "failed", error)
            else:
                if job.begun == plan.request.num_images:
                    self._waiting.remove(job)

    def _models_of(self, job: _Job) -> dict[Role, Model] | None:
        """Its models, if they are in memory; otherwise they are being loaded.

        They are looked up whenever they are needed, as they may have been forgotten in the meantime.
        """
        models, request = self._models, job.handle.request
        wanted = _wanted(request)
        if job.loading is not None and job.loading.done():
            loading, job.loading = job.loading, None
            return dict(zip(wanted, loading.result(), strict=True))
        found: dict[Role, Model | None]
        if isinstance(models, Model):
            found = {role: models if role == "model" else models.find_refiner(request) for role in wanted}
        else:
            found = {role: models.find(one) for role, one in wanted.items()}
        there = {role: model for role, model in found.items() if model is not None}
        if len(there) == len(wanted):
            return there
        if job.loading is None:
            self._loader = self._loader or ThreadPoolExecutor(1, "limner-loader")
            if isinstance(models, Model):
                job.loading = self._loader.submit(lambda: [models, models.refiner(request)])
            else:
                job.loading = self._loader.submit(models.get_all, list(wanted.values()))
            job.loading.add_done_callback(lambda _: self._wake())
        return None

    def _fetched(self, job: _Job, model: Model) -> bool:
        """Whether the networks that its request names beside a model are on this machine; otherwise they are
        being fetched, once for all that ask. Raises as `Model.fetch`."""
        request = job.handle.request
        if not (request.controls or request.image_prompts):
            return True
        if job.fetching is None or job.fetching[0] is not model:
            adapters = tuple((prompt.model, prompt.image_encoder) for prompt in request.image_prompts)
            key = model, tuple(control.model for control in request.controls), adapters
            with self._changed:
                fetch = self._fetches.get(key)
                if fetch is None:
                    self._fetcher = self._fetcher or ThreadPoolExecutor(_FETCHES, "limner-fetcher")
                    fetch = self._fetches[key] = self._fetcher.submit(model.fetch, request)
                    fetch.add_done_callback(lambda _: self._arrived(key))
            job.fetching = model, fetch
        if not job.fetching[1].done():
            return False
        job.fetching[1].result()
        return True

    def _resolved(self, job: _Job, models: Mapping[Role, Model]) -> _Resolved:
        """Raises InvalidRequest, and OutOfMemory for what could never be drawn."""
        model = models["model"]
        request = model.resolve(job.handle.request)
        if "refiner" in models:
            models["refiner"].check_refines(model, request)
        pictures = range(request.num_images if request.wildcards else 1)  # else all have the same prompts
        owns = (model.worded(request.of_picture(index)) for index in pictures)
        passes = [one for own in owns for one in passes_of(own, model.scheduler)]
        rows = [rows_of(script_of(one.request, one.plan, model.traits, one.done)) for one in passes]
        shapes, limits = [model.latent_shape(one.request) for one in passes], self._limits_of(model)
        controls, guests = len(request.controls), model.guests_of(request)
        pass_bytes = max(
            limits.most_for(model, shape, count, controls) for shape, count in zip(shapes, rows, strict=True)
        )
        steps, done = passes[-1].steps, passes[-1].done or 0
        work = done * prod(shapes[0]) + (steps - done) * prod(shapes[-1])
        told = idle(request, passes, model.traits)
        if isinstance(self._models, Model):
            named = {"model": model.name, "revision": model.revision, "variant": model.variant}
            told += elsewhere(job.handle.request, named)
        plan = _Resolved(request, steps, work, max(rows), (id(model), shapes[0]), guests, pass_bytes, told)
        needed = _needed([(models, plan)])
        if needed > limits.memory:
            width, height = request.hires_size or (request.width, request.height)
            beside = " and the networks named beside the model" if guests else ""
            raise OutOfMemory(
                f"{width}x{height} pixels{beside} take about {needed / 1e9:.1f} GB; "
                f"{limits.memory / 1e9:.1f} GB may be used",
                hint=f"ask for fewer pixels{', or name fewer or smaller networks' if guests else ''}",
            )
        return plan

    def _make_room(self, models: Mapping[Role, Model], plan: _Resolved) -> bool:
        """Let go of networks beside the models' own that no picture needs, this one included, if they are in
        the way. False if there is no room even so, until some picture that has begun is done with its own."""
        together = [(models, plan)]
        for drawing in self._drawings:
            assert drawing.job.plan is not None
            together.append((drawing.models, drawing.job.plan))
        spare, at_work = self._limits_of(models["model"]).memory - _needed(together), _at_work(together)
        if spare < 0 and self._drawings and any(at_work.values()):
            return False
        if sum(model.backend.idle_bytes(guests) for model, guests in at_work.items()) > spare:
            for model, guests in at_work.items():
                model.backend.forget_guests(but=guests)
        return True

    def _limits_of(self, model: Model) -> Limits:
        if self._limits is None:
            self._limits = Limits.of(model.backend.device)
        return self._limits

    def _begin(self, job: _Job, request: GenerationRequest, models: Mapping[Role, Model]) -> None:
        assert request.seed is not None
        job.since = job.since or time.monotonic()
        own = models["model"].worded(request.of_picture(job.begun))
        generation = picture_of(own, models["model"], refiner=models.get("refiner"))
        drawing = _Drawing(job, job.begun, own, models, generation, next(generation), self._tick)
        assert job.plan is not None
        drawing.warnings += job.plan.told
        self._drawings.append(drawing)
        if isinstance(self._models, ModelCache):
            for model in models.values():
                self._models.hold(model)
        job.begun += 1

    def _leave(self, drawing: _Drawing) -> None:
        """Take a picture out, finished or not."""
        drawing.generation.close()
        self._drawings.remove(drawing)
        if isinstance(self._models, ModelCache):
            for model in drawing.models.values():
                self._models.let_go(model)

    def _step(self) -> None:
        """Answer one group of calls."""
        group = self._choose()
        if not group:
            return
        began = time.monotonic()
        model = group[0].model
        calls = [self._affordable(model, drawing.call) for drawing in group]
        answers = self._answer(model, calls)
        self._seconds += time.monotonic() - began
        for drawing, call, answer in zip(group, calls, answers, strict=True):
            if call is not drawing.call:
                drawing.warnings.append(_IN_TILES)
            if not drawing.job.handle.done():  # else the next tick drops it
                self._advance(drawing, answer)

    def _choose(self) -> list[_Drawing]:
        """The calls to answer next: prompts first, as they are short and let others join, then by waiting."""
        groups: dict[Hashable, list[_Drawing]] = defaultdict(list)
        for drawing in sorted(self._drawings, key=lambda drawing: drawing.rank):
            groups[drawing.group].append(drawing)
        if not groups:
            return []

        def urgency(group: list[_Drawing]) -> tuple[bool, int, tuple[int, ...]]:
            is_prompt = isinstance(group[0].call, EncodeText | ReadImagePrompt)
            return not is_prompt, min(drawing.ready for drawing in group), group[0].rank

        group = min(groups.values(), key=urgency)
        model = group[0].model
        call, limits = self._affordable(model, group[0].call), self._limits_of(model)
        most = min(limits.calls_of(model, call), self._spare(model) // max(1, limits.needs(model, call)))
        return _compatible(group)[: max(1, most)]

    def _spare(self, model: Model) -> int:
        """Bytes that forward passes may take beside the weights."""
        resident = model.backend.bytes if isinstance(self._models, Model) else self._models.bytes
        return self._limits_of(model).memory - resident

    def _affordable(self, model: Model, call: Call) -> Call:
        """The call, or where it would not fit, one like it that takes less memory."""
        if self._limits_of(model).needs(model, call) > self._spare(model):
            return _tiled(call) or call
        return call

    def _answer(self, model: Model, calls: Sequence[Call]) -> list[Answer]:
        """Answer calls together; if that fails, by halves, until the one at fault stands alone."""
        kind = type(calls[0]).__name__
        self._forwards[kind] += 1
        self._rows[kind] += len(calls)
        try:
            return model.answer(calls)
        except Exception as error:
            failure = error
        if len(calls) == 1:
            told, tiled = _told(failure), _tiled(calls[0])
            if isinstance(told, OutOfMemory) and tiled is not None:
                [answer] = self._answer(model, [tiled])
                return [replace(answer, warnings=(*answer.warnings, _IN_TILES))]
            return [Answer(error=told)]
        middle = len(calls) // 2
        return self._answer(model, calls[:middle]) + self._answer(model, calls[middle:])

    def _advance(self, drawing: _Drawing, answer: Answer) -> None:
        """Send a generation its answer."""
        job = drawing.job
        if answer.error is not None:
            self._end(job, "failed", answer.error)
            return
        drawing.warnings += answer.warnings
        call = drawing.call
        try:
            drawing.call = drawing.generation.send(answer.value)
            drawing.ready = self._tick
        except StopIteration as done:
            assert isinstance(call, DecodeLatents)
            self._finish(drawing, done.value, call.latents)
        except Exception as error:
            self._end(job, "failed", _told(error))
        if isinstance(call, Denoise) and isinstance(answer.value, Denoised):
            job.work += (call.step - drawing.step) * call.x.numel()
            drawing.step = call.step
            job.handle.publish(self._progress(drawing, answer.value.latents))

    def _progress(self, drawing: _Drawing, latents: torch.Tensor, picture: Picture | None = None) -> Progress:
        job = drawing.job
        assert job.plan is not None
        steps, images, spent = job.plan.steps, job.plan.request.num_images, time.monotonic() - job.since
        left = spent / job.work * (images * job.plan.work - job.work) if job.work else inf
        return Progress(drawing.index + 1, images, drawing.step, steps, latents, left, picture)

    def _finish(self, drawing: _Drawing, image: torch.Tensor, latents: torch.Tensor) -> None:
        job = drawing.job
        assert job.plan is not None
        models = drawing.models
        try:
            picture = models["model"].picture(
                image, drawing.request, drawing.warnings, models.get("refiner"), job.plan.request
            )
        except Exception as error:  # such as an adapter's file that is gone; no concern of others
            self._end(job, "failed", _told(error))
            return
        job.pictures[drawing.index] = picture
        self._leave(drawing)
        job.handle.publish(self._progress(drawing, latents, picture))
        if len(job.pictures) == job.plan.request.num_images:
            images = tuple(picture for _, picture in sorted(job.pictures.items()))
            told = dict.fromkeys(warning for image in images for warning in image.record.warnings)
            job.handle.finish(GenerationResult(images, job.plan.request, tuple(told)))
            self._end(job, "cancelled" if job.handle.cancelled() else "done")

    def _end(self, job: _Job, how: str, error: Exception | None = None) -> None:
        """Forget a job, telling its handle if it failed."""
        for drawing in [drawing for drawing in self._drawings if drawing.job is job]:
            self._leave(drawing)
        if job in self._waiting:
            self._waiting.remove(job)
        if error is not None:
            job.handle.fail(error)
        with self._changed:
            self._ended[how] += 1
            self._unfinished -= 1
            self._changed.notify_all()


def _wanted(request: GenerationRequest) -> dict[Role, GenerationRequest]:
    """The models of a request, each as a request for it alone."""
    wanted: dict[Role, GenerationRequest] = {"model": request}
    if request.refiner is not None:
        named = {"model": request.refiner, "revision": None, "variant": request.variant}
        wanted["refiner"] = request.model_copy(update=named)
    return wanted


_Tenants = Sequence[tuple[Mapping[Role, Model], _Resolved]]
"""Pictures that are in memory together: of each its models, and its plan."""


def _at_work(tenants: _Tenants) -> dict[Model, set[Guest]]:
    """The models of pictures, and the networks that are needed beside each."""
    guests: dict[Model, set[Guest]] = {model: set() for models, _ in tenants for model in models.values()}
    for models, plan in tenants:
        guests[models["model"]] |= plan.guests
    return guests


def _needed(tenants: _Tenants) -> int:
    """Bytes that pictures take in memory together, about: weights, and the most demanding forward pass."""
    weights = sum(model.backend.bytes_with(guests) for model, guests in _at_work(tenants).items())
    return weights + max(plan.pass_bytes for _, plan in tenants)


def _compatible(group: list[_Drawing]) -> list[_Drawing]:
    """Those of a group, the first included, whose contexts need not be repeated beyond reason."""
    if not isinstance(group[0].call, Denoise):
        return group
    chosen, joint = list[_Drawing](), 1
    for drawing in group:
        assert isinstance(drawing.call, Denoise)
        lengths = [drawing.call.conditionings[name].context.shape[1] for name in drawing.call.branches]
        together = lcm(joint, *lengths)
        if not chosen or together <= _STRETCH * max(joint, *lengths):
            chosen.append(drawing)
            joint = together
    return chosen


def _tiled(call: Call) -> Call | None:
    """A call that does the same piece by piece, if there is one."""
    return (
        replace(call, tiled=True)
        if isinstance(call, DecodeLatents | EncodeImage) and not call.tiled
        else None
    )


def _told(error: Exception) -> Exception:
    """The error as the handle of its request raises it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        told = OutOfMemory("there is not enough memory for this picture", hint="ask for fewer pixels")
        told.__cause__ = error
        return told
    return error
