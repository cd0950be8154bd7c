"""Text as a reader sees it: the words of a prompt, and the words that are written in a hidden way.

A text becomes *atoms*, its runs of letters and digits after NFKC, casefolding, removal of accents and of
invisible characters, and replacement of look-alikes of other scripts. Over the atoms lie *readings*: what
some of them spell together. An atom is a reading of itself; others undo digits for letters (`p0rn`), repeated
letters (`pooorn`), letters that are spaced out (`p o r n`) or separated by signs (`p.o.r.n`, `(p)orn`), and
starred ones (`p*rn`). Each has a certainty, which is lower the more a plain text may have it by chance, and
its place in the original text.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Protocol

PLAIN, HIDDEN, SIGNS, LEET, REPEATED, SPACED, STARRED, GLUED, BROKEN = (
    1.0,
    0.95,
    0.9,
    0.9,
    0.9,
    0.85,
    0.8,
    0.8,
    0.7,
)
"""The certainty of each kind of reading."""

_LOOK_ALIKES = {
    ord(other): latin
    for latin, others in {
        "a": "аα", "b": "вьβ", "c": "сϲ", "d": "ԁд", "e": "еεєҽэ", "g": "ց", "h": "нһհ", "i": "іι", "j": "јϳ",
        "k": "кκ", "l": "ӏ", "m": "м", "n": "пηոи", "o": "оοσօ", "p": "рρ", "q": "ԛ", "r": "гґя", "s": "ѕ",
        "t": "тτ", "u": "цυսμ", "v": "νѵ", "w": "ωԝш", "x": "хχ", "y": "уүγ", "z": "ζ",
    }.items()
    for other in others
}  # fmt: skip
_LATIN = re.compile(
    r"LATIN (?:SMALL |CAPITAL )*LETTER (?:(?:SMALL CAPITAL|SCRIPT|OPEN|DOTLESS|TURNED|REVERSED|BARRED) )*"
    r"([A-Z])(?: WITH .*)?"
)
_FRAMED = re.compile(
    r"(?:REGIONAL INDICATOR SYMBOL LETTER|NEGATIVE (?:CIRCLED|SQUARED) LATIN CAPITAL LETTER) ([A-Z])"
)
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u034f\u17b4\u17b5\u2800")  # invisible, but no format characters
_LEET = {
    "0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "6": "g", "7": "t", "8": "b", "9": "g",
    "@": "a", "$": "s", "€": "e", "£": "l", "!": "i", "|": "l", "+": "t",
}  # fmt: skip
_SYMBOLS = "@$€£"  # in words these are letters
_ATOM = re.compile(rf"(?:[^\W_]|[{_SYMBOLS}])+")
_CHUNK = re.compile(r"\S+")
_STARS = "*#•×"
_STARRED_WORD = re.compile(rf"(?:[^\W_]|[{_STARS}])+")
_VOWELS = frozenset("aeiouyàéèó")  # words of one letter in some language
_MOST_JOINED = 8  # atoms that are read as one word
_LONGEST = 40  # letters of a word


@dataclass(frozen=True)
class Reading:
    """What some atoms spell together.

    Attributes:
        first, last: The atoms: from `first`, before `last`.
        start, end: Its place in the original text.
        text: The letters and digits, normalised.
        certainty: 1 as written, less for what was undone.
        exact: Whether the text is compared as a whole. Otherwise `text` is a run of spaced letters, in which
            terms are searched, or a pattern in which `*` is any letter.
    """

    first: int
    last: int
    start: int
    end: int
    text: str
    certainty: float
    exact: bool = True


class Vocabulary(Protocol):
    """The words that readings may be."""

    def has(self, word: str) -> bool:
        """Whether it has a word."""

    def repeated_in(self, word: str) -> Iterable[str]:
        """Its words that become this one when letters of them are repeated."""


@dataclass(frozen=True)
class Folded:
    """A text after folding, with the place of each of its characters in the original.

    Attributes:
        text: The folded text.
        places: Index in the original text of each character.
        hidden: Indices of characters of the folded text that look-alikes or invisible characters hid.
    """

    text: str
    places: tuple[int, ...]
    hidden: frozenset[int]


@cache
def _fold_character(character: str) -> tuple[str, bool]:
    """A character's folded form, and whether it was a look-alike of it."""
    if unicodedata.category(character) in ("Cf", "Me") or character in _BLANK:
        return "", True
    if match := _FRAMED.fullmatch(unicodedata.name(character, "")):
        return match[1].lower(), True
    folded = unicodedata.normalize("NFKC", character).casefold()
    kept, looked = [], False
    for one in unicodedata.normalize("NFKD", folded):
        if unicodedata.category(one) == "Mn":
            continue
        plain = one.translate(_LOOK_ALIKES)
        if plain == one and ord(one) > 0x7F and (match := _LATIN.fullmatch(unicodedata.name(one, ""))):
            plain = match[1].lower()
        looked |= plain != one
        kept.append(plain)
    return "".join(kept), looked


def fold(text: str) -> Folded:
    """A text with NFKC, casefolding, without accents and invisible characters, and with Latin letters for
    their look-alikes."""
    letters: list[str] = []
    places: list[int] = []
    hidden: set[int] = set()
    concealed = False  # the last character was invisible
    for index, character in enumerate(text):
        folded, looked = _fold_character(character)
        if not folded:
            concealed |= looked and bool(letters)
            continue
        if looked or concealed:
            hidden.add(len(letters))
        concealed = False
        letters += folded
        places += [index] * len(folded)
    return Folded("".join(letters), tuple(places), frozenset(hidden))


def words_of(text: str) -> list[str]:
    """The words of a text as its atoms are written."""
    return _ATOM.findall(fold(text).text)


def runs(word: str) -> list[tuple[str, int]]:
    """The letters of a word, each with how often it is repeated."""
    return [(letter, len(list(same))) for letter, same in groupby(word)]


def unleet(text: str) -> Iterator[str]:
    """A text with letters for digits and signs that stand for them. A 1 or ! may be an i or an l."""
    plain = "".join(_LEET.get(one, one) for one in text)
    yield plain
    if any(one in "1!" for one in text):
        yield "".join("l" if one in "1!" else _LEET.get(one, one) for one in text)


def readings(text: str, known: Vocabulary) -> list[Reading]:
    """The readings of a text: each atom as it stands, and the joined and undone ones that are known."""
    folded = fold(text)
    atoms = [(match.start(), match.end()) for match in _ATOM.finditer(folded.text)]
    return list(_found(folded, atoms, known))


def _found(folded: Folded, atoms: list[tuple[int, int]], known: Vocabulary) -> Iterator[Reading]:
    source = folded.text

    def reading(first: int, last: int, text: str, certainty: float, exact: bool = True) -> Reading:
        begin, end = atoms[first][0], atoms[last - 1][1]
        if not folded.hidden.isdisjoint(range(begin, end)):
            certainty *= HIDDEN
        return Reading(
            first, last, folded.places[begin], folded.places[end - 1] + 1, text, round(certainty, 3), exact
        )

    for index, (begin, end) in enumerate(atoms):
        word = source[begin:end]
        yield reading(index, index + 1, word, PLAIN)
        for text, certainty in _undone(word, known):
            yield reading(index, index + 1, text, certainty)
    yield from _joined_in_chunks(source, atoms, known, reading)
    yield from _spaced(source, atoms, known, reading)


def _undone(word: str, known: Vocabulary) -> Iterator[tuple[str, float]]:
    """The known words that an atom may stand for, with the certainty. Not the atom itself."""
    if len(word) > _LONGEST:
        return
    if any(one in _LEET for one in word) and any(one.isalpha() or one in _SYMBOLS for one in word):
        for text in unleet(word):
            if known.has(text):
                yield text, LEET
            yield from _unrepeated(text, known, LEET)
    yield from _unrepeated(word, known, 1.0)


def _unrepeated(word: str, known: Vocabulary, certainty: float) -> Iterator[tuple[str, float]]:
    """The known words whose letters are repeated in a word."""
    longest = max((count for _, count in runs(word)), default=0)
    if longest > 1:
        for text in known.repeated_in(word):
            if len(text) >= 4 or longest > 2:
                yield text, certainty * REPEATED


def _joined_in_chunks(
    source: str, atoms: list[tuple[int, int]], known: Vocabulary, reading: Callable[..., Reading]
) -> Iterator[Reading]:
    """Words that signs within them take apart, or that have signs for letters."""
    starts = [begin for begin, _ in atoms]
    for chunk in _CHUNK.finditer(source):
        inside = range(bisect_left(starts, chunk.start()), bisect_left(starts, chunk.end()))
        for star in _STARRED_WORD.finditer(source, chunk.start(), chunk.end()):
            pattern = re.sub(rf"[{_STARS}]", "*", star[0]).strip("*")
            if "*" in pattern and len(pattern) <= _LONGEST and len(pattern.replace("*", "")) >= 3:
                covered = bisect_left(starts, star.start()), bisect_left(starts, star.end())
                yield reading(*covered, pattern, STARRED, False)
        for first in inside:
            long = False  # runs of single letters are read as spaced
            for last in range(first + 1, min(inside.stop, first + _MOST_JOINED) + 1):
                begin, end = atoms[first][0], atoms[last - 1][1]
                long |= end - atoms[last - 1][0] > 1
                if end - begin > 2 * _LONGEST:
                    break
                if last == first + 1:
                    while begin > chunk.start() and source[begin - 1] in "!|+" and end - begin <= _LONGEST:
                        begin -= 1
                    while end < chunk.end() and source[end] in "!|+" and end - begin <= _LONGEST:
                        end += 1
                if not long or (begin, end) == atoms[first]:
                    continue
                for text, certainty in _spellings(source[begin:end]):
                    if len(text) >= 4 and known.has(text):
                        yield reading(first, last, text, certainty)
                    for form, own in _unrepeated(text, known, certainty):
                        yield reading(first, last, form, own)


def _spellings(raw: str) -> set[tuple[str, float]]:
    """What letters with signs between them may stand for, with the certainty."""
    plain = "".join(one for one in raw if one.isalnum() or one in _SYMBOLS)
    texts = {(plain, SIGNS)}
    if any(one in _LEET for one in raw):
        kept = "".join(one for one in raw if one.isalnum() or one in _LEET)
        texts |= {(text, SIGNS * LEET) for each in (plain, kept) for text in unleet(each)}
    return texts


def _spaced(
    source: str, atoms: list[tuple[int, int]], known: Vocabulary, reading: Callable[..., Reading]
) -> Iterator[Reading]:
    """Runs of single letters, and words that single letters were split off."""
    single = [end - begin == 1 for begin, end in atoms]
    index = 0
    while index < len(atoms):
        last = index
        while last < len(atoms) and single[last]:
            last += 1
        if last - index >= 3:
            run = "".join(source[begin] for begin, _ in atoms[index:last])
            for text in {run, *unleet(run)}:
                yield reading(index, last, text, SPACED, False)
        index = max(last, index + 1)
    for first in range(len(atoms)):
        for last in range(first + 2, min(len(atoms), first + 4) + 1):
            words = [source[begin:end] for begin, end in atoms[first:last]]
            gaps = [source[atoms[i][1] : atoms[i + 1][0]] for i in range(first, last - 1)]
            if any(gap.strip() for gap in gaps):
                break
            lone = any(len(word) == 1 and word not in _VOWELS for word in words)
            for text in unleet("".join(words)):
                if lone and len(text) >= 5 and known.has(text):
                    yield reading(first, last, text, BROKEN)
