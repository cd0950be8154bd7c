"""`limner`: the commands, and what becomes of their errors.

Exit codes: 0 done, 1 lines of a batch have failed, 2 an error that was foreseen (told in a line, with a
hint), 130 stopped by Ctrl-C. A traceback is a bug.
"""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from limner import __version__
from limner.cli import terminal, train
from limner.cli.batch import batch
from limner.cli.convert import convert
from limner.cli.evaluate import evaluate
from limner.cli.generate import generate
from limner.cli.grid import grid
from limner.cli.hash import hash_files
from limner.cli.models import models
from limner.cli.preprocess import preprocess
from limner.cli.show import show
from limner.cli.tune import tune
from limner.errors import LimnerError
from limner.memory import keep_freed_memory


class _InOrder(TyperGroup):
    """Models are trained before they are evaluated; typer would put groups such as `train` last."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return [*(name for name in names if name != "evaluate"), "evaluate"]


app = typer.Typer(
    name="limner",
    cls=_InOrder,
    help="Stable Diffusion, whole: draw pictures from words, and train the models that do it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(generate)
app.command()(grid)
app.command()(batch)
app.command()(show)
app.command()(models)
app.command()(preprocess)
app.command()(convert)
app.command("hash")(hash_files)
app.command()(tune)
app.add_typer(train.app, name="train")
app.command()(evaluate)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"limner {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, by default that of the process. Ends in SystemExit."""
    keep_freed_memory()
    try:
        app(arguments, prog_name="limner")
    except LimnerError as error:
        terminal.error(error.message, error.hint)
    except OSError as error:
        # What no layer below could say better, such as an unreadable file named by an option.
        terminal.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    sys.exit(2)


if __name__ == "__main__":
    main()
