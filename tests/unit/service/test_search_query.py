"""What stands in the search box, as a query."""

from datetime import UTC, datetime
from math import inf

import pytest

from limner.errors import InvalidRequest
from limner.service.search.query import CHIPS, Term, parse_query


def seconds(*day):
    return datetime(*day, tzinfo=UTC).timestamp()


def test_words_phrases_and_chips_are_told_apart():
    query = parse_query('red "on the sea" (boat:1.2) model:Ink album:"For Anna" kept:yes size:64x128 seed:7')
    assert query.words == ("red", "on the sea", "(boat:1.2)")
    assert query.terms[:3] == (Term("word", "red"), Term("phrase", "on the sea"), Term("word", "(boat:1.2)"))
    assert (query.models, query.albums, query.kept) == (("Ink",), ("For Anna",), True)
    assert (query.sizes, query.seeds) == (((64, 128),), (7,))
    assert parse_query("  , - ") == parse_query("")


def test_plain_values_are_alternatives_and_limits_all_hold():
    query = parse_query("date:2026-11 date:2026-12-31 date:<2027 steps:>20 steps:<=40 kept:yes kept:no")
    november = (seconds(2026, 11, 1), seconds(2026, 12, 1))
    last_day = (seconds(2026, 12, 31), seconds(2027, 1, 1))
    assert query.dates == (((-inf, seconds(2027, 1, 1)),), (november, last_day))
    assert query.steps == (((21, inf),), ((-inf, 41),))
    assert query.kept is None
    assert parse_query("date:>2026-12").dates == (((seconds(2027, 1, 1), inf),),)
    assert parse_query("date:>=2026").dates == (((seconds(2026, 1, 1), inf),),)


def test_an_unknown_chip_names_those_that_there_are():
    with pytest.raises(InvalidRequest) as caught:
        parse_query("boat colour:red")
    assert caught.value.fields == ("q",)
    assert all(chip in caught.value.message for chip in CHIPS)
    assert '"colour:red"' in str(caught.value.hint)
    assert parse_query('"colour:red"').words == ("colour:red",)


@pytest.mark.parametrize(
    "text",
    [
        *("seed:x", "seed:", "size:64", "date:2026-13", "date:2026-0", "date:11/2026", "kept:maybe"),
        *("steps:>many", "boat " * 40, "x" * 3000),
    ],
)
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(InvalidRequest):
        parse_query(text)
