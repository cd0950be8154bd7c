"""Comments in prompts: text from a # to the end of its line, as in AUTOMATIC1111's webui (since 1.6).

No character escapes a #, in webui as here; prompts in the literal syntax have no comments.
"""

import re
from collections.abc import Callable, Iterator

_COMMENT = re.compile(r"#[^\n]*")
_LINE = re.compile(r"^[^\S\n]*#[^\n]*(?:\n|$)", re.MULTILINE)  # a line that is nothing but a comment
_END = re.compile(r"[^\S\n]*#[^\n]*")


def comments(prompt: str) -> list[str]:
    """The comments of a prompt, from their # on."""
    return [match[0].rstrip() for match in _COMMENT.finditer(prompt)]


def without_comments(prompt: str) -> str:
    """The prompt without its comments; unchanged if it has none."""
    return _END.sub("", _LINE.sub("", prompt)).strip("\n") if "#" in prompt else prompt


def kept_characters(prompt: str) -> list[int]:
    """Where the characters of `without_comments(prompt)` are in the prompt."""
    kept = list(range(len(prompt)))
    if "#" not in prompt:
        return kept
    for pattern in (_LINE, _END):
        text = "".join(prompt[index] for index in kept)
        for match in reversed(list(pattern.finditer(text))):
            del kept[match.start() : match.end()]
    while kept and prompt[kept[0]] == "\n":
        del kept[0]
    while kept and prompt[kept[-1]] == "\n":
        del kept[-1]
    return kept


def text_spans(prompt: str) -> Iterator[tuple[int, int]]:
    """Begin and end of each part of a prompt between its comments."""
    at = 0
    for comment in _COMMENT.finditer(prompt):
        yield at, comment.start()
        at = comment.end()
    yield at, len(prompt)


def outside_comments(change: Callable[[str], str], prompt: str) -> str:
    """The prompt with `change` applied to what lies between its comments, which stay as they are."""
    parts, at = [], 0
    for comment in _COMMENT.finditer(prompt):
        parts += [change(prompt[at : comment.start()]), comment[0]]
        at = comment.end()
    return "".join((*parts, change(prompt[at:])))
