"""How a checkpoint reads prompts: its tokenizer, the words that it knows, learned words. No torch."""

import re
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

from limner.catalogue.catalogue import Entry
from limner.catalogue.headers import read_infos
from limner.catalogue.layout import CARD
from limner.catalogue.shipped import SHIPPED
from limner.errors import LimnerError
from limner.files import StampCache, read_json
from limner.prompts.tokenizer import Tokenizer

_FOLDERS = ("tokenizer", "tokenizer_2")


def tokenizer_of(checkpoint: Path) -> tuple[Tokenizer, bool]:
    """The tokenizer of a checkpoint, and whether it is its own: single files have none, and their prompts are
    counted by the one that ships, which gives about as many tokens."""
    for name in _FOLDERS:
        if (folder := checkpoint / name).is_dir():
            try:
                return _tokenizers().get(folder), True
            except (LimnerError, OSError):  # broken, which the worker reports
                break
    return _tokenizers().get(SHIPPED["picturebook"] / _FOLDERS[0]), False


def known_words(checkpoint: Path) -> frozenset[str] | None:
    """All words that a model with a small vocabulary was trained on; None for other models."""
    card = checkpoint / CARD
    if not card.is_file():
        return None
    try:
        words = read_json(card).get("words")
    except LimnerError:
        return None
    return None if not isinstance(words, list) else frozenset(map(str, words))


class CatalogueWords:
    """Textual inversions of a catalogue as learned words: each vector has an id, which only counts.

    Args:
        entries: Embeddings, of one family.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = {entry.name.rpartition("/")[2].lower(): entry for entry in entries}

    @cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """Matches any of the words as a whole word; None if there are no words."""
        names = sorted(self.entries, key=len, reverse=True)
        if not names:
            return None
        return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, names))})(?![\w-])", re.IGNORECASE)

    def files_in(self, text: str) -> tuple[Path, ...]:
        """The files whose words a text has."""
        found = () if self.pattern is None else self.pattern.findall(text)
        return tuple(self.entries[word].path for word in dict.fromkeys(map(str.lower, found)))

    def ids(self, word: str) -> tuple[int, ...]:
        """One id for each vector of a word. A pickle, which is not opened here, counts as one."""
        entry = self.entries[word.lower()]
        try:
            shapes = [info.shape for info in read_infos(entry.path).values()]
        except (LimnerError, OSError):
            return (0,)
        return (0,) * max((shape[0] for shape in shapes if len(shape) == 2), default=1)

    def warnings(self, word: str) -> tuple[str, ...]:
        """None: a word that cannot be used is reported by the worker."""
        return ()


@cache
def _tokenizers() -> StampCache[Tokenizer]:
    return StampCache(Tokenizer.from_folder, 16)
