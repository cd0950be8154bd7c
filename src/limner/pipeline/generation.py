"""How a picture comes about, as plain sequential code: coroutines that yield calls and are sent answers.

    generation = text_to_image(request, model)
    image = run(generation, model)

Nothing here touches a network. A generation can therefore run alone (`run`), be watched (`watch`: the
answer to a `Denoise` holds a preview), run in company of many (`Engine`), and be stopped by closing it.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from limner.diffusion.config import SchedulerConfig
from limner.diffusion.guidance import ClassifierFreeGuidance, Guidance
from limner.diffusion.plan import Plan, make_plan
from limner.diffusion.samplers import SAMPLERS, Noise, Steps
from limner.request import GenerationRequest

from .calls import Answer, Call, Conditioning, DecodeLatents, Denoise, Denoised, EncodeText
from .speed import SPEEDS, Speed

Generation = Generator[Call, Any, Tensor]
NoiseSource = Callable[[int, tuple[int, ...]], Noise]


class AnswersCalls(Protocol):
    """What `run` needs of a model."""

    def answer(self, calls: Sequence[Call]) -> list[Answer]: ...


class Facts(Protocol):
    """What a generation needs to know of a model, without touching a network."""

    @property
    def scheduler(self) -> SchedulerConfig: ...

    def latent_shape(self, request: GenerationRequest) -> tuple[int, ...]: ...


def cpu_noise(seed: int, shape: tuple[int, ...]) -> Noise:
    """Unit normal noise from one CPU generator: the same on every device and in every batch."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator)


def text_to_image(
    request: GenerationRequest, model: Facts, noise_source: NoiseSource = cpu_noise
) -> Generation:
    """Draw one picture.

    Args:
        request: resolved, its seed that of this picture.
        model: facts about the model whose calls these will be.

    Returns:
        [1, 3, H, W], about [-1, 1].
    """
    assert request.seed is not None
    plan, speed = plan_of(request, model.scheduler), SPEEDS[request.speed]
    guidance = guidance_of(request, plan)
    texts = {"positive": request.prompt, "negative": request.negative_prompt or ""}
    names = [name for name in texts if any(name in guidance.branches(sigma) for sigma in plan.sigmas[:-1])]
    encoded = yield EncodeText(
        tuple(texts[name] for name in names), request.prompt_syntax, request.clip_skip, request.exact
    )
    conditionings = dict(zip(names, encoded, strict=True))

    noise = noise_source(request.seed, model.latent_shape(request))
    x = noise() * plan.start_scale
    sampler = SAMPLERS[plan.sampler](x, plan.sigmas, noise, **plan.options)
    latents = yield from denoised(sampler, plan, guidance, conditionings, speed)
    image: Tensor = yield DecodeLatents(latents / plan.end_scale)
    return image


def plan_of(request: GenerationRequest, scheduler: SchedulerConfig) -> Plan:
    """The sigmas and timesteps of a resolved request. Raises ValueError where they cannot be had."""
    assert request.steps is not None
    return make_plan(
        scheduler,
        request.steps,
        sampler=request.sampler,
        spacing=request.timestep_spacing,
        sigma_schedule=request.sigma_schedule,
        options={"eta": request.eta} if request.eta else None,
    )


def guidance_of(request: GenerationRequest, plan: Plan) -> Guidance:
    """The guidance of a resolved request."""
    assert request.guidance_scale is not None
    lowest = SPEEDS[request.speed].lowest_guided(plan.sigmas)
    interval = request.guidance_interval or (lowest, math.inf)
    return ClassifierFreeGuidance(request.guidance_scale, request.guidance_rescale, interval)


def denoised(
    sampler: Steps,
    plan: Plan,
    guidance: Guidance,
    conditionings: Mapping[str, Conditioning],
    speed: Speed,
) -> Generator[Call, Denoised, Tensor]:
    """Walk a sampler to its end, asking the model at every sigma that it visits."""
    visited = plan.sigmas[:-1]
    steps = len(visited)
    deep: Mapping[str, Tensor] = {}  # features kept, and how many calls ago they were made
    age = 0
    x, sigma = next(sampler)
    while True:
        step = max(1, sum(sigma <= s for s in visited))
        anew = speed.runs_deep_layers(age, step, steps) or not deep.keys() >= set(guidance.branches(sigma))
        answer = yield Denoise(
            x,
            sigma,
            plan.timestep(sigma),
            conditionings,
            guidance,
            step,
            steps,
            keep=anew and speed.reuse > 1,
            deep=None if anew else deep,
        )
        deep, age = (answer.deep, 1) if anew else (deep, age + 1)
        try:
            x, sigma = sampler.send(answer.latents)
        except StopIteration as done:
            latents: Tensor = done.value
            return latents


def watch(generation: Generation, model: AnswersCalls) -> Generator[tuple[Call, Answer], None, Tensor]:
    """Run a generation, yielding each call with its answer; closing this closes the generation."""
    try:
        call = next(generation)
        while True:
            [answer] = model.answer([call])
            if answer.error is not None:
                raise answer.error
            yield call, answer
            call = generation.send(answer.value)
    except StopIteration as done:
        image: Tensor = done.value
        return image
    finally:
        generation.close()


def run(generation: Generation, model: AnswersCalls) -> Tensor:
    """Run a generation to its end. Raises what an answer has for an error."""
    watched = watch(generation, model)
    while True:
        try:
            next(watched)
        except StopIteration as done:
            image: Tensor = done.value
            return image
