"""One tree of exceptions: each has a code of its own, a message and perhaps a hint."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import limner
from limner import errors
from limner.cli.fields import option_of
from limner.cli.main import group
from limner.errors import LimnerError, spelled
from limner.request import Control, ImagePrompt, Lora


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
    assert cls("alone").fields == ()
    assert cls("width is 12", fields=("width",)).fields == ("width",)


def test_only_what_may_succeed_later_is_retryable():
    retryable = {cls.code for cls in ALL if cls.retryable}
    service = {"quota_exceeded", "ledger_unavailable", "storage_error", "worker_unavailable"}
    assert retryable == {"queue_full", "engine_closed", "deadline_exceeded", "internal_error"} | service


def test_names_in_backticks_are_spelled_by_the_front_end():
    spell = {"image": "--image", "backend": "--backend"}
    text = "give `image` or `backend=torch`; `limner tune` and `other` stay, as does `Image`"
    said = spelled(text, lambda name, value: f"{spell[name]} {value}".strip() if name in spell else None)
    assert said == "give --image or --backend torch; `limner tune` and `other` stay, as does `Image`"


def hints() -> Iterator[tuple[str, str]]:
    """The file and the literal text of each `hint=` in the packages below the front ends."""
    source = Path(limner.__file__).parent
    for path in source.rglob("*.py"):
        if path.is_relative_to(source / "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "hint":
                parts = (part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant))
                yield str(path.relative_to(source)), "".join(part for part in parts if isinstance(part, str))


def test_hints_name_fields_and_no_options():
    found = list(hints())
    assert len(found) > 100
    command = re.compile(r"limner [a-z]+ .*")  # whole commands are for operators, whatever the front end
    options = [(path, text) for path, text in found if re.search(r"(?<!\w)--\w", command.sub("", text))]
    assert not options


def test_the_names_in_hints_are_options_of_the_command_line():
    commands = [command.loaded for command in group.commands.values()]
    commands += group.commands["train"].loaded.commands.values()
    parameters = [parameter for command in commands for parameter in command.params]
    options = {option for one in parameters for option in (*one.opts, *one.secondary_opts)}
    named = {match for _, text in hints() for match in re.findall(r"`([a-z][a-z0-9_]*)(?:=[^`]*)?`", text)}
    assert {"image", "backend", "styles_files"} <= named
    parts = {
        name for part in (Lora, Control, ImagePrompt) for name in part.model_fields
    }  # in an option's text
    assert {name for name in named if option_of(name) not in options} <= {
        "errors",
        "preview",
        *parts,
    }  # keys of files
