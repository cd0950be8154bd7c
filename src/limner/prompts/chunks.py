"""Prompts of any length as the chunks that a text encoder reads, laid out as AUTOMATIC1111's webui does.

A text encoder takes `max_length` ids (77 for CLIP): a start token, up to 75 tokens, an end token, padding. A
longer prompt becomes several such chunks. Each is encoded on its own and the results are joined along the
tokens, to a context [B, chunks * max_length, C].

A caller applies the weights as webui's emphasis "Original" does: with z [max_length, C] the encoder's output
for one chunk, after its final norm, and w its weights [max_length, 1],

    z' = z * w * mean(z) / mean(z * w)        both means over the whole chunk

"No norm" leaves the means out, "Ignore" the weights; "None" reads brackets as words.

A prompt and a negative prompt may have different numbers of chunks. Neither is padded: attention does not
change when its whole context is repeated, so the U-Net may evaluate each by itself, as webui does, or repeat
both to a common length, with one result. Padding the shorter with empty chunks, webui's option "Pad
prompt/negative prompt", changes the picture.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from limner.errors import PromptError
from limner.prompts.attention import check_length, parse_attention
from limner.prompts.tokenizer import Tokenizer

PromptSyntax = Literal["a1111", "literal"]
Emphasis = Literal["original", "no_norm", "ignore", "none"]

COMMA_REACH = 20
"""A chunk that overflows within this many tokens of a comma ends at the comma instead (webui's default)."""


# Such as a hypernetwork; the adapters among them have been taken out of a prompt before it comes here.
_EXTRA_NETWORK = re.compile(r"<\w{1,20}:[^<>]{1,200}>")


@dataclass(frozen=True)
class Chunk:
    """What a text encoder reads at once.

    Attributes:
        ids: `max_length` token ids: start, tokens, end, padding.
        weights: the emphasis of each; 1 for start, end and padding.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as one chunk or more, and what its writer should know about it."""

    chunks: tuple[Chunk, ...]
    warnings: tuple[str, ...] = ()


class LearnedWords(Protocol):
    """Words that stand for ids of their own (textual inversion)."""

    @property
    def pattern(self) -> re.Pattern[str] | None:
        """Matches any of them."""

    def ids(self, word: str) -> tuple[int, ...]:
        """The ids of one; none where it is to be read as any other word."""

    def warnings(self, word: str) -> tuple[str, ...]:
        """Why it is read as any other word."""


def encode_prompt(
    prompt: str,
    tokenizer: Tokenizer,
    syntax: PromptSyntax = "a1111",
    words: LearnedWords | None = None,
    *,
    cut: bool = False,
) -> EncodedPrompt:
    """Turns a prompt into chunks; an empty one is a single chunk of padding.

    A chunk ends when it is full, or at `BREAK`. When a word no longer fits and the last comma lies at most
    COMMA_REACH tokens back, what follows that comma moves to the next chunk along with it.

    Args:
        prompt: as the user wrote it.
        tokenizer: of the text encoder that will read the chunks.
        syntax: "a1111" for the emphasis grammar of `limner.prompts.attention`; "literal" takes every sign for
            itself, BREAK too, and all weights are 1.
        words: that have ids of their own; those of one word stay within a chunk.
        cut: leave out all tokens that do not fit the first chunk, with a warning.

    Raises:
        PromptError: the prompt is too long, cannot be parsed or is not Unicode; the syntax is unknown.
    """
    if syntax == "a1111":
        pieces = parse_attention(prompt)
    elif syntax == "literal":
        check_length(prompt)
        pieces = [(prompt, 1.0)]
    else:
        raise PromptError(f"The prompt syntax is {syntax!r}, expected 'a1111' or 'literal'.")

    comma = next(iter(tokenizer.encode(",")), None)
    room = tokenizer.max_length - 2
    chunks: list[Chunk] = []
    warnings: list[str] = []
    ids: list[int] = []
    weights: list[float] = []
    last_comma: int | None = None

    def end_chunk(size: int) -> None:
        """Ends the chunk after `size` tokens; those beyond begin the next."""
        nonlocal last_comma
        padding = (1.0,) * (tokenizer.max_length - 1 - size)
        chunks.append(Chunk(tokenizer.pad_ids(ids[:size]), (1.0, *weights[:size], *padding)))
        del ids[:size], weights[:size]
        last_comma = None

    for text, weight in pieces:
        if syntax == "a1111" and text == "BREAK":
            if weight == -1:
                end_chunk(len(ids))
                continue
            warnings.append(
                "BREAK inside brackets is read as a word, as in AUTOMATIC1111; close the brackets before it."
            )
        tokens = list(_tokens(text, tokenizer, words, warnings))
        if cut and len(ids) + len(tokens) > room:
            left_out = len(ids) + len(tokens) - room
            warnings.append(f"the prompt is cut after {room} tokens: the last {left_out} are left out")
            tokens = [(token, 0) for token, _ in tokens[: room - len(ids)]]
        for token, more in tokens:
            if more and len(ids) + more > room:
                end_chunk(len(ids))
            if len(ids) == room:
                end = room
                if token != comma and last_comma is not None and room - last_comma <= COMMA_REACH:
                    end = last_comma + 1
                end_chunk(end)
            if token == comma:
                last_comma = len(ids)
            ids.append(token)
            weights.append(weight)
    if ids or not chunks:
        end_chunk(len(ids))
    if syntax == "a1111":
        warnings += (
            f"{found.group()!r} is not acted on; its text is read as words."
            for found in _EXTRA_NETWORK.finditer(prompt)
        )
    return EncodedPrompt(tuple(chunks), tuple(dict.fromkeys(warnings)))


def _tokens(
    text: str, tokenizer: Tokenizer, words: LearnedWords | None, warnings: list[str]
) -> Iterator[tuple[int, int]]:
    """Ids of a text, and with the first of a learned word's ids how many there are of it, otherwise 0."""
    pattern = None if words is None else words.pattern
    if words is None or pattern is None:
        yield from ((token, 0) for token in tokenizer.encode(text))
        return
    done = 0
    for match in pattern.finditer(text):
        ids = words.ids(match[0])
        warnings += words.warnings(match[0])
        if ids:
            if len(ids) > tokenizer.max_length - 2:
                raise PromptError(
                    f"The word {match[0]!r} stands for {len(ids)} vectors, more than a chunk holds."
                )
            yield from ((token, 0) for token in tokenizer.encode(text[done : match.start()]))
            yield from ((token, len(ids) * (index == 0)) for index, token in enumerate(ids))
            done = match.end()
    yield from ((token, 0) for token in tokenizer.encode(text[done:]))
