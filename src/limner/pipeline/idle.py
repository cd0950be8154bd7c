"""What a request asks for that changes nothing in its picture. Its maker is told of each."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence

from limner.diffusion.plan import Plan
from limner.diffusion.samplers import CFG_PP, SAMPLERS
from limner.request import Control, GenerationRequest, ImagePrompt

from .generation import Pass, Traits
from .images import open_image

_TEMPLATE = re.compile(r"__[\w/*?-]+?__|\{[^{}|]*\|[^{}]*\}")  # a wildcard, or one of several words
_LIKE = 1.02  # proportions that differ by less are taken for the same


def idle(request: GenerationRequest, passes: Sequence[Pass], traits: Traits) -> tuple[str, ...]:
    """A warning for each thing that a resolved request asks for in vain.

    Args:
        passes: of the request.
        traits: of its model.
    """
    told = [
        *_without_guidance(request, traits),
        *_without_noise(request, passes),
        *_at_no_step(request, passes),
    ]
    if not request.wildcards:
        found = dict.fromkeys(match for text in request.prompts for match in _TEMPLATE.findall(text))
        told += [
            f"{match!r} is read as words: wildcards are off, which choose (--wildcards)" for match in found
        ]
    if request.prompt_syntax == "literal" and request.emphasis != "original":
        told.append(f"emphasis is {request.emphasis}, but literal prompts have no weights for it to be about")
    return (*told, *_stretched(request))


def elsewhere(request: GenerationRequest, model: Mapping[str, str | None]) -> tuple[str, ...]:
    """A warning where a request, as it was given, names another model than the one that draws it.

    Args:
        model: its "model", "revision" and "variant".
    """
    named = {name: getattr(request, name) for name in model if name in request.model_fields_set}
    others = [f"{name} {value}" for name, value in named.items() if value not in (None, model[name])]
    return (f"the request names the {' and '.join(others)}, but {model['model']} draws it",) if others else ()


def _without_guidance(request: GenerationRequest, traits: Traits) -> Iterator[str]:
    asked = {
        "negative_prompt": request.negative_prompt,
        "hires_negative_prompt": request.hires_negative_prompt,
        "guidance_rescale": request.guidance_rescale,
        "guidance_interval": request.guidance_interval,
        "guidance_skip": request.guidance_skip,
        "perp_neg": request.perp_neg is not None,
    }
    given = " and ".join(name for name, value in asked.items() if value)
    if given and traits.guides_itself:
        yield f"{request.model} guides itself, without {given}"
    elif given and request.guidance_scale == 1.0 and request.sampler not in CFG_PP and traits.kind != "edit":
        yield f"guidance_scale is 1, which is no guidance, so there is no use for {given}"


def _without_noise(request: GenerationRequest, passes: Sequence[Pass]) -> Iterator[str]:
    plans = [one.plan for one in passes]
    if request.s_churn and not any(_churns(plan) for plan in plans):
        yield f"s_churn is {request.s_churn}, but no step begins at a sigma where it adds noise"
    if request.s_noise not in (None, 1.0) and not any(map(_draws, plans)):
        names = " and ".join(dict.fromkeys(plan.sampler for plan in plans))
        yield f"s_noise is {request.s_noise}, but {names} adds no noise without an s_churn or an eta"


def _churns(plan: Plan) -> bool:
    return any(begin > sigma for begin, sigma in zip(plan.begins, plan.sigmas, strict=False))


def _draws(plan: Plan) -> bool:
    """Whether a sampler adds noise on the way."""
    parameters = inspect.signature(SAMPLERS[plan.sampler]).parameters
    if "s_churn" in parameters:
        return _churns(plan)
    return "eta" not in parameters or bool(plan.options.get("eta", parameters["eta"].default))


def _at_no_step(request: GenerationRequest, passes: Sequence[Pass]) -> Iterator[str]:
    units: tuple[Control | ImagePrompt, ...] = (*request.controls, *request.image_prompts)
    for unit in units:
        counts = [(len(one.plan.begins), len(one.plan.begins) + one.plan.left) for one in passes]
        if not any(unit.holds_at(step, steps) for count, steps in counts for step in range(1, count + 1)):
            yield f"{unit.model} is to hold from {unit.start} to {unit.end}, between which no whole step lies"
    skip, guided = request.guidance_skip, request.guidance_scale != 1.0
    if skip and guided and not any(sigma < skip for one in passes for sigma in one.plan.sigmas[1:-1:2]):
        yield f"guidance_skip is {skip}, below the sigmas of all steps, so each is guided"


def _stretched(request: GenerationRequest) -> Iterator[str]:
    if request.mask is None or request.image is None:
        return
    (width, height), (w, h) = open_image(request.image).size, open_image(request.mask).size
    if not 1 / _LIKE < width * h / (w * height) < _LIKE:
        yield f"the mask is {w} x {h} and its picture {width} x {height}: the mask is stretched to fit"
