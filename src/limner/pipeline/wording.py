"""What becomes of a request's prompts before they are read: first its styles are put around them, then the
wildcards in them are chosen by its seed."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

from limner.prompts.styles import find_styles
from limner.prompts.wildcards import Wildcards
from limner.request import GenerationRequest


def worded(
    request: GenerationRequest, styles_files: Sequence[Path], wildcards_dirs: Sequence[Path]
) -> GenerationRequest:
    """A request for one picture, with its seed, whose prompts are final: without styles and wildcards.

    Raises:
        InvalidRequest: a style or wildcard that is not there, or a template that cannot be read.
    """
    if not (request.styles or request.wildcards):
        return request
    prompt, negative = request.prompt, request.negative_prompt
    later, later_negative = request.hires_prompt, request.hires_negative_prompt
    for style in find_styles(request.styles, styles_files):
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
