"""The metrics of a run: logged events or a progress bar, `metrics.jsonl`, TensorBoard, sample images."""

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from limner.errors import InvalidTrainingState
from limner.files import whole_file

from .sheets import Sheet

_LOG = logging.getLogger("limner.training")

Shown = Callable[[Sequence[Image.Image]], Sequence[Image.Image]]
"""What is written of images, in their order."""

_LOG_SECONDS = 15.0  # between events, if stderr is no terminal with a progress bar


class MetricsLog:
    """Averages metrics over `every` steps and writes them to all places.

    Args:
        run_dir: Folder for `metrics.jsonl`, `samples/` and `tensorboard/` (if TensorBoard is installed).
        start: Step that training starts from; lines of later steps, from before a resume, are removed.
        total: Number of steps of the whole run.
        every: Number of steps per line of metrics.
        shown: What is written of images of samples, in their order.
    """

    def __init__(self, run_dir: Path, start: int, total: int, every: int, shown: Shown = tuple) -> None:
        self.run_dir, self.total, self.every, self.shown = run_dir, total, every, shown
        self.file = run_dir / "metrics.jsonl"
        self.sums: dict[str, Tensor] = {}
        self.counts: Counter[str] = Counter()  # batches that gave each metric
        self.steps = 0
        self.latest: dict[str, float] = {}
        self.window_began = time.monotonic()
        self.logged = -math.inf  # when the last event was
        run_dir.mkdir(parents=True, exist_ok=True)
        self._cut(start)
        self.board = _tensorboard(run_dir / "tensorboard", start)
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.bar = self.progress.add_task("", total=total, completed=start)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.progress.stop()
        if self.board is not None:
            self.board.close()

    def _cut(self, start: int) -> None:
        if self.file.exists():
            lines = self.file.read_text().splitlines()
            with whole_file(self.file) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= start))

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the metrics of a batch; they stay tensors until a line is due, so that a GPU need not wait."""
        for name, value in metrics.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts.update(metrics.keys())

    def step(self, step: int, latest: dict[str, float | Tensor]) -> None:
        """Count an optimizer step; `latest` is logged as it is, not averaged."""
        self.steps += 1
        self.progress.update(self.bar, completed=step)
        if step % self.every and step != self.total:
            return
        self.latest = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        seconds = time.monotonic() - self.window_began
        values = {
            **self.latest,
            **{name: float(v) for name, v in latest.items()},
            "steps_per_s": self.steps / seconds,
        }
        self._write(step, values)
        self.sums, self.steps, self.window_began = {}, 0, time.monotonic()
        self.counts.clear()
        self._show(step, values)

    def require_finite(self) -> None:
        """Check the metrics since the last line, and those on it.

        Raises:
            InvalidTrainingState: One is NaN or infinite.
        """
        seen: dict[str, float | Tensor] = {**self.latest, **self.sums}
        for name, value in seen.items():
            if not math.isfinite(float(value)):
                raise InvalidTrainingState(
                    f"training has diverged: {name} is {float(value)}; the last checkpoint is from before",
                    hint="resume with a lower `lr`",
                )

    def report(self, step: int, figures: dict[str, float], samples: Sheet | None) -> None:
        """Write validation figures and a sheet of samples."""
        self._write(step, {f"validation/{name}": value for name, value in figures.items()})
        if self.progress.disable:
            self._log("validation", step, figures)
        else:
            text = f"step {step}/{self.total}  validation  {_line(figures)}"
            self.progress.console.print(text, highlight=False)
        if samples is not None:
            picture = replace(samples, images=tuple(self.shown(samples.images))).image()
            file = self.run_dir / "samples" / f"{step:08d}.png"
            file.parent.mkdir(exist_ok=True)
            with whole_file(file) as temporary:
                picture.save(temporary, "PNG")
        self.window_began, self.steps = time.monotonic(), 0  # validation does not count as time of steps

    def _write(self, step: int, values: dict[str, float]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def _show(self, step: int, values: dict[str, float]) -> None:
        self.progress.update(self.bar, description=_line(values))
        if self.progress.disable and (time.monotonic() - self.logged > _LOG_SECONDS or step == self.total):
            self._log("trained", step, values)
            self.logged = time.monotonic()

    def _log(self, event: str, step: int, values: dict[str, float]) -> None:
        rounded = {name: float(f"{value:.4g}") for name, value in values.items()}
        _LOG.info(event, extra={"fields": {"step": step, "steps": self.total, **rounded}})


def _line(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # an incomplete line, written when the machine stopped


def _tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start)
