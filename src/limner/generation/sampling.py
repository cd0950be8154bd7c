"""The sampling loop of a pass: one `Denoise` call for each sigma that the sampler visits."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from limner.diffusion.plan import Plan
from limner.diffusion.samplers import AnySteps

from .calls import Call, Conditioning, Denoise, Denoised
from .canvas import Kept
from .conditioning import ImagePrompts
from .controls import Steering
from .passes import StepRange
from .speed import Speed


def denoised(
    sampler: AnySteps,
    plan: Plan,
    ranges: Sequence[StepRange],
    conditionings: Sequence[Mapping[str, Conditioning]],
    speed: Speed,
    ask: Denoise,
    kept: Kept | None = None,
    steering: Steering | None = None,
    image_prompts: ImagePrompts = (),
) -> Generator[Call, Denoised, Tensor]:
    """Run a sampler with a `Denoise` call at every sigma that it visits. Returns clean latents.

    Args:
        conditionings: The conditionings of each range, by name.
        ask: A call with the values that are the same at each sigma; steps count from its `step`.
        kept: Latents that are kept outside of a mask.
        steering: Controls. Where one is active, the deep layers always run.
        image_prompts: Image prompts, each with its encoded images.
    """
    steering = steering or Steering()
    steps = plan.begun + len(plan.begins) + plan.left
    deep: Mapping[str, Tensor] = {}  # features kept by the deep layers
    age = 0  # calls since the deep layers ran
    x, sigma = next(sampler)
    while True:
        step = plan.begun + max(1, sum(sigma <= s for s in plan.begins))
        index = next(index for index, one in enumerate(ranges) if step <= one.last)
        guidance = ranges[index].guidance
        runs_deep = speed.runs_deep_layers(age, step, steps) or not deep.keys() >= set(
            guidance.branches(sigma)
        )
        now = step - plan.begun, len(plan.begins) + plan.left
        controls, features = steering.at(*now)
        runs_deep = runs_deep or bool(controls or features)
        if kept is not None and sigma < plan.begins[0]:
            x = kept.noisy(x, sigma)
        answer = yield replace(
            ask,
            x=x,
            sigma=sigma,
            timestep=plan.timestep(sigma),
            conditionings=conditionings[index],
            guidance=guidance,
            step=ask.step + step,
            keep=runs_deep and speed.reuse > 1,
            deep=None if runs_deep else deep,
            controls=controls,
            features=features,
            image_prompts=tuple(seen for prompt, seen in image_prompts if prompt.holds_at(*now)),
        )
        deep, age = (answer.deep, 1) if runs_deep else (deep, age + 1)
        estimates = [answer.latents] if answer.unguided is None else [answer.latents, answer.unguided]
        if kept is not None:
            estimates = [kept.within(estimate) for estimate in estimates]
        try:
            x, sigma = sampler.send(tuple(estimates) if ask.paired else estimates[0])
        except StopIteration as done:
            latents: Tensor = done.value
            return latents
