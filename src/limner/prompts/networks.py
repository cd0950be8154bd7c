"""Extra networks in a prompt: `<lora:name:0.8>`, as AUTOMATIC1111 writes them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .comments import text_spans

LORA_TAGS = frozenset({"lora", "lyco"})
"""Kinds of tags that name LoRAs."""

_TAG = re.compile(r"<(\w+):([^>]+)>")


@dataclass(frozen=True)
class ExtraNetwork:
    """One tag.

    Attributes:
        kind: "lora", "hypernet" …
        positional, named: Its arguments; those of the form key=value are named.
    """

    kind: str
    positional: tuple[str, ...]
    named: Mapping[str, str]

    @property
    def items(self) -> tuple[str, ...]:
        """All arguments, the named ones last."""
        return (*self.positional, *(f"{key}={value}" for key, value in self.named.items()))


def take_networks(prompt: str, kinds: frozenset[str] | None = None) -> tuple[str, tuple[ExtraNetwork, ...]]:
    """The prompt without its tags of some kinds, or of all, and those tags. Comments keep theirs."""
    found = list(find_networks(prompt, kinds))
    ends = [0, *(end for _, end, _ in found)]
    starts = [*(start for start, _, _ in found), len(prompt)]
    kept = "".join(prompt[end:start] for end, start in zip(ends, starts, strict=True))
    return kept, tuple(network for _, _, network in found)


def find_networks(
    prompt: str, kinds: frozenset[str] | None = None
) -> Iterator[tuple[int, int, ExtraNetwork]]:
    """The tags of some kinds, or of all, outside of comments: where each begins and ends, what it says."""
    for begin, end in text_spans(prompt):
        for match in _TAG.finditer(prompt, begin, end):
            if kinds is None or match[1] in kinds:
                items = match[2].split(":")
                named = dict(item.split("=") for item in items if item.count("=") == 1)
                positional = tuple(item for item in items if item.count("=") != 1)
                yield match.start(), match.end(), ExtraNetwork(match[1], positional, named)
