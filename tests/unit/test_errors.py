"""One tree of exceptions: each has a code of its own, a message and perhaps a hint."""

import re
from collections.abc import Iterator

import pytest

import limner
from limner import errors
from limner.errors import LimnerError


def tree(cls: type[LimnerError]) -> Iterator[type[LimnerError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from tree(sub)


ALL = [cls for cls in tree(LimnerError) if cls.__module__ == errors.__name__]


def test_codes_are_distinct_and_lower_case():
    codes = [vars(cls)["code"] for cls in ALL]  # vars: none is inherited by accident
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


def test_every_error_is_public():
    assert all(getattr(limner, cls.__name__) is cls and cls.__name__ in limner.__all__ for cls in ALL)


def test_the_docstring_draws_the_tree_as_it_is():
    drawn = re.findall(r"^    ([│├└─ ]*)(\w+)", errors.__doc__, re.MULTILINE)
    parents: list[str] = []
    pairs = set()
    for lines, name in drawn:
        depth = len(lines) // 4
        parents[depth:] = [name]
        pairs.add((name, parents[depth - 1] if depth else "Exception"))
    assert pairs == {(cls.__name__, cls.__base__.__name__) for cls in ALL}


@pytest.mark.parametrize("cls", ALL)
def test_message_and_hint(cls):
    error = cls("width is 12; expected a multiple of 8", hint="try 16")
    assert str(error) == error.message == "width is 12; expected a multiple of 8"
    assert error.hint == "try 16"
    assert cls("alone").hint is None
