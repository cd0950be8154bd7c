"""The sigmas, noise and guidance of a pass of a resolved request."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from limner.diffusion.config import SchedulerConfig
from limner.diffusion.guidance import Guidance
from limner.diffusion.noise import cpu_noise, gpu_noise, varied
from limner.diffusion.plan import Plan, make_plan
from limner.diffusion.samplers import Noise
from limner.errors import InvalidRequest
from limner.request import GenerationRequest
from limner.request.facts import ModelFacts
from limner.request.resolve import PassSpec, PictureSpec
from limner.request.script import guidance_of

from .speed import SPEEDS


@dataclass(frozen=True)
class StepRange:
    """A range of steps with the same prompts, which ends before the next one's.

    Attributes:
        last: Last step of the range, counted from 1 over the whole pass.
        texts: Texts to evaluate, by name: "positive", "positive 2" …, "negative", "empty".
        guidance: How their estimates combine.
    """

    last: int
    texts: Mapping[str, str]
    guidance: Guidance


def plan_of(spec: PassSpec, scheduler: SchedulerConfig) -> Plan:
    """The sigmas and timesteps of a pass, computed once for all images with the same settings.

    Raises:
        InvalidRequest: The sampler, schedule or steps do not suit the scheduler config.
    """
    try:
        return _plan(
            scheduler,
            spec.steps,
            spec.sampler,
            spec.timestep_spacing,
            spec.sigma_schedule,
            spec.options,
            spec.begin,
            spec.steps_before is not None,
        )
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


@lru_cache(maxsize=64)
def _plan(
    scheduler: SchedulerConfig,
    steps: int,
    sampler: str,
    spacing: str,
    sigma_schedule: str,
    options: tuple[tuple[str, float], ...],
    begin: int,
    counts_from_one: bool,
) -> Plan:
    plan = make_plan(
        scheduler,
        steps,
        sampler=sampler,
        spacing=spacing,  # type: ignore[arg-type]
        sigma_schedule=sigma_schedule,
        options=dict(options),
    )
    plan = plan.part(begin) if begin else plan
    return replace(plan, begun=0) if counts_from_one else plan


def step_ranges(spec: PassSpec, request: GenerationRequest, plan: Plan, facts: ModelFacts) -> list[StepRange]:
    """The prompts and the guidance of each range of steps.

    Args:
        plan: The part of the pass that is run.
    """
    lowest = SPEEDS[request.speed].lowest_guided(plan.sigmas)
    steps = enumerate(pairwise(plan.sigmas))
    skipped = [(low, high) for i, (high, low) in steps if i % 2 and high < request.guidance_skip]
    ranges = []
    for prompts in spec.prompts:
        guidance = guidance_of(
            request,
            facts,
            spec.guidance_scale,
            cfg_pp=spec.cfg_pp,
            weights=prompts.weights,
            interval=request.guidance_interval or (lowest, math.inf),
            skipped=skipped,
        )
        ranges.append(StepRange(prompts.last, prompts.texts, guidance))
    return ranges


def noise_of(picture: PictureSpec, shape: tuple[int, ...]) -> Noise:
    """The noise of an image, for latents of this shape."""
    source = {"cpu": cpu_noise, "gpu": gpu_noise}[picture.request.noise]
    noise = source(picture.seed, shape)
    if picture.variation_seed is None:
        return noise
    return varied(noise, source(picture.variation_seed, shape), picture.request.variation_strength)
