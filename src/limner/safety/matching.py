"""Finds the terms of lists in a text.

A term is a word or several: `nude`, `little girl`. A `*` at the end of a word stands for any ending, `{age}`
for a number from 1 to 17, in digits or spelled. Case, accents, signs between words and hidden spellings do
not matter: see `normalise`. A term with ñ needs one, as Spanish has other words without.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .normalise import GLUED, Reading, fold, readings, runs, words_of

_NUMBERS = (
    "one two three four five six seven eight nine ten eleven twelve "
    "thirteen fourteen fifteen sixteen seventeen "
    "vier funf sechs sieben acht neun zehn elf zwolf dreizehn vierzehn funfzehn sechzehn siebzehn "
    "quatre cinq sept huit neuf dix onze douze treize quatorze quinze seize "
    "cuatro cinco seis siete ocho nueve diez doce trece catorce quince dieciseis diecisiete"
)
_AGE = rf"(?:0?[1-9]|1[0-7]|{'|'.join(_NUMBERS.split())})"
_BEGINNING = 2  # letters by which words with any ending are looked up
_SHORTEST_GLUED = 3  # letters of a term within a longer word
_SHORTEST_SPACED = 4  # letters of a term within a run of spaced letters


@dataclass(frozen=True)
class Hit:
    """A term that was found.

    Attributes:
        list: Name of its list.
        term: The term as the list has it.
        start, end: Its place in the text.
        certainty: How surely the text says it, as `Reading.certainty`.
    """

    list: str
    term: str
    start: int
    end: int
    certainty: float


class _Word:
    """One word of a term, compiled.

    Attributes:
        exact: The word; None if it stands for several.
        stem: How it begins, if it stands for all words that begin so.
    """

    def __init__(self, text: str) -> None:
        self.exact: str | None = None
        self.stem: str | None = None
        if "{age}" in text:
            before, _, after = text.partition("{age}")
            self._pattern = re.compile(re.escape(before) + _AGE + re.escape(after).replace(r"\*", r"\w*"))
        elif text.endswith("*"):
            self.stem = text[:-1]
        else:
            self.exact = text

    def matches(self, word: str) -> bool:
        """Whether a word of a text is this one."""
        if self.exact is not None:
            return word == self.exact
        return word.startswith(self.stem) if self.stem is not None else bool(self._pattern.fullmatch(word))


@dataclass(frozen=True)
class _Term:
    list: str
    text: str
    words: tuple[_Word, ...]

    @property
    def glued(self) -> str | None:
        """Its words without spaces; None for one with endings or ages."""
        words = [word.exact for word in self.words]
        return None if None in words else "".join(filter(None, words))


class Matcher:
    """The compiled terms of lists.

    Args:
        lists: Name -> terms.
    """

    def __init__(self, lists: Mapping[str, tuple[str, ...]]) -> None:
        terms = [
            _Term(name, text, tuple(map(_Word, _words_of_term(text))))
            for name, texts in lists.items()
            for text in texts
        ]
        self._exact: dict[str, list[_Term]] = defaultdict(list)  # by their first word
        self._open: dict[str, list[_Term]] = defaultdict(list)  # by the first letters of their first word
        self._glued: dict[str, list[_Term]] = defaultdict(list)  # by all words without spaces
        self._stems: dict[str, list[_Term]] = defaultdict(list)  # of one word with any ending
        self._words: set[str] = set()
        self._endings: dict[str, list[_Word]] = defaultdict(list)  # words with any ending, and ages
        for term in terms:
            first = term.words[0]
            if first.exact is not None:
                self._exact[first.exact].append(term)
            else:
                self._open[(first.stem or "")[:_BEGINNING]].append(term)
            if (glued := term.glued) is not None:
                self._glued[glued].append(term)
            if len(term.words) == 1 and len(stem := first.stem or "") >= _SHORTEST_SPACED:
                self._stems[stem].append(term)
            for word in term.words:
                if word.exact is not None:
                    self._words.add(word.exact)
                else:
                    self._endings[(word.stem or "")[:_BEGINNING]].append(word)
        self._by_letters: dict[str, list[str]] = defaultdict(list)
        for known in self._words | self._glued.keys():
            self._by_letters[_letters(known)].append(known)
        self._stems_by_letters: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for stem in self._stems:
            self._stems_by_letters[_letters(stem)[:_BEGINNING]].append((stem, _letters(stem)))
        self._longest_glued = max(map(len, self._glued), default=0)

    def find(self, text: str) -> list[Hit]:
        """The terms in a text, each with every place and the highest certainty it has there."""
        found = readings(text, self)
        starting: dict[int, list[Reading]] = defaultdict(list)
        for reading in found:
            if reading.exact:
                starting[reading.first].append(reading)
        best: dict[tuple[str, str, int, int], Hit] = {}
        for hit in self._hits(found, starting):
            key = (hit.list, hit.term, hit.start, hit.end)
            if (
                "ñ" in hit.term
                and "ñ" not in unicodedata.normalize("NFKC", text[hit.start : hit.end]).casefold()
            ):
                continue
            if key not in best or best[key].certainty < hit.certainty:
                best[key] = hit
        return sorted(best.values(), key=lambda hit: (hit.start, hit.end, hit.list))

    def has(self, word: str) -> bool:
        """Whether a word is, or begins as, one of a term, or a term without its spaces."""
        if word in self._words or word in self._glued:
            return True
        return any(one.matches(word) for start in _beginnings(word) for one in self._endings.get(start, ()))

    def repeated_in(self, word: str) -> Iterator[str]:
        """The words of terms, and terms without spaces, that become this word when letters are repeated."""
        counts, letters = runs(word), _letters(word)
        for known in self._by_letters.get(letters, ()):
            pairs = zip(counts, runs(known), strict=True)
            if known != word and all(more >= count for (_, more), (_, count) in pairs):
                yield known
        for stem, start in self._stems_by_letters.get(letters[:_BEGINNING], ()):
            if letters.startswith(start) and not word.startswith(stem):
                yield stem

    def _beginning_with(self, word: str) -> Iterator[_Term]:
        """The terms whose first word this is."""
        yield from self._exact.get(word, ())
        for start in _beginnings(word):
            for term in self._open.get(start, ()):
                if term.words[0].matches(word):
                    yield term

    def _hits(self, found: list[Reading], starting: Mapping[int, list[Reading]]) -> Iterator[Hit]:
        for reading in found:
            if not reading.exact:
                yield from self._within(reading)
                continue
            for term in self._beginning_with(reading.text):
                for end, certainty in _ends(term.words[1:], reading, starting):
                    yield Hit(term.list, term.text, reading.start, end, certainty)
            yield from self._parts(reading)

    def _within(self, reading: Reading) -> Iterator[Hit]:
        """Terms in a run of spaced letters, or those that fit a starred word."""
        text = reading.text
        if "*" in text:
            whole = re.compile(re.escape(text).replace(r"\*", "[a-z]"))
            found = [glued for glued in self._glued if whole.fullmatch(glued)]
            found += [stem for stem in self._stems if re.match(text[: len(stem)].replace("*", "[a-z]"), stem)]
            found = [one for one in found if len(one) <= len(text)]
        else:
            found = [
                one for one in self._glued if one in text and (len(one) >= _SHORTEST_SPACED or one == text)
            ]
            found += [stem for stem in self._stems if stem in text]
        for one in dict.fromkeys(found):
            for term in (*self._glued.get(one, ()), *self._stems.get(one, ())):
                yield Hit(term.list, term.text, reading.start, reading.end, reading.certainty)

    def _parts(self, reading: Reading) -> Iterator[Hit]:
        """Terms that are written without spaces: all of the word must consist of them."""
        word = reading.text
        if len(word) < 2 * _SHORTEST_GLUED:
            return
        # Index of a letter -> the last term that ends there, where all letters before are terms.
        last: dict[int, str] = {0: ""}
        for end in range(_SHORTEST_GLUED, len(word) + 1):
            for begin in range(max(0, end - self._longest_glued), end - _SHORTEST_GLUED + 1):
                if begin in last and word[begin:end] in self._glued:
                    last[end] = word[begin:end]
                    break
        end = len(word)
        while end and end in last:
            certainty = reading.certainty if last[end] == word else round(reading.certainty * GLUED, 3)
            for term in self._glued[last[end]]:
                if len(term.words) > 1 or last[end] != word:
                    yield Hit(term.list, term.text, reading.start, reading.end, certainty)
            end -= len(last[end])


def _ends(
    words: tuple[_Word, ...], before: Reading, starting: Mapping[int, list[Reading]]
) -> Iterator[tuple[int, float]]:
    """Where a term ends whose first words end with a reading, and the lowest certainty on the way."""
    if not words:
        yield before.end, before.certainty
        return
    for reading in starting.get(before.last, ()):
        if words[0].matches(reading.text):
            for end, certainty in _ends(words[1:], reading, starting):
                yield end, min(before.certainty, certainty)


def _beginnings(word: str) -> tuple[str, ...]:
    """What a term's first word may begin with, as an index of them."""
    return "", word[:1], word[:_BEGINNING]


def _letters(word: str) -> str:
    """A word without repetitions of letters."""
    return "".join(letter for letter, _ in runs(word))


def _words_of_term(text: str) -> list[str]:
    """The words of a term, folded as those of a text are; `*` and `{age}` stay."""
    if "*" not in text and "{" not in text:
        return words_of(text)
    return [fold(word).text for word in re.split(r"[\s-]+", text)]
