"""Extra networks in a prompt: `<lora:name:0.8>`, as AUTOMATIC1111 writes them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_TAG = re.compile(r"<(\w+):([^>]+)>")


@dataclass(frozen=True)
class ExtraNetwork:
    """One tag.

    Attributes:
        kind: "lora", "hypernet" …
        positional, named: its arguments; those of the form key=value are named.
    """

    kind: str
    positional: tuple[str, ...]
    named: Mapping[str, str]

    @property
    def items(self) -> tuple[str, ...]:
        """All arguments as they stand, the named ones last."""
        return (*self.positional, *(f"{key}={value}" for key, value in self.named.items()))


def take_networks(prompt: str, kinds: frozenset[str] | None = None) -> tuple[str, tuple[ExtraNetwork, ...]]:
    """Take the tags of some kinds, or of all, out of a prompt.

    Returns:
        the prompt without them, and the tags.
    """
    found: list[ExtraNetwork] = []

    def take(match: re.Match[str]) -> str:
        if kinds is not None and match[1] not in kinds:
            return match[0]
        items = match[2].split(":")
        named = dict(item.split("=") for item in items if item.count("=") == 1)
        positional = tuple(item for item in items if item.count("=") != 1)
        found.append(ExtraNetwork(match[1], positional, named))
        return ""

    return _TAG.sub(take, prompt), tuple(found)
