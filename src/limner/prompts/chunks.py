"""Prompts of any length as chunks for a text encoder, in the layout of AUTOMATIC1111's webui.

A text encoder takes `max_length` ids (77 for CLIP): a start token, up to 75 tokens, an end token, padding. A
longer prompt becomes several such chunks. Each is encoded on its own and the results are joined along the
tokens, to a context [B, chunks * max_length, C].

Weights are applied by `limner.model.text`. The default is webui's emphasis "Original": with z [max_length, C]
the encoder's output for one chunk, after its final norm, and w its weights [max_length, 1],

    z' = z * w * mean(z) / mean(z * w)        both means over the whole chunk

"No norm" leaves out the means, "Ignore" the weights; "None" reads brackets as text.

A prompt and a negative prompt may have different numbers of chunks. Neither is padded: attention does not
change when its whole context is repeated, so the U-Net may evaluate each by itself, as webui does, or repeat
both to a common length, with one result. Padding the shorter with empty chunks, webui's option "Pad
prompt/negative prompt", changes the image.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from limner.errors import PromptError
from limner.prompts.attention import BREAK_WEIGHT, PromptSyntax, check_length, parse_attention
from limner.prompts.tokenizer import Tokenizer

COMMA_REACH = 20
"""A chunk that overflows within this many tokens of a comma ends at the comma instead (webui's default)."""


# Such as a hypernetwork; tags of adapters are removed from a prompt before it is encoded.
_EXTRA_NETWORK = re.compile(r"<\w{1,20}:[^<>]{1,200}>")


@dataclass(frozen=True)
class Chunk:
    """The input of one call of a text encoder.

    Attributes:
        ids: `max_length` token ids: start, tokens, end, padding.
        weights: Emphasis of each token; 1 for start, end and padding.
        length: Number of tokens besides start, end and padding.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    length: int = field(default=0, compare=False)


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as one chunk or more, and warnings about it."""

    chunks: tuple[Chunk, ...]
    warnings: tuple[str, ...] = ()


class LearnedWords(Protocol):
    """Words with token ids of their own (textual inversion)."""

    @property
    def pattern(self) -> re.Pattern[str] | None:
        """Matches any of them."""

    def ids(self, word: str) -> tuple[int, ...]:
        """The ids of a word; none if it is to be read as an ordinary word."""

    def warnings(self, word: str) -> tuple[str, ...]:
        """Why a word is read as an ordinary one."""


def tokenize_prompt(
    prompt: str,
    tokenizer: Tokenizer,
    syntax: PromptSyntax = "a1111",
    words: LearnedWords | None = None,
    *,
    cut: bool = False,
) -> TokenizedPrompt:
    """Tokenize a prompt and divide it into chunks; an empty prompt is a single chunk of padding.

    A chunk ends when it is full, or at `BREAK`. If a word does not fit and the last comma is at most
    COMMA_REACH tokens back, everything after that comma moves to the next chunk.

    Args:
        prompt: Text of one step, without comments.
        tokenizer: Tokenizer of the text encoder.
        syntax: "a1111" for the emphasis grammar of `limner.prompts.attention`; "literal" reads every
            character, and BREAK, as text of weight 1.
        words: Learned words; the ids of one word stay within a chunk.
        cut: Drop the tokens that do not fit into the first chunk, with a warning.

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
        """End the chunk after `size` tokens; the others begin the next."""
        nonlocal last_comma
        padding = (1.0,) * (tokenizer.max_length - 1 - size)
        chunks.append(Chunk(tokenizer.pad_ids(ids[:size]), (1.0, *weights[:size], *padding), size))
        del ids[:size], weights[:size]
        last_comma = None

    for text, weight in pieces:
        if syntax == "a1111" and text == "BREAK":
            if weight == BREAK_WEIGHT:
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
        for token, word_length in tokens:
            if word_length and len(ids) + word_length > room:
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
            f"{found.group()!r} is not supported; its text is read as words."
            for found in _EXTRA_NETWORK.finditer(prompt)
        )
    return TokenizedPrompt(tuple(chunks), tuple(dict.fromkeys(warnings)))


def _tokens(
    text: str, tokenizer: Tokenizer, words: LearnedWords | None, warnings: list[str]
) -> Iterator[tuple[int, int]]:
    """Ids of a text, each with the number of ids of the learned word that it begins; 0 for all other ids."""
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
