"""Warnings for fields of a request that have no effect with its model.

Those that depend on the sigmas are in `limner.generation.no_effect`.
"""

import re
from collections.abc import Iterator

from limner.diffusion.sampler_table import SAMPLER_TABLE
from limner.prompts.comments import comments, without_comments

from .facts import ModelFacts
from .request import GenerationRequest

_TEMPLATE = re.compile(r"__[\w/*?-]+?__|\{[^{}|]*\|[^{}]*\}")  # a wildcard, or one of several words


def no_effect(request: GenerationRequest, facts: ModelFacts) -> tuple[str, ...]:
    """A warning for each field of a resolved request that has no effect."""
    warnings = [*_without_guidance(request, facts)]
    prompts = request.prompts
    if request.prompt_syntax == "a1111":
        left_out = dict.fromkeys(comment for text in prompts for comment in comments(text))
        warnings += [f"{_shortened(comment)} is a comment and left out of the prompt" for comment in left_out]
        prompts = tuple(map(without_comments, prompts))
    if not request.wildcards:
        found = dict.fromkeys(match for text in prompts for match in _TEMPLATE.findall(text))
        warnings += [f"{match!r} is read as words: wildcards are off (`wildcards`)" for match in found]
    if request.prompt_syntax == "literal" and request.emphasis != "original":
        warnings.append(f"emphasis is {request.emphasis}, but literal prompts have no weights")
    return tuple(warnings)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:59]}…")


def _without_guidance(request: GenerationRequest, facts: ModelFacts) -> Iterator[str]:
    asked = {
        "negative_prompt": request.negative_prompt,
        "hires_negative_prompt": request.hires_negative_prompt,
        "guidance_rescale": request.guidance_rescale,
        "guidance_interval": request.guidance_interval,
        "guidance_skip": request.guidance_skip,
        "perp_neg": request.perp_neg is not None,
    }
    given = " and ".join(name for name, value in asked.items() if value)
    cfg_pp = request.sampler is not None and SAMPLER_TABLE[request.sampler].cfg_pp
    if given and facts.guides_itself:
        yield f"{request.model} guides itself, without {given}"
    elif given and request.guidance_scale == 1.0 and not cfg_pp and facts.kind != "edit":
        yield f"guidance_scale is 1, which is no guidance: no effect of {given}"
