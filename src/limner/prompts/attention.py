"""AUTOMATIC1111's emphasis grammar, read in one pass.

    (text)       weight × 1.1          (text:1.3)   weight × 1.3
    [text]       weight ÷ 1.1          \\( \\) \\[ \\] \\\\   the character itself
    BREAK        ends a chunk

Brackets nest and their weights multiply. A bracket left open reaches to the end of the prompt; a closing one
without a partner is text. Round and square brackets pair up independently of each other, so that `(a [b) c]`
is three weights. `(text: 1.3)` with any white space around the number is a weight, `[text:1.3]` is not.
"""

import math
import re
from itertools import groupby
from typing import Literal

from limner.errors import PromptError

PromptSyntax = Literal["a1111", "literal"]
Emphasis = Literal["original", "no_norm", "ignore", "none"]

MAX_CHARACTERS = 65_536
"""Longest prompt taken, about 200 chunks of text."""

MAX_DEPTH = 500
"""Most brackets open at once. A piece of text is weighted once per bracket around it: this bounds time."""

BREAK_WEIGHT = -1.0
"""Weight of the piece "BREAK" that ends a chunk."""

_SIGN = re.compile(r"[\\()\[\]:]")
_NUMBER = re.compile(r":\s*([+-]?[.\d]+)\s*\)")
_BREAK = re.compile(r"\bBREAK\b")


def check_length(prompt: str) -> None:
    """Raises PromptError for a prompt of more than MAX_CHARACTERS."""
    if len(prompt) > MAX_CHARACTERS:
        raise PromptError(
            f"The prompt has {len(prompt):,} characters, expected at most {MAX_CHARACTERS:,}.",
            hint="Shorten it: words beyond the first few hundred hardly show in an image.",
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
    joined = groupby(attention_pieces(prompt), key=lambda piece: piece[1])
    return [("".join(text for text, _, _ in pieces), weight) for weight, pieces in joined] or [("", 1.0)]


def attention_pieces(prompt: str) -> list[tuple[str, float, int]]:
    """The pieces of a prompt before those of equal weight are joined, each with its weight and its place in
    the prompt. Raises as `parse_attention`."""
    check_length(prompt)
    texts: list[str] = []
    starts: list[int] = []
    weights: list[float] = []
    round_starts: list[int] = []  # for each open bracket, the first piece inside
    square_starts: list[int] = []

    def add(text: str, start: int, weight: float = 1.0) -> None:
        texts.append(text)
        starts.append(start)
        weights.append(weight)

    def add_words(begin: int, end: int) -> None:
        """Text without signs; a BREAK in it swallows the white space around itself."""
        at, breaks = begin, list(_BREAK.finditer(prompt, begin, end))
        for index, found in enumerate(breaks):
            part = prompt[at : found.start()]
            add(part.strip() if index else part.rstrip(), at + (len(part) - len(part.lstrip())) * bool(index))
            add("BREAK", found.start(), BREAK_WEIGHT)
            at = found.end()
        if end > begin:
            last = prompt[at:end]
            add(last.lstrip() if breaks else last, at + (len(last) - len(last.lstrip())) * bool(breaks))

    # In webui's order, from the innermost bracket out: floating-point products depend on it, and both joining
    # and BREAK compare weights for equality.
    def scale(start: int, factor: float) -> None:
        weights[start:] = [weight * factor for weight in weights[start:]]

    position = 0
    while sign := _SIGN.search(prompt, position):
        add_words(position, sign.start())
        position = sign.end()
        match sign.group():
            case "\\":
                escaped = prompt[position : position + 1]
                if escaped and escaped in "\\()[]":
                    add(escaped, position)
                    position += 1
                else:
                    add("", position)  # a backslash before anything else vanishes
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
                    add(number[0], number.start())
                position = number.end()
            case ")" if round_starts:
                scale(round_starts.pop(), 1.1)
            case "]" if square_starts:
                scale(square_starts.pop(), 1 / 1.1)
            case text:
                add(text, sign.start())
    add_words(position, len(prompt))

    for start in round_starts:
        scale(start, 1.1)
    for start in square_starts:
        scale(start, 1 / 1.1)

    if not all(map(math.isfinite, weights)):
        raise PromptError("The weights in the prompt multiply to a number too large for a float.")
    return list(zip(texts, weights, starts, strict=True))


def _weight(number: str) -> float:
    try:
        return float(number)
    except ValueError as error:
        raise PromptError(
            f"The prompt holds the weight {number[:40]!r}, which is no number.",
            hint="Write a weight as in (word:1.3); put a backslash before brackets that are meant literally.",
        ) from error
