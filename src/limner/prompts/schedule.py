"""Prompts that change from step to step and are made of several, in AUTOMATIC1111's grammar.

    [from:to:10]  [to:10]  [from::10]   another text after so many steps; 0.5 is half of them
    [a|b|c]                             taking turns, step by step
    one AND another :0.8                several prompts, each with a weight, evaluated apart

The first two are worked out first, so that each step has a text, and AND then takes that apart. A prompt that
is no sentence of the grammar, such as a bare `|`, is taken as it stands, as webui does.
"""

import re
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

_PLAIN = re.compile(r"(?:[^\\\[\]():|]|\\.)+", re.DOTALL)
_WHEN = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*\]")
_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+))\s*\Z")
_MAX_DEPTH = 100  # brackets open at once; a prompt with more is taken as it stands


@dataclass(frozen=True)
class Scheduled:
    """One text up to a step, another after it. The texts may be sentences of the grammar themselves."""

    before: "Sentence"
    after: "Sentence"
    when: str

    def last_step(self, steps: int, done: int | None) -> int:
        """The last step of the first text, 0 for none.

        Args:
            steps: of this run.
            done: the steps of the run before it, which whole numbers count too; None for a first run.
        """
        number = float(self.when)
        if "." in self.when:
            number = (number - (done is not None)) * steps
        else:
            number -= done or 0
        return min(steps, int(number))


@dataclass(frozen=True)
class Alternating:
    """Texts that take turns."""

    texts: tuple["Sentence", ...]


Sentence = tuple["str | Scheduled | Alternating", ...]


@dataclass(frozen=True)
class Part:
    """One of the prompts that AND joins."""

    text: str
    weight: float = 1.0


def prompt_schedule(prompt: str, steps: int, done: int | None = None) -> list[tuple[int, str]]:
    """The texts of a prompt, each with the last step, from 1, that it holds for.

    Args:
        steps: how many there are.
        done: for a second run over the same picture (hires), the steps of the first: whole numbers count
            from its beginning, and fractions go on from 1.
    """
    sentence = _parse(prompt)
    if sentence is None:
        return [(steps, prompt)]
    ends = sorted({*_ends(sentence, steps, done), steps})
    return [(end, _text_at(sentence, end, steps, done)) for end in ends]


def compose(text: str) -> list[Part]:
    """The prompts that AND joins, with their weights."""
    parts = []
    for part in _AND.split(text):
        match = _WEIGHT.search(part)
        parts.append(Part(part.rstrip()) if match is None else Part(part[: match.start()], float(match[1])))
    return parts


def _parse(prompt: str) -> Sentence | None:
    """None for what is no sentence of the grammar."""

    if _depth(prompt) > _MAX_DEPTH:
        return None

    @cache
    def group(at: int) -> tuple[Sentence, int] | None:
        """What begins with the bracket at this place, and where it ends; None if it is just a bracket."""
        opening = prompt[at]
        first, end = inner(at + 1)
        sign = prompt[end : end + 1]
        if opening == "(":
            if sign == ":":
                second, end = inner(end + 1)
                first, sign = (*first, ":", *second), prompt[end : end + 1]
            return (("(", *first, ")"), end + 1) if sign == ")" else None
        if sign == "]":
            return ("[", *first, "]"), end + 1
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
        """What stands within brackets, up to a sign that does not belong to it."""
        found: list[str | Scheduled | Alternating] = []
        while at < len(prompt):
            if plain := _PLAIN.match(prompt, at):
                found.append(plain[0])
                at = plain.end()
            elif prompt[at] in "([" and (grouped := group(at)):
                found += grouped[0]
                at = grouped[1]
            else:
                break
        return tuple(found), at

    sentence: list[str | Scheduled | Alternating] = []
    at = 0
    while at < len(prompt):
        some, at = inner(at)
        sentence += some
        if at < len(prompt):  # a bracket or colon with nothing to belong to is itself; nothing else may be
            if prompt[at] not in "[]():":
                return None
            sentence.append(prompt[at])
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


def _text_at(sentence: Sentence, step: int, steps: int, done: int | None) -> str:
    def of(piece: str | Scheduled | Alternating) -> str:
        match piece:
            case Scheduled():
                chosen = piece.before if step <= piece.last_step(steps, done) else piece.after
            case Alternating():
                chosen = piece.texts[(step - 1) % len(piece.texts)]
            case _:
                return piece
        return _text_at(chosen, step, steps, done)

    return "".join(map(of, sentence))
