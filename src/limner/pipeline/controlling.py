"""The control networks of a model, and how what they make of a picture steers a drawing.

A ControlNet (Zhang et al. 2023, arXiv:2302.05543) runs beside the U-Net at every step and adds to its skips
and its middle; a T2I-Adapter (Mou et al. 2023, arXiv:2302.08453) reads the picture once, and adds the same at
every step to what the levels on the way down give.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from limner.errors import InvalidRequest, UnsupportedModel
from limner.nn.controlnet import ControlNetConfig
from limner.nn.unet import UNetConfig
from limner.request import Control
from limner.weights.control import ControlFile, read_control
from limner.weights.hub import locate_network

_SOFT = 0.825  # what the weight falls off by from residual to residual, as in AUTOMATIC1111's webui


@dataclass(frozen=True)
class UsedControl:
    """A control network, as a call names it.

    Attributes:
        path: of its folder or file.
        stamp: time of change and size, of all that is in a folder: other files under the same name are
            another network.
        residuals: how many tensors a ControlNet adds; 0 for a T2I-Adapter.
        pooled: each of them is one number per channel.
        channels: of the picture that it reads: 3, or 1 for shades of gray.
        parameters: how many numbers its weights are.
    """

    path: Path
    stamp: tuple[int, int]
    residuals: int
    pooled: bool
    channels: int
    parameters: int


@dataclass(frozen=True, eq=False)
class Controlled:
    """A ControlNet at work on one picture.

    Attributes:
        used: which one.
        embedding: what it made of the picture [1, C, h, w].
        weights: of what it adds to each skip of the U-Net and to its middle.
        spares_negative: it leaves the branches alone that are steered away from.
    """

    used: UsedControl
    embedding: Tensor
    weights: tuple[float, ...]
    spares_negative: bool = False

    def weights_of(self, branch: str) -> tuple[float, ...]:
        """The weights in one branch of the guidance."""
        spared = self.spares_negative and not branch.startswith("positive")
        return (0.0,) * len(self.weights) if spared else self.weights


class ControlLibrary:
    """The control networks that a model can use, each read when it is first named. Any thread may use it.

    Args:
        downscale: how many pixels there are to one of the U-Net's latents, along each side.
    """

    def __init__(self, unet: UNetConfig, downscale: int) -> None:
        self._unet, self._downscale = unet, downscale
        self._paths: dict[str, Path] = {}  # so that the hub is asked once
        self._known: dict[tuple[str, tuple[int, int]], UsedControl] = {}

    def fetch(self, controls: Sequence[Control]) -> None:
        """Have the network of each on this machine, so that `used` finds it there. Raises as that does."""
        for control in controls:
            self._used(control.model)

    def used(self, controls: Sequence[Control]) -> tuple[UsedControl, ...]:
        """The network of each.

        Raises:
            ModelNotFound: there is no such network.
            InvalidCheckpoint, UnsupportedModel: it cannot be read.
            InvalidRequest: it is for another family of models, or has no such mode.
        """
        used = tuple(self._used(control.model) for control in controls)
        for control, one in zip(controls, used, strict=True):
            if control.mode != "balanced" and not one.residuals:
                raise InvalidRequest(
                    f"{control.model} is a T2I-Adapter, and the mode {control.mode} is of ControlNets",
                    hint="leave the mode out",
                )
        return used

    def _used(self, name: str) -> UsedControl:
        if name not in self._paths or not self._paths[name].exists():
            self._paths[name] = locate_network(name).absolute()
        path = self._paths[name]
        found = [file.stat() for file in (path.iterdir() if path.is_dir() else [path])]
        stamp = max((one.st_mtime_ns for one in found), default=0), sum(one.st_size for one in found)
        key = name, stamp
        if key not in self._known:
            file = read_control(path)
            self._check(name, file)
            self._known[key] = _facts(path, stamp, file)
        return self._known[key]

    def _check(self, name: str, file: ControlFile) -> None:
        """Raise InvalidRequest where what it adds does not fit the U-Net."""
        if misfit := file.misfit(self._unet, self._downscale):
            raise InvalidRequest(
                f"{name} is not for this model: {misfit}",
                hint="name a network that was made for this family of models",
            )


def _facts(path: Path, stamp: tuple[int, int], file: ControlFile) -> UsedControl:
    residuals, pooled = 0, False
    if isinstance(file.config, ControlNetConfig):
        residuals, pooled = len(file.config.skip_channels) + 1, file.config.global_pool_conditions
        channels = file.config.conditioning_channels
    else:
        channels = file.config.in_channels
    if channels not in (1, 3):
        raise UnsupportedModel(f"{path} reads pictures of {channels} channels; expected 3, or 1 for grays")
    return UsedControl(path, stamp, residuals, pooled, channels, file.parameters)


@dataclass(frozen=True, eq=False)
class Steering:
    """What a picture's controls add, from step to step.

    Attributes:
        controls: as the request has them.
        used: the network of each.
        read: what each made of its picture.
    """

    controls: tuple[Control, ...] = ()
    used: tuple[UsedControl, ...] = ()
    read: tuple[tuple[Tensor, ...], ...] = ()

    def at(self, step: int, steps: int) -> tuple[tuple[Controlled, ...], tuple[Tensor, ...]]:
        """The ControlNets at work at a step, from 1, of so many, and what T2I-Adapters add together."""
        nets: list[Controlled] = []
        features: list[Tensor] = []
        for control, used, read in zip(self.controls, self.used, self.read, strict=True):
            if not control.holds_at(step, steps):
                continue
            if used.residuals:
                weights, spares = residual_weights(control, used), control.mode == "guess" or used.pooled
                nets.append(Controlled(used, read[0], weights, spares))
            else:
                mine = [control.weight * feature for feature in read]
                shared = [a + b for a, b in zip(features, mine, strict=False)]
                features = shared + max(features, mine, key=len)[len(shared) :]  # one may have the middle's
        return tuple(nets), tuple(features)


def residual_weights(control: Control, used: UsedControl) -> tuple[float, ...]:
    """The weight of each residual of a ControlNet, from the outermost skip to the middle."""
    if control.mode == "balanced" or (control.mode == "guess" and used.pooled):
        return (control.weight,) * used.residuals
    if control.mode == "guess":
        shares = guess_shares(used.residuals)
    else:
        shares = [_SOFT ** (used.residuals - 1 - index) for index in range(used.residuals)]
    return tuple(control.weight * share for share in shares)


def guess_shares(residuals: int) -> list[float]:
    """What counts of each residual in guess mode: a tenth of the outermost, all of the middle's.

    Zhang et al. 2023, section 3.4, spaced as in diffusers.
    """
    return torch.logspace(-1, 0, residuals).tolist()
