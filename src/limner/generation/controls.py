"""The contribution of control networks to each step.

A ControlNet (Zhang et al. 2023, arXiv:2302.05543) runs with the U-Net at every step and adds residuals to its
skips and its middle block. A T2I-Adapter (Mou et al. 2023, arXiv:2302.08453) encodes the control image once,
and its features are added to the outputs of the down blocks at every step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from limner.request import Control
from limner.request.networks import UsedControl

from .networks import Controlled

_SOFT = 0.825  # ratio of the weights of one residual and the next deeper one, as in AUTOMATIC1111's webui


@dataclass(frozen=True, eq=False)
class Steering:
    """The controls of an image.

    Attributes:
        controls: The controls of the request.
        used: The network of each.
        read: The answer to `ReadControl` of each.
    """

    controls: tuple[Control, ...] = ()
    used: tuple[UsedControl, ...] = ()
    read: tuple[tuple[Tensor, ...], ...] = ()

    def at(self, step: int, steps: int) -> tuple[tuple[Controlled, ...], tuple[Tensor, ...]]:
        """The ControlNets that are active at a step, from 1, and the summed features of T2I-Adapters."""
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
                # One of the two may also have features for the middle block.
                features = shared + max(features, mine, key=len)[len(shared) :]
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
    """Weights of the residuals in guess mode: from 0.1 for the outermost skip to 1 for the middle block.

    Zhang et al. 2023, section 3.4, spaced as in diffusers.
    """
    return torch.logspace(-1, 0, residuals).tolist()
