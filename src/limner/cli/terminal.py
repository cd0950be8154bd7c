"""What is said to the person at the terminal. Data goes to stdout, everything else to stderr."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite

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


@contextmanager
def passing(text: str, visible: bool = True) -> Iterator[None]:
    """A line on stderr that is gone when the block ends."""
    if visible:
        typer.echo(printable(text), nl=False, err=True)
    try:
        yield
    finally:
        if visible:
            typer.echo("\r\x1b[K", nl=False, err=True)  # erases to the end of the line


class Bar:
    """How far something has come, on stderr. It appears when it is told, and is hidden while something else
    is printed."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.fields[title]}"),
            BarColumn(),
            TextColumn("{task.fields[pace]}"),
            TextColumn("{task.fields[left]}", style="progress.remaining"),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,  # it would send the paths to stderr
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("", total=None, title="", pace="", left="")

    def update(self, done: int, total: int, title: str, pace: str, seconds_left: float) -> None:
        """Tell how much of a total is done, under a title, at what pace; `inf` seconds left are not known."""
        left = f"{_clock(round(seconds_left))} left" if isfinite(seconds_left) else ""
        self._progress.update(self._task, total=total, completed=done, title=title, pace=pace, left=left)
        self._progress.start()

    def hide(self) -> None:
        self._progress.stop()


def _clock(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
