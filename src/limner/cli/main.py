"""`limner`: its commands, and how their errors are reported.

Exit codes: 0 success, 1 some lines of a batch failed, `limner detect` saw an image without a watermark,
`limner verify` one that is not as it was signed or drawn, or `limner audit verify` a log that is not what was
signed, 2 an error with a message and a hint, 3 refused by the safety policy, 130 stopped by Ctrl-C. A
traceback is a bug.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from limner import __version__
from limner.allocator import keep_freed_memory
from limner.errors import ImageRefused, LimnerError, PromptRefused
from limner.logs import configure
from limner.settings import Settings

from . import terminal
from .usage import usage_error


@dataclass(frozen=True)
class _Entry:
    """A line of `limner --help`.

    Attributes:
        summary: First line of the command's help.
        target: Module and attribute of its function, or of its own group of commands.
    """

    summary: str
    target: str


_GENERATE, _FILES, _TRAIN = "Generate images", "Images and models", "Train and measure"
_SERVE = "Serve"
COMMANDS = {
    _GENERATE: {
        "generate": _Entry("Generate images from a prompt.", "generate:generate"),
        "batch": _Entry("Generate images for a file of prompts or requests.", "batch:batch"),
        "grid": _Entry("Compare values of a prompt's options on one sheet (X/Y/Z plot).", "grid:grid"),
    },
    _SERVE: {
        "serve": _Entry(
            "Serve images over HTTP: the native API, OpenAI's Images API and AUTOMATIC1111's.", "serve:serve"
        ),
        "jobs": _Entry("List, show and change the jobs of limner serve.", "jobs:app"),
        "keys": _Entry("Create, list and revoke API keys of limner serve.", "keys:app"),
        "accounts": _Entry(
            "Manage the accounts of a service: roles, shares, quotas, export and erasure.", "accounts:app"
        ),
        "usage": _Entry("Show what was used: images, device seconds and cost.", "usage_report:usage"),
        "prompts": _Entry("Search the prompts that an account of limner serve has drawn.", "prompts:app"),
        "audit": _Entry(
            "Show, verify and export the audit log of a service, and prove what is in it.", "audit:app"
        ),
        "moderation": _Entry(
            "Look at images that the safety policy of a service holds up, and decide.", "moderation:app"
        ),
        "webhooks": _Entry("Print or renew the secret that webhooks are signed with.", "webhooks:app"),
    },
    _FILES: {
        "show": _Entry("Show the request stored in an image.", "show:show"),
        "detect": _Entry("Find the watermark, the manifest and the record of images.", "detect:detect"),
        "verify": _Entry(
            "Check the signatures of images, or draw them again from their records.", "verify:verify"
        ),
        "models": _Entry("List the models on this machine.", "models:app"),
        "preprocess": _Entry("Make a control image: edges, lines, poses …", "preprocess:preprocess"),
        "convert": _Entry("Convert a checkpoint to another layout or dtype.", "convert:convert"),
        "hash": _Entry("Print the hashes of files, as AUTOMATIC1111 computes them.", "hash:hash_files"),
        "safety": _Entry("Show what a safety policy says about prompts and images.", "safety:app"),
        "schema": _Entry("Print the JSON schema of a request.", "schema:schema"),
    },
    _TRAIN: {
        "train": _Entry(
            "Train networks from scratch or further.",
            "train:app",
        ),
        "evaluate": _Entry(
            "Measure how well the picturebook model follows its prompts.", "evaluate:evaluate"
        ),
        "tune": _Entry("Measure this machine, to choose batch sizes and attention.", "tune:tune"),
    },
}

_EXAMPLES = """Examples:

  limner generate "a red house in the snow" --seed 7 -n 4

  limner generate --from pictures/00001-7.png --steps 40

  limner batch prompts.txt --out drawings

Guides: docs/README.md"""


class LazyCommand(TyperCommand):
    """A command whose module is imported when the command is used, so that `limner --help` is fast."""

    def __init__(self, name: str, entry: _Entry, panel: str) -> None:
        super().__init__(name, help=entry.summary, rich_help_panel=panel)
        self._target = entry.target

    @cached_property
    def loaded(self) -> Any:
        """The command itself, with its options."""
        module, _, attribute = self._target.partition(":")
        found = getattr(import_module(f"limner.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            return typer.main.get_command(found)
        app = typer.Typer(add_completion=False)
        app.command(self.name)(found)
        return typer.main.get_command(app)

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        return self.loaded.make_context(*arguments, **more)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"limner {__version__}")
        raise typer.Exit


def _group() -> TyperGroup:
    app = typer.Typer(
        name="limner",
        help="Stable Diffusion in one package: generate images, adapt and train the models that do it.",
        epilog=_EXAMPLES,
        no_args_is_help=True,
        add_completion=False,
    )

    @app.callback()
    def options(
        version: Annotated[
            bool,
            typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit."),
        ] = False,
        log_level: Annotated[
            str | None,
            typer.Option(
                help="Log events of at least this level to stderr: debug, info, warning or error. By default "
                "warnings, and the progress of training. Environment: LIMNER_LOG_LEVEL.",
                metavar="LEVEL",
            ),
        ] = None,
        log_format: Annotated[
            str | None,
            typer.Option(
                help="Format of logged events: text (default), or json, one object a line. Environment: "
                "LIMNER_LOG_FORMAT.",
                metavar="FORMAT",
            ),
        ] = None,
    ) -> None:
        settings = Settings.read(log_level=log_level, log_format=log_format)
        configure(settings.log_level, settings.log_format)

    group = typer.main.get_group(app)
    for panel, entries in COMMANDS.items():
        for name, entry in entries.items():
            group.add_command(LazyCommand(name, entry, panel))
    return group


group = _group()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, by default that of the process. Ends in SystemExit."""
    keep_freed_memory()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        sys.exit(group.main(arguments, prog_name="limner", standalone_mode=False) or 0)
    except TyperException as error:
        usage_error(error, arguments)
    except typer.Abort:
        sys.exit(1)
    except (PromptRefused, ImageRefused) as error:
        terminal.error(error.message, error.hint)
        sys.exit(3)
    except LimnerError as error:
        hint = error.hint
        if hint is None and error.fields:
            command = next((one for one in arguments if one in group.commands), "generate")
            what = "fields" if command in ("generate", "batch", "grid") else "options"
            hint = f"`limner {command} --help` describes the {what}"
        terminal.error(error.message, hint)
    except OSError as error:
        # What no layer below could say better, such as an unreadable file named by an option.
        terminal.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    sys.exit(2)


if __name__ == "__main__":
    main()
