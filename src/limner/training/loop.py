"""The training loop: one function to read from top to bottom, for everything Limner trains.

A `Task` defines what is trained, on which data and by which loss; `train` does the rest: mixed precision, the
lr schedule, gradient clipping, the moving average of the weights, checkpoints, samples and metrics.

Everything random in step k comes from generators seeded by (seed, k) alone, so a run that was stopped and
resumed computes the same as one that was not: bit for bit with deterministic kernels on the same machine.
"""

import json
import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from limner.backends.device import pick_device
from limner.files import only_writer, whole_file
from limner.safety.images import load_checkers, shown
from limner.safety.policy import load_policy

from .data import seed_of
from .metrics import MetricsLog, Shown
from .sheets import Sheet
from .state import TrainState, load_averages

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the loop, the same for every task.

    Attributes:
        steps: Number of optimizer steps of the whole run; the lr schedule spans them.
        lr: Peak learning rate of AdamW (Loshchilov & Hutter 2019).
        seed: Seed of the noise in losses.
        lr_schedule: Learning rate after the warm-up: "cosine" falls to a hundredth of `lr`, "constant" stays.
        warmup: Number of steps over which the learning rate rises from 0.
        betas: Decay of AdamW's two moments.
        weight_decay: Weight decay of matrices and convolutions; biases and norms have none.
        clip_norm: Largest global norm of the gradients; larger ones are scaled down.
        ema_decay: Decay of the exponential moving average of the weights, which is exported; it rises as
            min(ema_decay, (1 + step) / (10 + step)).
        accumulate: Number of batches whose gradients are averaged into one step.
        precision: "bf16" computes in bfloat16 where that is safe (autocast) and keeps fp32 weights.
        channels_last: Whether convolutions use this memory layout; faster on GPUs, slower for narrow networks
            on CPUs.
        gradient_checkpointing: Whether the backward pass recomputes activations: less memory, more time.
        device: Device; "auto" is CUDA if there is one, otherwise the CPU.
        checkpoint_minutes: Minutes between checkpoints.
        sample_minutes: Minutes between validations with samples.
        log_steps: Number of steps per line of metrics.
        stop_minutes: Minutes after which this process stops, with a checkpoint to resume from.
    """

    steps: int
    lr: float
    seed: int = 0
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = 200
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    accumulate: int = 1
    precision: Literal["bf16", "fp32"] = "bf16"
    channels_last: bool = False
    gradient_checkpointing: bool = False
    device: str = "auto"
    checkpoint_minutes: float = 3.0
    sample_minutes: float = 5.0
    log_steps: int = 20
    stop_minutes: float | None = None

    # Settings without effect on the result: a resumed run may have others.
    _WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(
        (
            "device",
            "checkpoint_minutes",
            "sample_minutes",
            "log_steps",
            "stop_minutes",
            "gradient_checkpointing",
        )
    )

    def identity(self) -> dict[str, Any]:
        """The settings that determine the result, as JSON; a resumed run must have the same."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self._WITHOUT_EFFECT}
        return {**kept, "betas": list(self.betas)}

    def lr_at(self, step: int) -> float:
        """Learning rate of one step: linear warm-up, then the lr schedule over the remaining steps."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.lr_schedule == "constant":
            return self.lr
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


class Task(ABC):
    """One thing that can be trained.

    Attributes:
        modules: Networks that are trained, by name; fp32.
        frozen: Networks that the loss needs and that are not trained, except for parts that are in `modules`.
        identity: Kind and geometry, as JSON; a run is never resumed with another.
        settings: Everything else that shapes the result, as JSON: data, batch size, weights of losses.
    """

    modules: dict[str, nn.Module]
    frozen: dict[str, nn.Module]
    identity: dict[str, Any]
    settings: dict[str, Any]

    def prepare(self) -> None:  # noqa: B027
        """Make what batches need, such as latents; called with the networks on their device."""

    @abstractmethod
    def batch(self, index: int) -> Batch:
        """The batch number `index`, on the CPU: a function of the task and `index` alone. Runs in a thread.

        A step of the optimizer takes `TrainConfig.accumulate` batches.
        """

    @abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and detached scalars for the log."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Metrics on held-out data; called with the averaged weights."""

    @abstractmethod
    def samples(self) -> Sheet | None:
        """Images that show the state of training; called with the averaged weights."""

    @abstractmethod
    def export(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write what was trained, in `dtype` or fp32; called with the averaged weights."""

    @property
    def device(self) -> torch.device:
        return next(next(iter(self.modules.values())).parameters()).device


def train(
    task: Task,
    config: TrainConfig,
    run_dir: Path,
    *,
    resume: bool | None = None,
    options: Mapping[str, Any] | None = None,
    safety: str | None = None,
) -> bool:
    """Train until `config.steps`, then export to `run_dir/export`.

    Args:
        resume: None resumes the run in `run_dir` if task and config are the same, and raises if they are not;
            True resumes with changed settings too (more steps, another lr, more data); False starts over and
            deletes the checkpoints.
        options: JSON to keep as `run_dir/options.json`, from which a program can build the task again.
        safety: Safety policy, as of `limner.load`, that each image of samples must pass: what it blurs is
            blurred, and what it blocks is grey.

    Returns:
        True if the run is complete; False if it was stopped (Ctrl-C, SIGTERM, `stop_minutes`), with a
        checkpoint to resume from.

    Raises:
        InvalidTrainingState: The state in `run_dir` is broken or of another run, or the loss not finite.
        OutputError: Another process trains in `run_dir`.
        LimnerError: The safety policy cannot be used, or a checker that it names.
    """
    shown_by = _shown_by(safety)
    run_dir.mkdir(parents=True, exist_ok=True)
    with only_writer(run_dir / ".lock", "training run"):
        return _train(task, config, run_dir, resume, options, shown_by)


def _shown_by(safety: str | None) -> Shown:
    """What a safety policy leaves of images."""
    if safety is None:
        return tuple
    policy = load_policy(safety)
    return partial(shown, policy=policy, checkers=load_checkers(policy))


def _train(
    task: Task,
    config: TrainConfig,
    run_dir: Path,
    resume: bool | None,
    options: Mapping[str, Any] | None,
    shown_by: Shown,
) -> bool:
    """As `train`, in a folder that no other process trains in."""
    device = pick_device(config.device)
    for module in (*task.modules.values(), *task.frozen.values()):
        module.to(device)
        if config.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = config.gradient_checkpointing  # type: ignore[assignment]
    for module in task.frozen.values():
        module.eval().requires_grad_(False)
    for module in task.modules.values():
        module.train().requires_grad_(True)
    task.prepare()
    named = {
        f"{m}.{p}": param for m, module in task.modules.items() for p, param in module.named_parameters()
    }
    params = list(named.values())

    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in params if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )
    identity = {"task": task.identity, "settings": {**task.settings, **config.identity()}}
    state = TrainState(run_dir / "checkpoints", named, optimizer, identity)
    step = start = state.resume(resume)
    if options is not None:
        with whole_file(run_dir / "options.json") as temporary:
            temporary.write_text(json.dumps(options, indent=1) + "\n", encoding="utf-8")

    generator = torch.Generator(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
    began = saved = sampled = time.monotonic()
    with (
        MetricsLog(run_dir, start, config.steps, config.log_steps, shown_by) as log,
        stop_signals() as stopped,
        prefetched(task.batch, start * config.accumulate, config.steps * config.accumulate) as batches,
    ):
        while step < config.steps and not stopped.is_set():
            lr = config.lr_at(step)
            for group in optimizer.param_groups:
                group["lr"] = lr
            for part in range(config.accumulate):
                batch = {name: value.to(device, non_blocking=True) for name, value in next(batches).items()}
                generator.manual_seed(seed_of(config.seed, step, part))
                with autocast:
                    loss, metrics = task.loss(batch, generator)
                (loss / config.accumulate).backward()  # type: ignore[no-untyped-call]
                log.add({"loss": loss.detach(), **metrics})
            norm = nn.utils.clip_grad_norm_(params, config.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state.average(min(config.ema_decay, (1 + step) / (10 + step)))
            step += 1
            log.step(step, {"lr": lr, "grad_norm": norm.detach()})

            now = time.monotonic()
            if config.stop_minutes is not None and now - began > 60 * config.stop_minutes:
                stopped.set()
            done = step == config.steps or stopped.is_set()
            if done or now - saved > 60 * config.checkpoint_minutes:
                log.require_finite()
                state.save(step)
                saved = now
            if step == config.steps or (now - sampled > 60 * config.sample_minutes and not done):
                with state.averaged(), torch.no_grad(), autocast:
                    log.report(step, task.validate(), task.samples())
                sampled = time.monotonic()

    if step < config.steps:
        return False
    with state.averaged(), torch.no_grad():
        task.export(run_dir / "export")
    return True


def export(task: Task, run_dir: Path, folder: Path, dtype: torch.dtype | None = None) -> int:
    """Write the averaged weights of a run's newest checkpoint, finished or not; returns its step.

    Raises:
        InvalidTrainingState: There is no checkpoint, or it is of another task.
    """
    step, averages = load_averages(run_dir / "checkpoints", task.identity)
    for name, module in task.modules.items():
        module.load_state_dict({key: averages[f"{name}.{key}"] for key in module.state_dict()})
    with torch.no_grad():
        task.export(folder, dtype)
    return step


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that the step is finished and its state saved.

    A second signal interrupts at once. Python delivers signals to the main thread only: elsewhere nothing
    sets the event.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def prefetched(
    batch: Callable[[int], Batch], start: int, stop: int, ahead: int = 4
) -> Iterator[Iterator[Batch]]:
    """`batch(start), batch(start + 1), ...`, made in another thread while the network computes."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:

        def batches() -> Iterator[Batch]:
            waiting: deque[Future[Batch]] = deque()
            for index in range(start, stop):
                waiting.append(thread.submit(batch, index))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        try:
            yield batches()
        finally:
            thread.shutdown(wait=True, cancel_futures=True)
