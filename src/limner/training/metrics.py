"""What a run says: lines or a progress bar, `metrics.jsonl`, TensorBoard, sample pictures."""

import json
import math
import sys
import time
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

_PLAIN_SECONDS = 15.0  # between lines where stderr is no terminal


class MetricsLog:
    """Averages metrics over `every` steps and writes them to all places.

    Args:
        run_dir: gets `metrics.jsonl`, `samples/` and `tensorboard/` (where TensorBoard is installed).
        start: the step that training starts from; lines of later steps, from before a resume, are cut off.
        total: steps of the whole run.
        every: steps per line of metrics.
    """

    def __init__(self, run_dir: Path, start: int, total: int, every: int) -> None:
        self.run_dir, self.total, self.every = run_dir, total, every
        self.file = run_dir / "metrics.jsonl"
        self.sums: dict[str, Tensor] = {}
        self.added = self.steps = 0
        self.latest: dict[str, float] = {}
        self.window_began = time.monotonic()
        self.said = -math.inf
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
            self.file.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= start))

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Metrics of one batch; they stay tensors until a line is due, so that a GPU need not wait."""
        for name, value in metrics.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.added += 1

    def step(self, step: int, latest: dict[str, float | Tensor]) -> None:
        """One optimizer step is done; `latest` is logged as it is, not averaged."""
        self.steps += 1
        self.progress.update(self.bar, completed=step)
        if step % self.every and step != self.total:
            return
        self.latest = {name: float(total) / self.added for name, total in self.sums.items()}
        seconds = time.monotonic() - self.window_began
        values = {
            **self.latest,
            **{name: float(v) for name, v in latest.items()},
            "steps_per_s": self.steps / seconds,
        }
        self._write(step, values)
        self.sums, self.added, self.steps, self.window_began = {}, 0, 0, time.monotonic()
        self._say(step, values)

    def require_finite(self) -> None:
        """Refuse to save a state that is lost.

        Raises:
            InvalidTrainingState: a metric since the last line, or on it, is NaN or infinite.
        """
        seen: dict[str, float | Tensor] = {**self.latest, **self.sums}
        for name, value in seen.items():
            if not math.isfinite(float(value)):
                raise InvalidTrainingState(
                    f"training has diverged: {name} is {float(value)}; the last checkpoint is from before",
                    hint="resume with a lower --lr",
                )

    def report(self, step: int, figures: dict[str, float], picture: Image.Image | None) -> None:
        """Validation figures and a picture of samples."""
        self._write(step, {f"validation/{name}": value for name, value in figures.items()})
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.progress.console.print(f"step {step}/{self.total}  validation  {text}", highlight=False)
        if picture is not None:
            file = self.run_dir / "samples" / f"{step:08d}.png"
            file.parent.mkdir(exist_ok=True)
            picture.save(file)
        self.window_began, self.steps = time.monotonic(), 0  # its time is not the steps' time

    def _write(self, step: int, values: dict[str, float]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def _say(self, step: int, values: dict[str, float]) -> None:
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.progress.update(self.bar, description=text)
        if self.progress.disable and (time.monotonic() - self.said > _PLAIN_SECONDS or step == self.total):
            print(f"step {step}/{self.total}  {text}", file=sys.stderr, flush=True)
            self.said = time.monotonic()


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # half a line, from when the machine stopped


def _tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start)
