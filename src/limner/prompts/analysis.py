"""A prompt as a text encoder will see it, each token with its place in the text that was typed.

Editors mark weights, chunks and unknown names with it. It follows the reading of a prompt step by step: tags
of adapters are taken out, comments dropped, schedules resolved, prompts joined by AND split, weights applied,
and the rest is cut into tokens and chunks.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from .attention import BREAK_WEIGHT, PromptSyntax, attention_pieces
from .chunks import LearnedWords, tokenize_prompt
from .comments import kept_characters
from .networks import ExtraNetwork, find_networks
from .schedule import compose, schedule_spans
from .tokenizer import Tokenizer

MAX_RANGES = 20
"""Number of step ranges that are analysed; alternating words make one for each step."""


@dataclass(frozen=True)
class TokenSpan:
    """A token.

    Attributes:
        start, end: Its characters in the prompt.
        id: Id in the vocabulary; None for a vector of a learned word.
        text: As the vocabulary has it.
        weight: Its emphasis.
        chunk: Number of the chunk that it is in, from 0.
    """

    start: int
    end: int
    id: int | None
    text: str
    weight: float
    chunk: int


@dataclass(frozen=True)
class PromptPart:
    """One of the prompts that AND combines.

    Attributes:
        text: The text that is encoded.
        weight: Its weight.
        tokens: Its tokens, in order.
        chunks: Number of tokens of each chunk.
        warnings: What was not read as it may have been meant.
    """

    text: str
    weight: float
    tokens: tuple[TokenSpan, ...]
    chunks: tuple[int, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class PromptSteps:
    """The prompts of a range of steps.

    Attributes:
        first, last: Its first and last step, from 1.
        parts: The prompts.
    """

    first: int
    last: int
    parts: tuple[PromptPart, ...]


@dataclass(frozen=True)
class NetworkSpan:
    """A tag of an adapter.

    Attributes:
        start, end: Its characters in the prompt.
        network: What it says.
    """

    start: int
    end: int
    network: ExtraNetwork


@dataclass(frozen=True)
class PromptAnalysis:
    """How a prompt is read.

    Attributes:
        networks: Tags of adapters.
        steps: The prompts from step to step; at most MAX_RANGES of them.
        complete: Whether these are all.
        chunk_size: Number of tokens that a chunk holds.
    """

    networks: tuple[NetworkSpan, ...]
    steps: tuple[PromptSteps, ...]
    complete: bool
    chunk_size: int


class _Located:
    """A text whose characters have places in the prompt."""

    def __init__(self, text: str, places: Sequence[int]) -> None:
        self.text, self.places = text, places

    def part(self, spans: Iterable[tuple[int, int]]) -> "_Located":
        """Some parts of it, joined."""
        kept = [index for begin, end in spans for index in range(begin, end)]
        return _Located("".join(self.text[i] for i in kept), [self.places[i] for i in kept])

    def span(self, begin: int, end: int) -> tuple[int, int]:
        """Begin and end in the prompt of some of its characters, at least one."""
        places = self.places[begin:end]
        return min(places), max(places) + 1


def analyse_prompt(
    prompt: str,
    tokenizer: Tokenizer,
    syntax: PromptSyntax = "a1111",
    words: LearnedWords | None = None,
    *,
    steps: int = 30,
) -> PromptAnalysis:
    """How a prompt is read by a model with this tokenizer.

    Args:
        words: Learned words.
        steps: Number of sampling steps, for schedules.

    Raises:
        PromptError: It cannot be read at all.
    """
    room = tokenizer.max_length - 2
    located = _Located(prompt, range(len(prompt)))
    if syntax == "literal":
        part = _part(located, 1.0, tokenizer, syntax, words)
        return PromptAnalysis((), (PromptSteps(1, steps, (part,)),), True, room)
    tags = tuple(NetworkSpan(*found) for found in find_networks(prompt))
    ends, starts = [0, *(tag.end for tag in tags)], [*(tag.start for tag in tags), len(prompt)]
    located = located.part(zip(ends, starts, strict=True))
    located = located.part((index, index + 1) for index in kept_characters(located.text))
    ranges = schedule_spans(located.text, steps)
    found, first = [], 1
    for last, spans in ranges[:MAX_RANGES]:
        wanted = located.part(spans)
        parts = [
            _part(wanted.part([(one.start, one.start + len(one.text))]), one.weight, tokenizer, syntax, words)
            for one in compose(wanted.text)
        ]
        found.append(PromptSteps(first, last, tuple(parts)))
        first = last + 1
    return PromptAnalysis(tags, tuple(found), len(ranges) <= MAX_RANGES, room)


def _part(
    located: _Located, weight: float, tokenizer: Tokenizer, syntax: PromptSyntax, words: LearnedWords | None
) -> PromptPart:
    tokenized = tokenize_prompt(located.text, tokenizer, syntax, words)
    chunk_of = [number for number, chunk in enumerate(tokenized.chunks) for _ in range(chunk.length)]
    tokens: list[TokenSpan] = []
    pieces = [(located.text, 1.0, 0)] if syntax == "literal" else attention_pieces(located.text)
    for emphasis, group in groupby(pieces, key=lambda piece: piece[1]):
        joined = located.part((start, start + len(text)) for text, _, start in group)
        if syntax == "a1111" and joined.text == "BREAK" and emphasis == BREAK_WEIGHT:
            continue
        for begin, end, index in _tokens(joined.text, tokenizer, words):
            where = joined.span(begin, end) if end > begin else (0, 0)
            text = "" if index is None else tokenizer.tokens([index])[0]
            tokens.append(TokenSpan(*where, index, text, emphasis, chunk_of[len(tokens)]))
    lengths = tuple(chunk.length for chunk in tokenized.chunks)
    return PromptPart(located.text, weight, tuple(tokens), lengths, tokenized.warnings)


def _tokens(
    text: str, tokenizer: Tokenizer, words: LearnedWords | None
) -> Iterable[tuple[int, int, int | None]]:
    """Begin, end and id of the tokens of a text, as `limner.prompts.chunks` reads it."""
    pattern: re.Pattern[str] | None = None if words is None else words.pattern
    matches = [] if words is None or pattern is None else list(pattern.finditer(text))
    done = 0
    for match in (*matches, None):
        ids = () if match is None or words is None else words.ids(match[0])
        if match is not None and not ids:
            continue
        until = len(text) if match is None else match.start()
        yield from ((done + b, done + e, index) for index, b, e in tokenizer.encode_spans(text[done:until]))
        if match is not None:
            yield from ((match.start(), match.end(), None) for _ in ids)
            done = match.end()
