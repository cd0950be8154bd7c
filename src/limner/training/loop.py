"""The training loop: one function to read from top to bottom, for everything Limner trains.

A `Task` says what is trained, on what and by which loss; `train` does the rest: mixed precision,
the lr schedule, gradient clipping, the average of the weights, checkpoints, samples and metrics.

Everything random in step k comes from generators seeded by (seed, k) and by nothing else, so a run that
was stopped and resumed goes through the same losses to the same weights, bit for bit, as one that was not.
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
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from limner.device import pick_device

from .data import seed_of
from .metrics import MetricsLog
from .state import TrainState, load_averages

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class TrainConfig:
    """How to train, whatever is trained.

    Attributes:
        steps: optimizer steps of the whole run; the lr schedule spans them.
        lr: peak learning rate of AdamW (Loshchilov & Hutter 2019).
        lr_schedule: after the warm-up, "cosine" falls to a hundredth of `lr`, "constant" stays.
        warmup: steps over which the learning rate rises from 0.
        weight_decay: on matrices and convolutions only, never on biases and norms.
        clip_norm: gradients are scaled down to this global norm.
        ema_decay: of the exponential moving average of the weights, which is what is exported;
            warmed up as min(ema_decay, (1 + step) / (10 + step)).
        accumulate: batches whose gradients are averaged into one step.
        precision: "bf16" computes in bfloat16 where that is safe (autocast) and keeps fp32 weights.
        channels_last: memory layout of convolutions; faster on GPUs, slower for narrow networks on CPUs.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        device: "auto" is CUDA where there is one, else the CPU.
        checkpoint_minutes, sample_minutes: how often the state and samples are written.
        log_steps: one line of metrics per so many steps.
        stop_minutes: stop after so many minutes of this process, with a checkpoint to resume from.
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

    _PRACTICAL: ClassVar[frozenset[str]] = frozenset(
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
        """What a run resumes with unless it is told otherwise, as JSON: all that shapes the result."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self._PRACTICAL}
        return {**kept, "betas": list(self.betas)}

    def lr_at(self, step: int) -> float:
        """Learning rate of one step: linear warm-up, then the lr schedule over what is left."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.lr_schedule == "constant":
            return self.lr
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


class Task(ABC):
    """One thing that can be trained.

    Attributes:
        modules: what is trained, by name; fp32.
        frozen: networks that only help: they move to the device and are not trained, but for what of
            `modules` stands inside them.
        identity: JSON that a resumed run must share with the run it resumes: kind and geometry.
        settings: JSON of everything else that shapes the result: data, batch size, weights of losses.
    """

    modules: dict[str, nn.Module]
    frozen: dict[str, nn.Module]
    identity: dict[str, Any]
    settings: dict[str, Any]

    def prepare(self) -> None:  # noqa: B027
        """What must be there before the first batch, made where the networks then are."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """The batch of one step, on the CPU: a function of the task and `step` alone. Runs in a thread."""

    @abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and detached scalars worth watching."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Figures on data that training does not see, with the averaged weights."""

    @abstractmethod
    def samples(self) -> Image.Image | None:
        """A picture that shows how far training is, with the averaged weights."""

    @abstractmethod
    def export(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write what was trained in the hub's layout, with the averaged weights, in `dtype` or fp32."""

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
) -> bool:
    """Train until `config.steps`, then export to `run_dir/export`.

    Args:
        resume: None resumes what `run_dir` holds if task and config are the same, and raises if they
            are not; True resumes with changed settings too (more steps, another lr, more data);
            False starts afresh over whatever is there.
        options: JSON kept as `run_dir/options.json`, by which a program can build the task again.

    Returns:
        True when the run is complete; False when it was stopped (Ctrl-C, SIGTERM, `stop_minutes`)
        with a checkpoint from which it resumes.

    Raises:
        InvalidTrainingState: the state in `run_dir` is broken or of another run, or the loss not finite.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
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
        (run_dir / "options.json").write_text(json.dumps(options, indent=1) + "\n")

    generator = torch.Generator(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
    began = saved = sampled = time.monotonic()
    with (
        MetricsLog(run_dir, start, config.steps, config.log_steps) as log,
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
        InvalidTrainingState: there is no checkpoint, or it is of another task.
    """
    step, averages = load_averages(run_dir / "checkpoints", task.identity)
    for name, module in task.modules.items():
        module.load_state_dict({key: averages[f"{name}.{key}"] for key in module.state_dict()})
    with torch.no_grad():
        task.export(folder, dtype)
    return step


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that a step is finished and its state saved.

    A second one interrupts at once. Outside the main thread, where Python delivers no signals, nothing
    sets it.
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
    """`batch(start), batch(start + 1), …`, made in a thread of its own while the network computes."""
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
