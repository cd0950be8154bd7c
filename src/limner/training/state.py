"""The state of a training run, in memory and on disk, as safetensors and JSON (never a pickle).

A checkpoint is a folder `checkpoints/00001234` that appears by one rename, complete or not at all. The newest
two are kept, so that a damaged file costs minutes, not the run.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import InvalidCheckpoint, InvalidTrainingState
from limner.weights.tensors import open_tensors, write_tensors


class TrainState:
    """Weights, their moving averages and the optimizer's moments, by the weights' names.

    Args:
        folder: Folder of the checkpoints.
        weights: Parameters that are trained, by name.
        optimizer: AdamW over exactly these parameters.
        identity: What a resumed run must share with this one, as JSON: {"task": ..., "settings": ...}.
    """

    def __init__(
        self,
        folder: Path,
        weights: Mapping[str, nn.Parameter],
        optimizer: torch.optim.AdamW,
        identity: Mapping[str, Any],
    ) -> None:
        self.folder, self.weights, self.optimizer = folder, weights, optimizer
        self.identity = identity
        self.averages = {name: weight.detach().clone() for name, weight in weights.items()}

    def average(self, decay: float) -> None:
        """averages = decay * averages + (1 - decay) * weights."""
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averages.values()), list(self.weights.values()), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The modules hold the averaged weights while the block lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, weight in self.weights.items():
            weight.data, self.averages[name] = self.averages[name], weight.data

    def save(self, step: int) -> None:
        """Write the state after `step` steps."""
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch, final = self.folder / "writing", self.folder / f"{step:08d}"
        for leftover in (scratch, final):
            shutil.rmtree(leftover, ignore_errors=True)
        scratch.mkdir()
        write_tensors(scratch / "state.safetensors", self._tensors())
        (scratch / "state.json").write_text(json.dumps({"step": step, **self.identity}, indent=1))
        scratch.rename(final)
        for old in checkpoints_in(self.folder)[2:]:
            shutil.rmtree(old)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for name, weight in self.weights.items():
            tensors[f"weights.{name}"] = weight.detach()
            tensors[f"averages.{name}"] = self.averages[name]
            for moment, value in self.optimizer.state[weight].items():  # none before its first gradient
                tensors[f"{moment}.{name}"] = value
        return tensors

    def resume(self, resume: bool | None) -> int:
        """Load the newest checkpoint that can be read, and return its step; 0 if there is none.

        Args:
            resume: None requires the same task and settings, True only the same task; False deletes all
                checkpoints.

        Raises:
            InvalidTrainingState: The checkpoints are of another task or settings, or none can be read.
        """
        if resume is False:
            shutil.rmtree(self.folder, ignore_errors=True)
        problem: Exception | None = None
        for checkpoint in checkpoints_in(self.folder):
            try:
                state = json.loads((checkpoint / "state.json").read_text())
                require_same(
                    self.folder,
                    state["task"],
                    self.identity["task"],
                    "train it in a folder of its own, or start over with `fresh`",
                )
                if resume is None:
                    require_same(
                        self.folder,
                        state["settings"],
                        self.identity["settings"],
                        "resume with these values by `resume`, or start over with `fresh`",
                    )
                self._restore(open_tensors(checkpoint / "state.safetensors"))
                return int(state["step"])
            except (OSError, ValueError, KeyError, InvalidCheckpoint) as error:
                problem = error
        if problem is not None:
            raise InvalidTrainingState(
                f"no checkpoint in {self.folder} can be read: {problem}", hint="start over with `fresh`"
            )
        return 0

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.data.copy_(tensors[f"weights.{name}"])
            self.averages[name].copy_(tensors[f"averages.{name}"])
            if f"step.{name}" in tensors:
                self.optimizer.state[weight] = {
                    "step": tensors[f"step.{name}"].to(weight.device, copy=True),
                    "exp_avg": torch.empty_like(weight).copy_(tensors[f"exp_avg.{name}"]),
                    "exp_avg_sq": torch.empty_like(weight).copy_(tensors[f"exp_avg_sq.{name}"]),
                }


def checkpoints_in(folder: Path) -> list[Path]:
    """The folders of checkpoints, newest first."""
    return sorted(folder.glob("[0-9]" * 8), reverse=True)


def load_averages(folder: Path, task: Mapping[str, Any]) -> tuple[int, dict[str, Tensor]]:
    """The step and the averaged weights of the newest checkpoint.

    Raises:
        InvalidTrainingState: There is none, or it is of another task.
    """
    for checkpoint in checkpoints_in(folder)[:1]:
        state = json.loads((checkpoint / "state.json").read_text())
        require_same(folder, state["task"], task, "export it with the options it was trained with")
        tensors = open_tensors(checkpoint / "state.safetensors")
        averages = {k.removeprefix("averages."): v for k, v in tensors.items() if k.startswith("averages.")}
        return int(state["step"]), averages
    raise InvalidTrainingState(f"{folder} holds no checkpoint", hint="train first")


def require_same(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], hint: str) -> None:
    """Raise InvalidTrainingState, naming each value that differs, unless all are the same."""
    ours = json.loads(json.dumps(ours))
    changed = [
        f"{key} was {theirs.get(key)!r} and is now {ours.get(key)!r}"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    ]
    if changed:
        raise InvalidTrainingState(f"the run in {folder} differs: {'; '.join(changed)}", hint=hint)
