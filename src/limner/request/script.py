"""The prompts of a pass from step to step, and the guidance between them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from limner.diffusion.guidance import ClassifierFreeGuidance, EditGuidance, Guidance
from limner.errors import InvalidRequest
from limner.prompts.attention import PromptSyntax
from limner.prompts.schedule import Part, compose, prompt_schedule

from .facts import ModelFacts
from .request import GenerationRequest


@dataclass(frozen=True)
class PromptRange:
    """The prompts of a range of steps, which ends before the next one's.

    Attributes:
        last: Last step of the range, counted from 1 over the whole pass.
        positive: Prompts to move towards, joined by AND, each with its weight.
        negative: Prompt to move away from.
    """

    last: int
    positive: tuple[tuple[str, float], ...]
    negative: str

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights of the positive prompts."""
        return tuple(weight for _, weight in self.positive)

    @property
    def texts(self) -> dict[str, str]:
        """The texts by the names that a guidance has for them."""
        texts = {
            f"positive {number}" if number > 1 else "positive": text
            for number, (text, _) in enumerate(self.positive, 1)
        }
        return {**texts, "negative": self.negative, "image": self.negative, "empty": ""}


def prompt_ranges(
    prompt: str, negative: str, syntax: PromptSyntax, steps: int, steps_before: int | None = None
) -> tuple[PromptRange, ...]:
    """The prompts of a pass, in order.

    Args:
        steps: Number of steps of the pass.
        steps_before: Steps of the pass before it, as `prompt_schedule` takes them.

    Raises:
        PromptError: A prompt that cannot be read.
    """
    schedules = [[(steps, text)] for text in (prompt, negative)]
    if syntax == "a1111":
        schedules = [prompt_schedule(text, steps, steps_before) for text in (prompt, negative)]
    ranges = []
    for last in sorted({end for schedule in schedules for end, _ in schedule}):
        wanted, unwanted = (next(text for end, text in one if last <= end) for one in schedules)
        parts = compose(wanted) if syntax == "a1111" else [Part(wanted)]
        ranges.append(PromptRange(last, tuple((part.text, part.weight) for part in parts), unwanted))
    return tuple(ranges)


def guidance_of(
    request: GenerationRequest,
    facts: ModelFacts,
    guidance_scale: float,
    *,
    cfg_pp: bool = False,
    weights: tuple[float, ...] = (1.0,),
    interval: tuple[float, float] = (0.0, math.inf),
    skipped: Sequence[tuple[float, float]] = (),
) -> Guidance:
    """The guidance of one range of steps.

    Args:
        cfg_pp: The sampler is one of CFG++.
        weights: Weights of the positive prompts.
        interval, skipped: As in `ClassifierFreeGuidance`.

    Raises:
        InvalidRequest: The model has built-in guidance, and the request asks for more.
    """
    if facts.guides_itself or facts.kind == "edit":
        _check_own_guidance(request, facts, cfg_pp)
    if facts.guides_itself:
        return ClassifierFreeGuidance(1.0, weights=weights)
    if facts.kind == "edit":
        if weights != (1.0,):
            raise InvalidRequest(
                "AND and its weights are not for models that edit",
                hint="leave them out",
                fields=("prompt",),
            )
        return EditGuidance(guidance_scale, request.image_guidance_scale)
    return ClassifierFreeGuidance(
        guidance_scale,
        request.guidance_rescale,
        interval,
        weights,
        skipped=tuple(skipped),
        perpendicular=request.perp_neg,
        paired=cfg_pp,
    )


def _check_own_guidance(request: GenerationRequest, facts: ModelFacts, cfg_pp: bool) -> None:
    """Raise InvalidRequest for fields that a model with built-in guidance does not support."""
    asked = {
        "guidance_rescale": request.guidance_rescale,
        "guidance_interval": request.guidance_interval,
        "guidance_skip": request.guidance_skip,
        "perp_neg": request.perp_neg is not None,
        f"sampler {request.sampler}": cfg_pp,
    }
    given = [name for name, value in asked.items() if value]
    if given:
        raise InvalidRequest(
            f"{facts.name} has built-in guidance and cannot use {' and '.join(given)}",
            hint="leave it out",
            fields=tuple(name.partition(" ")[0] for name in given),
        )
