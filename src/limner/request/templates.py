"""Styles and wildcards applied to a request's prompts: styles first, then choices by the image's seed."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

from limner.prompts.comments import without_comments
from limner.prompts.styles import Style, find_styles
from limner.prompts.wildcards import Wildcards

from .request import GenerationRequest


def with_final_prompts(
    request: GenerationRequest, styles_files: Sequence[Path], wildcards_dirs: Sequence[Path]
) -> GenerationRequest:
    """A request for one image, with its seed, whose prompts are final: styles applied and wildcards chosen.

    Comments are left out of prompts and styles before they are joined, unless the syntax is "literal".

    Raises:
        InvalidRequest: a style or wildcard that does not exist, or a template that cannot be read.
    """
    if not (request.styles or request.wildcards):
        return request
    clean = without_comments if request.prompt_syntax == "a1111" else str
    prompt, negative, later, later_negative = (
        None if text is None else clean(text)
        for text in (
            request.prompt,
            request.negative_prompt,
            request.hires_prompt,
            request.hires_negative_prompt,
        )
    )
    assert prompt is not None
    for found in find_styles(request.styles, styles_files):
        style = Style(found.name, clean(found.prompt), clean(found.negative_prompt))
        prompt, negative = style.around(prompt, negative)
        later = None if later is None else style.around(later, None)[0]
        later_negative = None if later_negative is None else style.around("", later_negative)[1]
    texts = {
        "prompt": prompt,
        "negative_prompt": negative,
        "hires_prompt": later,
        "hires_negative_prompt": later_negative,
    }
    if request.wildcards:
        # Only random() is the same in every version of Python.
        wildcards, random = Wildcards(wildcards_dirs), Random(request.seed)
        texts = {name: None if text is None else wildcards.draw(text, random) for name, text in texts.items()}
    return request.model_copy(update={**texts, "styles": (), "wildcards": False})
