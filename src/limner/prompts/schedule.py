"""Prompts that change from step to step and are made of several, in AUTOMATIC1111's grammar.

    [from:to:10]  [to:10]  [from::10]   another text after so many steps; 0.5 is half of them
    [a|b|c]                             alternating, step by step
    one AND another :0.8                several prompts, each with a weight, evaluated apart

The first two are resolved first, which gives a text for each step; AND then splits that text. A prompt that
does not follow the grammar, such as a bare `|`, is used as it is, as in webui.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate

from .comments import without_comments

_PLAIN = re.compile(r"(?:[^\\\[\]():|]|\\.)+", re.DOTALL)
_WHEN = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*\]")
_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+))\s*\Z")
_MAX_DEPTH = 100  # brackets open at once; a prompt with more is used as it is


@dataclass(frozen=True)
class Scheduled:
    """One text up to a step, another after it. The texts may contain schedules themselves."""

    before: "Sentence"
    after: "Sentence"
    when: str

    def last_step(self, steps: int, done: int | None) -> int:
        """The last step of the first text, 0 for none.

        Args:
            steps: Number of steps of this pass.
            done: Steps of the pass before it, which whole numbers include; None for the first pass.
        """
        number = float(self.when)
        if "." in self.when:
            number = (number - (done is not None)) * steps
        else:
            number -= done or 0
        return min(steps, int(number))


@dataclass(frozen=True)
class Alternating:
    """Texts that alternate."""

    texts: tuple["Sentence", ...]


Span = tuple[int, int]
"""Begin and end of a part of a text."""

Sentence = tuple["Span | Scheduled | Alternating", ...]


@dataclass(frozen=True)
class Part:
    """One of the prompts that AND combines.

    Attributes:
        start: Where it begins in the combined text.
    """

    text: str
    weight: float = 1.0
    start: int = field(default=0, compare=False)


def prompt_schedule(prompt: str, steps: int, done: int | None = None) -> list[tuple[int, str]]:
    """The texts of a prompt without its comments, each with the last step, counted from 1, that it is for.

    Args:
        steps: Number of steps.
        done: For a hires pass, the steps of the first pass: whole numbers count from its beginning, and
            fractions continue from 1.
    """
    prompt = without_comments(prompt)
    return [
        (end, "".join(prompt[begin:stop] for begin, stop in spans))
        for end, spans in schedule_spans(prompt, steps, done)
    ]


def schedule_spans(prompt: str, steps: int, done: int | None = None) -> list[tuple[int, list[Span]]]:
    """Like `prompt_schedule` of a prompt without comments, with the parts of the prompt that make a text."""
    sentence = _parse(prompt)
    if sentence is None:
        return [(steps, [(0, len(prompt))])]
    ends = sorted({*_ends(sentence, steps, done), steps})
    return [(end, list(_spans_at(sentence, end, steps, done))) for end in ends]


def compose(text: str) -> list[Part]:
    """The prompts that AND combines, with their weights."""
    parts, start = [], 0
    for separator in (*_AND.finditer(text), None):
        part = text[start:] if separator is None else text[start : separator.start()]
        match = _WEIGHT.search(part)
        if match is None:
            parts.append(Part(part.rstrip(), start=start))
        else:
            parts.append(Part(part[: match.start()], float(match[1]), start))
        start = 0 if separator is None else separator.end()
    return parts


def _parse(prompt: str) -> Sentence | None:
    """The parsed prompt; None if it does not follow the grammar."""

    if _depth(prompt) > _MAX_DEPTH:
        return None

    @cache
    def group(at: int) -> tuple[Sentence, int] | None:
        """The construct that begins with the bracket at `at`, and its end; None if the bracket is text."""
        opening = prompt[at]
        first, end = inner(at + 1)
        sign = prompt[end : end + 1]
        if opening == "(":
            if sign == ":":
                colon = end
                second, end = inner(end + 1)
                first, sign = (*first, (colon, colon + 1), *second), prompt[end : end + 1]
            return (((at, at + 1), *first, (end, end + 1)), end + 1) if sign == ")" else None
        if sign == "]":
            return ((at, at + 1), *first, (end, end + 1)), end + 1
        if sign == "|":
            texts = [first]
            while prompt[end : end + 1] == "|":
                text, end = inner(end + 1)
                texts.append(text)
            return ((Alternating(tuple(texts)),), end + 1) if prompt[end : end + 1] == "]" else None
        if sign != ":":
            return None
        if when := _WHEN.match(prompt, end + 1):
            return (Scheduled((), first, when[1]),), when.end()
        second, end = inner(end + 1)
        when = _WHEN.match(prompt, end + 1) if prompt[end : end + 1] == ":" else None
        return None if when is None else ((Scheduled(first, second, when[1]),), when.end())

    def inner(at: int) -> tuple[Sentence, int]:
        """The content of brackets, up to a character that does not belong to it."""
        found: list[Span | Scheduled | Alternating] = []
        while at < len(prompt):
            if plain := _PLAIN.match(prompt, at):
                found.append(plain.span())
                at = plain.end()
            elif prompt[at] in "([" and (grouped := group(at)):
                found += grouped[0]
                at = grouped[1]
            else:
                break
        return tuple(found), at

    sentence: list[Span | Scheduled | Alternating] = []
    at = 0
    while at < len(prompt):
        some, at = inner(at)
        sentence += some
        if at < len(prompt):  # a bracket or colon without a partner is text; nothing else is allowed
            if prompt[at] not in "[]():":
                return None
            sentence.append((at, at + 1))
            at += 1
    return tuple(sentence)


def _depth(prompt: str) -> int:
    """The most brackets that are open at once."""
    opened = accumulate((sign in "([") - (sign in ")]") for sign in re.findall(r"[\[\]()]", prompt))
    return max(opened, default=0)


def _ends(sentence: Sentence, steps: int, done: int | None) -> set[int]:
    """The steps after which something changes."""
    ends: set[int] = set()
    for piece in sentence:
        if isinstance(piece, Scheduled):
            last = piece.last_step(steps, done)
            ends |= {last} if last >= 1 else set()
            ends |= _ends(piece.before, steps, done) | _ends(piece.after, steps, done)
        elif isinstance(piece, Alternating):
            ends |= set(range(1, steps + 1))
    return ends


def _spans_at(sentence: Sentence, step: int, steps: int, done: int | None) -> Iterator[Span]:
    for piece in sentence:
        match piece:
            case Scheduled():
                chosen = piece.before if step <= piece.last_step(steps, done) else piece.after
                yield from _spans_at(chosen, step, steps, done)
            case Alternating():
                yield from _spans_at(piece.texts[(step - 1) % len(piece.texts)], step, steps, done)
            case _:
                yield piece
