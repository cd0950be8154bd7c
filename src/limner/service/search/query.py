"""What stands in the search box, as a value: words and chips.

    red boat "on the sea" model:ink seed:7 date:>2026-11-01 kept:yes album:"For Anna"

Words in quotes are a phrase, and never a chip. A chip is one of `CHIPS`, a colon, a value. Chips of one kind
are alternatives, but comparisons all hold; different kinds all hold.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf

from limner.errors import InvalidRequest

CHIPS: Mapping[str, str] = {
    "model": "a part of the model's name, or the first digits of its hash",
    "lora": "a part of an adapter's name",
    "seed": "a number",
    "steps": "a number, after < or > if it is a limit",
    "size": "width and height as 512x768",
    "date": "a year, month or day (UTC) as 2026-11, after < or > if it is a limit",
    "kept": "yes or no",
    "album": "the name of an album",
}
"""What each kind of chip takes."""

MAX_LENGTH = 2000
"""Characters of a query."""

_MAX_WORDS = 32
_PART = re.compile(r'(?:(?P<chip>[A-Za-z_]+):)?(?:"(?P<quoted>[^"]*)"?|(?P<plain>[^\s"]*))')
_LIMIT = re.compile(r"(<=|>=|<|>|=)?(.*)", re.DOTALL)
_DATE = re.compile(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?")
_SIZE = re.compile(r"(\d{1,6})[x×*](\d{1,6})", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d{1,20}", re.ASCII)
_CONTENT = re.compile(r"[^\W_]")

Interval = tuple[float, float]
"""From a value on, to before another."""

Condition = tuple[Interval, ...]
"""Intervals, in one of which a value must be."""


@dataclass(frozen=True)
class Term:
    """A part of a query, as it was read.

    Attributes:
        kind: "word", "phrase", or a kind of chip.
        value: Its text.
    """

    kind: str
    value: str


@dataclass(frozen=True)
class Query:
    """A query.

    Attributes:
        terms: All parts, in their order.
        words: Words and phrases, all of which a prompt should have.
        models, loras: Parts of names, one of which must fit; empty: any.
        seeds, sizes: Values, one of which must fit; empty: any.
        steps, dates: Conditions, all of which must hold. Dates are in seconds since the epoch.
        kept: Whether the image must be kept or must not; None: either.
        albums: Names of albums, one of which must have the image; empty: any.
    """

    terms: tuple[Term, ...] = ()
    words: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    steps: tuple[Condition, ...] = ()
    dates: tuple[Condition, ...] = ()
    kept: bool | None = None
    albums: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The words as one text."""
        return " ".join(self.words)


@dataclass
class _Read:
    """What has been read so far, by the kind of chip."""

    terms: list[Term] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    chips: dict[str, list[str]] = field(default_factory=dict)


def parse_query(text: str) -> Query:
    """The query of a text.

    Raises:
        InvalidRequest: An unknown kind of chip, a value that it does not take, or too much text.
    """
    if len(text) > MAX_LENGTH:
        raise _refused(f"the query has {len(text)} characters; at most {MAX_LENGTH} are read")
    read = _Read()
    for match in _PART.finditer(text):
        value = match["plain"] if match["quoted"] is None else match["quoted"]
        if match["chip"] is not None:
            _read_chip(read, match["chip"].lower(), value.strip())
        elif _CONTENT.search(value):  # else it is punctuation alone
            read.terms.append(Term("word" if match["quoted"] is None else "phrase", value))
            read.words.append(value)
    if len(read.words) > _MAX_WORDS:
        raise _refused(f"the query has {len(read.words)} words; at most {_MAX_WORDS} are searched for")
    chips = read.chips
    kept = {_yes_or_no(value) for value in chips.get("kept", ())}
    return Query(
        terms=tuple(read.terms),
        words=tuple(read.words),
        models=tuple(chips.get("model", ())),
        loras=tuple(chips.get("lora", ())),
        seeds=tuple(_number("seed", value) for value in chips.get("seed", ())),
        sizes=tuple(_size(value) for value in chips.get("size", ())),
        steps=_conditions(chips.get("steps", ()), _steps),
        dates=_conditions(chips.get("date", ()), _date),
        kept=kept.pop() if len(kept) == 1 else None,
        albums=tuple(chips.get("album", ())),
    )


def words_of(text: str) -> list[str]:
    """The last words of a text that is no query, such as a prompt."""
    return [word for word in text.split() if _CONTENT.search(word)][-_MAX_WORDS:]


def _read_chip(read: _Read, kind: str, value: str) -> None:
    if kind not in CHIPS:
        raise _refused(
            f"{kind!r} is no kind of chip; expected one of {', '.join(CHIPS)}",
            hint=f'to search for the text itself, put it in quotes: "{kind}:{value}"',
        )
    if not value:
        raise _refused(f"{kind}: has no value; expected {CHIPS[kind]}")
    read.terms.append(Term(kind, value))
    read.chips.setdefault(kind, []).append(value)


def _conditions(values: Iterable[str], interval: Callable[[str], Interval]) -> tuple[Condition, ...]:
    """The conditions of chips: plain values are alternatives, and each limit is a condition of its own."""
    plain: list[Interval] = []
    limits: list[Condition] = []
    for value in values:
        match = _LIMIT.fullmatch(value)
        assert match is not None  # it takes any text
        first, after = interval(match[2].strip())
        match match[1]:
            case "<":
                limits.append(((-inf, first),))
            case "<=":
                limits.append(((-inf, after),))
            case ">":
                limits.append(((after, inf),))
            case ">=":
                limits.append(((first, inf),))
            case _:
                plain.append((first, after))
    return (*limits, tuple(plain)) if plain else tuple(limits)


def _steps(text: str) -> Interval:
    number = float(_number("steps", text))
    return number, number + 1.0


def _date(text: str) -> Interval:
    """A year, month or day in UTC, in seconds since the epoch."""
    match = _DATE.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        year, month, day = (None if part is None else int(part) for part in match.groups())
        assert year is not None
        start = datetime(year, 1 if month is None else month, 1 if day is None else day, tzinfo=UTC)
        if day is not None:
            return start.timestamp(), start.timestamp() + 86400.0
        later = (year, month + 1) if month is not None and month < 12 else (year + 1, 1)
        return start.timestamp(), datetime(*later, 1, tzinfo=UTC).timestamp()
    except ValueError:
        raise _refused(f"date:{text} is no date; expected {CHIPS['date']}") from None


def _size(text: str) -> tuple[int, int]:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise _refused(f"size:{text} is no size; expected {CHIPS['size']}")
    return int(match[1]), int(match[2])


def _number(kind: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise _refused(f"{kind}:{text} is no number; expected {CHIPS[kind]}")
    return int(text)


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("yes", "no"):
        raise _refused(f"kept:{text} is neither yes nor no")
    return text.lower() == "yes"


def _refused(message: str, hint: str | None = None) -> InvalidRequest:
    return InvalidRequest(message, hint=hint, fields=("q",))
