"""`limner models pull`: fetch models from the Hugging Face hub and Civitai."""

import sys
import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Annotated

import typer

from limner.catalogue.contents import Kind

from . import terminal


def pull(
    references: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL ...",
            help="organisation/name or organisation/name:FILE on the hub; civitai:12345 on Civitai, or "
            "civitai:12345@67890 for a version.",
            show_default=False,
        ),
    ],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit on the hub.", metavar="REVISION")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Variant of the weights on the hub, such as fp16.", metavar="VARIANT")
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            help="Folder for files of Civitai. Default: models/KIND in the data folder of limner serve.",
            metavar="FOLDER",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Data folder of limner serve. Environment: LIMNER_DATA.", metavar="FOLDER"),
    ] = None,
) -> None:
    """Fetch models, for limner serve and all other commands.

    Models of the hub go to the hub's cache, single files of Civitai to the data folder. An interrupted
    download goes on where it stopped. The licence is shown, and every file is checked by its hash. Only
    .safetensors files are fetched. Paths go to standard output.
    """
    from limner.settings.serve import ServeSettings
    from limner.weights.pulling import pull as pull_model

    settings = ServeSettings.read(data=data)
    token = settings.civitai_token

    def folder(kind: Kind) -> Path:
        return settings.pulled_models / kind if to is None else to

    for reference in references:
        bar = terminal.Bar() if sys.stderr.isatty() else None
        try:
            pulled = pull_model(
                reference,
                folder=folder,
                revision=revision,
                variant=variant,
                token=None if token is None else token.get_secret_value(),
                civitai_url=settings.civitai_url,
                announce=_announce,
                progress=_progress(bar),
            )
        finally:
            if bar is not None:
                bar.hide()
        for warning in pulled.warnings:
            terminal.warning(warning)
        what = (pulled.kind or "network").replace("_", " ")
        checked = f"{pulled.files} file{'' if pulled.files == 1 else 's'} checked by hash"
        terminal.note(f"{what} {pulled.name}: {checked}")
        typer.echo(str(pulled.path))


def _announce(title: str, lines: tuple[str, ...]) -> None:
    terminal.note(title)
    for line in lines:
        terminal.note(line)


def _progress(bar: terminal.Bar | None) -> Callable[[int, int | None], None]:
    """Shows the bytes of a download."""
    began, first = time.monotonic(), -1

    def show(done: int, whole: int | None) -> None:
        nonlocal first
        if bar is None or not whole:
            return
        first = done if first < 0 else first
        rate = (done - first) / max(time.monotonic() - began, 1e-3)
        left = (whole - done) / rate if rate > 0 else inf
        bar.update(done, whole, f"{done / 1e6:,.0f} of {whole / 1e6:,.0f} MB", f"{rate / 1e6:.1f} MB/s", left)

    return show
