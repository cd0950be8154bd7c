"""Output for people. Data goes to stdout, everything else to stderr."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite

import typer

from limner.errors import spelled
from limner.logs import printable


def say(label: str, text: str, color: str) -> None:
    """Write a line to stderr under a label such as "warning"; in colour only on a terminal.

    Names of fields in backticks are written as options.
    """
    if "`" in text:
        from limner.cli.fields import option_of

        text = spelled(text, option_of)
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
    """Show a line on stderr until the block ends."""
    if visible:
        typer.echo(printable(text), nl=False, err=True)
    try:
        yield
    finally:
        if visible:
            typer.echo("\r\x1b[K", nl=False, err=True)  # erases to the end of the line


class Bar:
    """A progress bar on stderr. It appears with the first `update`; `hide` removes it while something else is
    printed."""

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
        """Show how much of a total is done, with a title and a pace; `inf` seconds left are not shown."""
        left = f"{_clock(round(seconds_left))} left" if isfinite(seconds_left) else ""
        self._progress.update(self._task, total=total, completed=done, title=title, pace=pace, left=left)
        self._progress.start()

    def hide(self) -> None:
        self._progress.stop()


def _clock(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
