"""Lockstep sampling: the images of one pipeline call take each step together and share forward passes.

Each image is a separate generation that yields `Denoise` calls. Between two steps the latents of all images
form one batch, which callbacks can read and change.
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
from limner.engine.device import engine_of
from limner.generation.calls import Call, Conditioning, DecodeLatents, Denoise, EncodeImage
from limner.generation.networks import Controlled, EncodedImagePrompt
from limner.generation.passes import StepRange
from limner.generation.sampling import denoised
from limner.generation.speed import SPEEDS
from limner.model.model import Model
from limner.request.networks import UsedAdapter

from .noise import SharedNoise

ScaleAt = Callable[[float], float]
"""Sigma -> factor that takes latents from the scheduler's scale to the sampler's, x0 + sigma * noise."""


class EngineCalls:
    """Executes calls on the engine of the model's device. Its warnings are raised as Python warnings."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, calls: Sequence[Call], most: int | None = None) -> list[Any]:
        """Return the results of calls of one kind, in order. Raises the error of the first call that failed.

        Args:
            most: Largest number of calls in one forward pass; by default the engine chooses.
        """
        values = []
        for answer in engine_of(self.model.backend.device).answer(self.model, calls, most):
            if answer.error is not None:
                raise answer.error
            for message in answer.warnings:
                warnings.warn(message, stacklevel=3)
            values.append(answer.value)
        return values

    def decode(self, latents: Tensor, *, tiled: bool, sliced: bool) -> Tensor:
        """Decode latents [B, C, h, w], at the U-Net's scale, to images [B, 3, H, W].

        Args:
            tiled: Whether to decode in tiles. Images that do not fit into memory are tiled in any case.
            sliced: Whether to decode one image at a time.
        """
        calls = [DecodeLatents(row[None], tiled) for row in latents.float().cpu()]
        return torch.cat(self(calls, 1 if sliced else None))

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images [B, 3, H, W] in [-1, 1] to means and standard deviations [B, C, h, w] of latents at
        the U-Net's scale."""
        moments = self([EncodeImage(row[None]) for row in pictures.float().cpu()])
        means, spreads = zip(*moments, strict=True)
        return torch.cat(means), torch.cat(spreads)


@dataclass
class LockstepSampling:
    """The sampling loop of a batch of images.

    Attributes:
        execute: Executor of the `Denoise` calls.
        plan: Plan of the run.
        sampler_scale: Factor from the scheduler's scale to the sampler's.
        latents: Current latents [B, C, h, w] at the scheduler's scale.
        conditionings: Conditioning of each guidance branch, for each image.
        guidance: Guidance at the next step.
        noise: Noise for samplers that add some at each step.
        adapters: LoRAs of all images.
        controls: ControlNets that are active at the next step, for each image.
        image_prompts: Features of the image prompts.
    """

    execute: EngineCalls
    plan: Plan
    sampler_scale: ScaleAt
    latents: Tensor
    conditionings: Sequence[Mapping[str, Conditioning]]
    guidance: ClassifierFreeGuidance
    noise: SharedNoise
    adapters: tuple[UsedAdapter, ...] = ()
    controls: Sequence[tuple[Controlled, ...]] = ()
    image_prompts: tuple[EncodedImagePrompt, ...] = ()

    def steps(self) -> Iterator[None]:
        """Sample, and yield after each U-Net call. Changes made then to `latents`, `conditionings`,
        `guidance`, `controls` and `image_prompts` take effect at the next call."""
        sigma = self.plan.sigmas[0]
        generations = [
            self._generation(row[None] * self.sampler_scale(sigma), number)
            for number, row in enumerate(self.latents)
        ]
        calls = [next(generation) for generation in generations]
        while calls:
            controls = self.controls or [()] * len(calls)
            requests = [
                replace(
                    call,
                    conditionings=conditionings,
                    guidance=self.guidance,
                    controls=own,
                    image_prompts=self.image_prompts,
                )
                for call, conditionings, own in zip(calls, self.conditionings, controls, strict=True)
            ]
            results = self.execute(requests)
            current, calls, sigma = [], [], self.plan.sigmas[-1]
            for generation, result in zip(generations, results, strict=True):
                try:
                    calls.append(generation.send(result))
                    current.append(calls[-1].x)
                    sigma = calls[-1].sigma
                except StopIteration as done:
                    current.append(done.value)
            self.latents = unchanged = torch.cat(current) / self.sampler_scale(sigma)
            yield
            if calls and self.latents is not unchanged:
                for x, latents in zip(current, self.latents.float().cpu(), strict=True):
                    x.copy_(latents * self.sampler_scale(sigma))

    def _generation(self, x: Tensor, row: int) -> Any:
        """Return the generation of one image: a generator of `Denoise` calls."""
        template = Denoise(
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
        noise = self.noise.for_image(row)
        sampler = SAMPLERS[self.plan.sampler](x, self.plan.sigmas, noise.__next__, **self.plan.options)
        ranges = [StepRange(len(self.plan.timesteps) + self.plan.begun, {}, self.guidance)]
        return denoised(sampler, self.plan, ranges, [{}], SPEEDS["exact"], template)
