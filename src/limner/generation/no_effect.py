"""Warnings for fields of a request that have no effect at the sigmas of its passes.

Those that need no sigmas are in `limner.request.no_effect`.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence

from limner.diffusion.plan import Plan
from limner.diffusion.samplers import SAMPLERS
from limner.request import Control, GenerationRequest, ImagePrompt
from limner.request.facts import ModelFacts
from limner.request.resolve import ResolvedRequest

from .passes import plan_of


def without_effect(resolved: ResolvedRequest, facts: ModelFacts) -> tuple[str, ...]:
    """A warning for each field of a resolved request that has no effect at the sigmas of its passes."""
    plans = [plan_of(one, facts.scheduler) for one in resolved.pictures[0].passes]
    return (*_without_noise(resolved.request, plans), *_at_no_step(resolved.request, plans))


def other_model(request: GenerationRequest, model: Mapping[str, str | None]) -> tuple[str, ...]:
    """A warning where a request, as it was given, names another model than the one that runs it.

    Args:
        model: Its "model", "revision" and "variant".
    """
    named = {name: getattr(request, name) for name in model if name in request.model_fields_set}
    others = [f"{name} {value}" for name, value in named.items() if value not in (None, model[name])]
    return (f"the request names the {' and '.join(others)}, but {model['model']} is used",) if others else ()


def _without_noise(request: GenerationRequest, plans: Sequence[Plan]) -> Iterator[str]:
    if request.s_churn and not any(_churns(plan) for plan in plans):
        yield f"s_churn is {request.s_churn}, but no step begins at a sigma where it adds noise"
    if request.s_noise not in (None, 1.0) and not any(map(_adds_noise, plans)):
        names = " and ".join(dict.fromkeys(plan.sampler for plan in plans))
        yield f"s_noise is {request.s_noise}, but {names} adds no noise without an s_churn or an eta"


def _churns(plan: Plan) -> bool:
    return any(begin > sigma for begin, sigma in zip(plan.begins, plan.sigmas, strict=False))


def _adds_noise(plan: Plan) -> bool:
    """Whether a sampler adds noise at its steps."""
    parameters = inspect.signature(SAMPLERS[plan.sampler]).parameters
    if "s_churn" in parameters:
        return _churns(plan)
    return "eta" not in parameters or bool(plan.options.get("eta", parameters["eta"].default))


def _at_no_step(request: GenerationRequest, plans: Sequence[Plan]) -> Iterator[str]:
    units: tuple[Control | ImagePrompt, ...] = (*request.controls, *request.image_prompts)
    for unit in units:
        counts = [(len(plan.begins), len(plan.begins) + plan.left) for plan in plans]
        if not any(unit.holds_at(step, steps) for count, steps in counts for step in range(1, count + 1)):
            yield f"{unit.model} is active from {unit.start} to {unit.end}, between which no whole step lies"
    skip, guided = request.guidance_skip, request.guidance_scale != 1.0
    if skip and guided and not any(sigma < skip for plan in plans for sigma in plan.sigmas[1:-1:2]):
        yield f"guidance_skip is {skip}, below the sigmas of all steps, so each is guided"
