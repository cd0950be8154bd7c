"""What an editor of prompts may complete: LoRAs, embeddings, wildcards, styles and words.

A catalogue of thousands is indexed once and answers in milliseconds; no folder is searched for a completion.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from limner.catalogue.catalogue import Catalogue, Entry
from limner.catalogue.contents import FAMILY_NAMES
from limner.errors import LimnerError
from limner.files import StampCache
from limner.prompts.styles import Style, read_styles
from limner.prompts.wildcards import Wildcards

from .vocabulary import known_words

CompletionKind = Literal["lora", "embedding", "wildcard", "style", "word"]
COMPLETION_KINDS: tuple[CompletionKind, ...] = get_args(CompletionKind)

_WILDCARDS_SECONDS = 10.0  # that a list of the files for wildcards is used
_UNITS = ("bytes", "kB", "MB", "GB")


@dataclass(frozen=True)
class Completion:
    """Something that can be completed.

    Attributes:
        kind: What it is.
        name: Its name.
        insert: What stands in the prompt for it; for a style, its name, which stands in `styles`.
        trigger_words: Words that it answers to.
        detail: What it is, in a few words.
        family: Family of models that it serves; empty for any.
        entry: Of the catalogue; None for what is not in it.
    """

    kind: CompletionKind
    name: str
    insert: str
    trigger_words: tuple[str, ...] = ()
    detail: str = ""
    family: str = ""
    entry: Entry | None = None


class Completions:
    """Completes the words of prompts. Safe to use from any thread.

    Args:
        catalogue: LoRAs and embeddings.
        wildcards: Files for wildcards.
        styles_files: Files of styles.
    """

    def __init__(self, catalogue: Catalogue, wildcards: Wildcards, styles_files: Sequence[Path]) -> None:
        self._catalogue, self._wildcards, self._styles_files = catalogue, wildcards, tuple(styles_files)
        self._styles: StampCache[list[Style]] = StampCache(read_styles, 64)
        self._indexed: tuple[Sequence[Entry], tuple[Completion, ...]] = ((), ())
        self._listed: tuple[float, tuple[Completion, ...]] = (float("-inf"), ())

    def find(
        self, text: str, model: Entry, kinds: Iterable[CompletionKind] = COMPLETION_KINDS, limit: int = 20
    ) -> list[Completion]:
        """What begins with a text or holds it, the likeliest first. What is for another family is left out.

        Args:
            text: Of the name or of a trigger word, in either case; empty for all but words.
            model: The checkpoint that the prompt is for.
        """
        wanted = text.strip().casefold()
        sources: dict[CompletionKind, Callable[[], Iterable[Completion]]] = {
            "lora": lambda: self._of_catalogue("lora", model),
            "embedding": lambda: self._of_catalogue("embedding", model),
            "wildcard": self._of_wildcards,
            "style": self._of_styles,
            "word": lambda: _words(model) if wanted else (),
        }
        found = []
        for order, kind in enumerate(dict.fromkeys(kinds)):
            for one in sources[kind]():
                if (rank := _rank(wanted, one)) is not None:
                    found.append((rank, order, len(one.name), one.name, one))
        return [one for *_, one in sorted(found, key=lambda row: row[:4])[:limit]]

    def _of_catalogue(self, kind: CompletionKind, model: Entry) -> Iterable[Completion]:
        families = ("", model.family)
        return (one for one in self._index() if one.kind == kind and one.family in families)

    def _index(self) -> tuple[Completion, ...]:
        """The completions of the catalogue, made anew where it has changed."""
        entries = self._catalogue.entries()
        known, index = self._indexed
        if known is not entries:
            index = tuple(_of_entries(entries))
            self._indexed = entries, index
        return index

    def _of_wildcards(self) -> tuple[Completion, ...]:
        until, found = self._listed
        if time.monotonic() >= until:
            names = self._wildcards.names()
            found = tuple(Completion("wildcard", name, f"__{name}__") for name in names)
            self._listed = time.monotonic() + _WILDCARDS_SECONDS, found
        return found

    def _of_styles(self) -> Iterable[Completion]:
        styles: dict[str, Style] = {}
        for file in self._styles_files:
            try:
                styles |= {style.name: style for style in self._styles.get(file)}
            except (LimnerError, OSError):  # a request that names one of its styles tells why
                continue
        return (Completion("style", one.name, one.name, detail=one.prompt[:200]) for one in styles.values())


def _of_entries(entries: Sequence[Entry]) -> Iterable[Completion]:
    """A completion for each LoRA and embedding that can be used."""
    for kind in ("lora", "embedding"):
        own = [entry for entry in entries if entry.kind == kind and entry.problem is None]
        stems = Counter(_stem(entry) for entry in own)
        for entry in own:
            stem = _stem(entry)
            alone = stem if stems[stem] == 1 else entry.name
            yield Completion(
                kind,
                entry.name,
                f"<lora:{alone}:1>" if kind == "lora" else stem,
                entry.trigger_words,
                f"{FAMILY_NAMES.get(entry.family, entry.family)} · {_size(entry.bytes)}",
                entry.family,
                entry,
            )


def _words(model: Entry) -> Iterable[Completion]:
    """The words of a model with a small vocabulary."""
    return (Completion("word", word, word) for word in known_words(model.path) or ())


def _rank(wanted: str, one: Completion) -> int | None:
    """How well something fits a text, 0 the best; None where it does not."""
    name = one.name.casefold()
    stem = name.rpartition("/")[2]
    if not wanted or wanted in (name, stem):
        return 0
    if stem.startswith(wanted) or name.startswith(wanted):
        return 1
    if one.kind == "word":
        return None
    if re.search(rf"(?<![^\W_]){re.escape(wanted)}", name):
        return 2
    if wanted in name:
        return 3
    words = (word.casefold() for word in one.trigger_words)
    return 4 if any(word.startswith(wanted) for word in words) else None


def _stem(entry: Entry) -> str:
    return entry.name.rpartition("/")[2]


def _size(count: float) -> str:
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {_UNITS[unit]}"
