"""AUTOMATIC1111's emphasis grammar, read in one pass.

    (text)       weight × 1.1          (text:1.3)   weight × 1.3
    [text]       weight ÷ 1.1          \\( \\) \\[ \\] \\\\   the sign itself
    BREAK        ends a chunk

Brackets nest and their weights multiply. A bracket left open reaches to the end of the prompt; a closing one
without a partner is text. Round and square brackets pair up independently of each other, so that `(a [b) c]`
is three weights. `(text: 1.3)` with any white space around the number is a weight, `[text:1.3]` is not.
"""

import math
import re
from itertools import groupby

from limner.errors import PromptError

MAX_CHARACTERS = 65_536
"""Longest prompt taken, about 200 chunks of text."""

MAX_DEPTH = 500
"""Most brackets open at once. A piece of text is weighted once per bracket around it: this bounds time."""

_SIGN = re.compile(r"[\\()\[\]:]")
_NUMBER = re.compile(r":\s*([+-]?[.\d]+)\s*\)")
_BREAK = re.compile(r"\bBREAK\b")


def check_length(prompt: str) -> None:
    """Raises PromptError for a prompt of more than MAX_CHARACTERS."""
    if len(prompt) > MAX_CHARACTERS:
        raise PromptError(
            f"The prompt has {len(prompt):,} characters, expected at most {MAX_CHARACTERS:,}.",
            hint="Shorten it: words beyond the first few hundred hardly show in a picture.",
        )


def parse_attention(prompt: str) -> list[tuple[str, float]]:
    """Splits a prompt into pieces of one weight each, as AUTOMATIC1111's webui 1.10 does, bit for bit.

    Pieces keep their white space; neighbours of equal weight are joined. BREAK comes out as the piece
    `("BREAK", -1.0)`. Inside brackets webui multiplies that -1 too, and then no longer takes it for a break:
    so does this function, and `limner.prompts.chunks` warns of it.

    Args:
        prompt: at most MAX_CHARACTERS, with at most MAX_DEPTH brackets open at once.

    Returns:
        at least one (text, weight).

    Raises:
        PromptError: too long, too deep, a weight such as `1.2.3`, or one beyond the range of floats.
    """
    check_length(prompt)
    texts: list[str] = []
    weights: list[float] = []
    round_starts: list[int] = []  # for each open bracket, the first piece inside
    square_starts: list[int] = []

    def add(text: str, weight: float = 1.0) -> None:
        texts.append(text)
        weights.append(weight)

    def add_words(text: str) -> None:
        """Text without signs; a BREAK in it swallows the white space around itself."""
        *before, last = _BREAK.split(text)
        for index, part in enumerate(before):
            add(part.strip() if index else part.rstrip())
            add("BREAK", -1.0)
        if text:
            add(last.lstrip() if before else last)

    # In webui's order, from the innermost bracket out: floating-point products depend on it, and both joining
    # and BREAK compare weights for equality.
    def scale(start: int, factor: float) -> None:
        weights[start:] = [weight * factor for weight in weights[start:]]

    position = 0
    while sign := _SIGN.search(prompt, position):
        add_words(prompt[position : sign.start()])
        position = sign.end()
        match sign.group():
            case "\\":
                escaped = prompt[position : position + 1]
                if escaped and escaped in "\\()[]":
                    add(escaped)
                    position += 1
                else:
                    add("")  # a backslash before anything else vanishes
            case "(" | "[" as bracket:
                if len(round_starts) + len(square_starts) == MAX_DEPTH:
                    raise PromptError(
                        f"The prompt has more than {MAX_DEPTH} brackets open at character {position}.",
                        hint="Write a weight such as (word:1.3); put a backslash before literal brackets.",
                    )
                (round_starts if bracket == "(" else square_starts).append(len(texts))
            case ":" if number := _NUMBER.match(prompt, sign.start()):
                if round_starts:
                    scale(round_starts.pop(), _weight(number[1]))
                else:
                    add(number[0])
                position = number.end()
            case ")" if round_starts:
                scale(round_starts.pop(), 1.1)
            case "]" if square_starts:
                scale(square_starts.pop(), 1 / 1.1)
            case text:
                add(text)
    add_words(prompt[position:])

    for start in round_starts:
        scale(start, 1.1)
    for start in square_starts:
        scale(start, 1 / 1.1)

    if not all(map(math.isfinite, weights)):
        raise PromptError("The weights in the prompt multiply to a number too large for a float.")
    joined = groupby(zip(texts, weights, strict=True), key=lambda piece: piece[1])
    return [("".join(text for text, _ in pieces), weight) for weight, pieces in joined] or [("", 1.0)]


def _weight(number: str) -> float:
    try:
        return float(number)
    except ValueError as error:
        raise PromptError(
            f"The prompt holds the weight {number[:40]!r}, which is no number.",
            hint="Write a weight as in (word:1.3); put a backslash before brackets that are meant literally.",
        ) from error
