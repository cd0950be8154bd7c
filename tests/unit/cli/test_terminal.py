"""What is printed: safe for the terminal, and made for pipes where there is none."""

import re

import pytest

from limner.cli import terminal
from limner.cli.models import _figure
from limner.logs import printable


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("plain, ünïcode 🏠\nand\ttabs", "plain, ünïcode 🏠\nand\ttabs"),
        ("\x1b[2J\x07\r\x7f\x9b", r"\x1b[2J\x07\r\x7f\x9b"),
        ("\u202egnp.elif\ud800", r"\u202egnp.elif\ud800"),
    ],
)
def test_control_characters_are_escaped(text, printed):
    assert printable(text) == printed


def test_what_is_said_goes_to_stderr(capsys):
    terminal.error("width is 12", "try 16")
    terminal.warning("a \x1b word")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "error: width is 12\nhint: try 16\nwarning: a \\x1b word\n"


def test_piped_rows_are_one_a_line(capsys):
    terminal.columns([("prompt", "two\nlines\tand a tab")], ("name", "value"))
    assert capsys.readouterr().out == "name\tvalue\nprompt\ttwo\\nlines and a tab\n"


def test_rows_on_a_terminal_are_aligned_and_nothing_is_lost(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    terminal.columns([("prompt", "[red]house[/red] " + "x" * 60), ("seed", "7")])
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert "".join("".join(line[8:].split()) for line in lines) == "[red]house[/red]" + "x" * 60 + "7"
    assert all(len(line.rstrip()) <= 40 for line in lines)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (999, "999"), (1500, "1.5 k"), (859_520_964, "860 M"), (1_066_235_307, "1.1 G")],
)
def test_figures(value, shown):
    assert _figure(value, ("", " k", " M", " G"), 1000) == shown
