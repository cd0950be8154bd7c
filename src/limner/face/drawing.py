"""Pictures of one call, drawn in step with each other: at each step all of them share forward passes.

Each picture is a generation of its own, which yields `Denoise` calls as it does anywhere in Limner. Between
two steps the latents of all lie side by side, for whoever wants to look at them or to change them.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from limner.diffusion.guidance import ClassifierFreeGuidance
from limner.diffusion.plan import Plan
from limner.diffusion.samplers import SAMPLERS
from limner.pipeline.adapting import UsedAdapter
from limner.pipeline.calls import Call, Conditioning, DecodeLatents, Denoise, EncodeImage
from limner.pipeline.controlling import Controlled
from limner.pipeline.generation import Scene, denoised
from limner.pipeline.image_prompts import SeenPictures
from limner.pipeline.limits import Limits
from limner.pipeline.model import Model
from limner.pipeline.speed import SPEEDS

from .noise import SharedNoise

Norm = Callable[[float], float]
"""Sigma -> the factor on latents at a scheduler's scale that gives those of a sampler."""


class Answers:
    """Answers calls with as many in a forward pass as pay and fit. What they warn of is a warning."""

    def __init__(self, model: Model) -> None:
        self.model, self._limits = model, Limits.of(model.backend.device)

    def __call__(self, calls: Sequence[Call], most: int | None = None) -> list[Any]:
        """The values of the answers to calls of one kind.

        Args:
            most: calls in one forward pass.
        """
        limits, spare = self._limits, self._limits.memory - self.model.backend.bytes
        fitting = spare // max(1, limits.needs(self.model, calls[0]))
        together = max(1, min(limits.calls_of(self.model, calls[0]), fitting, most or len(calls)))
        values = []
        for first in range(0, len(calls), together):
            for answer in self.model.answer(calls[first : first + together]):
                if answer.error is not None:
                    raise answer.error
                for told in answer.warnings:
                    warnings.warn(told, stacklevel=3)
                values.append(answer.value)
        return values

    def decode(self, latents: Tensor, *, tiled: bool, sliced: bool) -> Tensor:
        """Latents [B, C, h, w], as the U-Net knows them, to pictures [B, 3, H, W].

        Args:
            tiled: piece by piece; where it would not fit otherwise, in any case.
            sliced: one picture at a time.
        """
        needed = self._limits.needs(self.model, DecodeLatents(latents[:1]))
        tiled = tiled or needed > self._limits.memory - self.model.backend.bytes
        calls = [DecodeLatents(row[None], tiled) for row in latents.float().cpu()]
        return torch.cat(self(calls, 1 if sliced else None))

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, H, W] in [-1, 1] to means and standard deviations [B, C, h, w] of latents, as the
        U-Net knows them."""
        answers = self([EncodeImage(row[None]) for row in pictures.float().cpu()])
        means, spreads = zip(*answers, strict=True)
        return torch.cat(means), torch.cat(spreads)


@dataclass
class Drawing:
    """Pictures on their way.

    Attributes:
        plan: of the run.
        latents: [B, C, h, w] at the scheduler's scale; where they stand.
        told: for each picture, what the U-Net is told in each branch.
        guidance: at the next step.
        controls: for each picture, the ControlNets at work at the next step.
        pictures: what IP-Adapters have seen.
    """

    answers: Answers
    plan: Plan
    norm: Norm
    latents: Tensor
    told: Sequence[Mapping[str, Conditioning]]
    guidance: ClassifierFreeGuidance
    noise: SharedNoise
    adapters: tuple[UsedAdapter, ...] = ()
    controls: Sequence[tuple[Controlled, ...]] = ()
    pictures: tuple[SeenPictures, ...] = ()

    def steps(self) -> Iterator[None]:
        """Draw, and stop after each call of the U-Net. The drawing goes on with what is written then to
        `latents`, `told`, `guidance` and `controls`."""
        level = self.plan.sigmas[0]
        generations = [
            self._generation(row[None] * self.norm(level), number) for number, row in enumerate(self.latents)
        ]
        calls = [next(generation) for generation in generations]
        while calls:
            controls = self.controls or [()] * len(calls)
            asked = [
                replace(
                    call,
                    conditionings=told,
                    guidance=self.guidance,
                    controls=own,
                    pictures=self.pictures,
                )
                for call, told, own in zip(calls, self.told, controls, strict=True)
            ]
            answers = self.answers(asked)
            standing, calls, level = [], [], self.plan.sigmas[-1]
            for generation, answer in zip(generations, answers, strict=True):
                try:
                    calls.append(generation.send(answer))
                    standing.append(calls[-1].x)
                    level = calls[-1].sigma
                except StopIteration as done:
                    standing.append(done.value)
            self.latents = left = torch.cat(standing) / self.norm(level)
            yield
            if calls and self.latents is not left:
                for x, latents in zip(standing, self.latents.float().cpu(), strict=True):
                    x.copy_(latents * self.norm(level))

    def _generation(self, x: Tensor, row: int) -> Any:
        """One picture, as a generation."""
        ask = Denoise(
            x,
            self.plan.sigmas[0],
            0.0,
            {},
            self.guidance,
            0,
            0,
            adapters=self.adapters,
            exact=True,
        )
        noise = self.noise.of(row)
        sampler = SAMPLERS[self.plan.sampler](x, self.plan.sigmas, noise.__next__, **self.plan.options)
        script = [Scene(len(self.plan.timesteps) + self.plan.begun, {}, self.guidance)]
        return denoised(sampler, self.plan, script, [{}], SPEEDS["exact"], ask)
