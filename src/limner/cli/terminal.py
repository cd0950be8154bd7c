"""What is said to the person at the terminal. Data goes to stdout, everything else to stderr."""

import re
import sys
from collections.abc import Sequence

import typer

# With control characters, surrogates and reversals of direction, text from a file could rewrite the screen.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text from a file or a stranger, safe to print: control characters become escapes."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def say(label: str, text: str, color: str) -> None:
    """Say something on stderr under a label such as "warning"; colours only on a terminal."""
    typer.echo(f"{typer.style(f'{label}:', fg=color, bold=True)} {printable(text)}", err=True)


def error(message: str, hint: str | None = None) -> None:
    say("error", message, "red")
    if hint:
        say("hint", hint, "cyan")


def warning(message: str) -> None:
    say("warning", message, "yellow")


def note(message: str) -> None:
    say("note", message, "green")


def columns(rows: Sequence[Sequence[str]], headings: Sequence[str] = ()) -> None:
    """Print rows on stdout: aligned and wrapped on a terminal, else separated by tabs, one row a line."""
    if not sys.stdout.isatty():
        for row in [headings, *rows] if headings else rows:
            typer.echo("\t".join(printable(cell).replace("\t", " ").replace("\n", "\\n") for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=bool(headings), padding=(0, 2, 0, 0), pad_edge=False)
    for index in range(len(rows[0])):
        heading = headings[index] if headings else ""
        table.add_column(heading, style="bold" if index == 0 else "", no_wrap=index == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)
