"""`limner grid`: one request with every value of some axes, on one labelled sheet.

All requests are checked before anything is drawn, and go through one engine. Ctrl-C keeps a sheet of what is
finished.
"""

import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli import terminal
from limner.cli.generate import read_prompt, request_of
from limner.cli.options import OUTPUT, ModelOptions, Quiet, RequestOptions, Text, flag, option, spread
from limner.cli.output import Place, make_folder
from limner.errors import LimnerError

if TYPE_CHECKING:
    from limner.pipeline.axes import Axis
    from limner.pipeline.metadata import Picture
    from limner.pipeline.model import Model
    from limner.pipeline.models import ModelCache
    from limner.request import GenerationRequest

_AXES = "Axes"
_X = "What differs side by side: steps=10,20,30, seed=1-4, replace=cat,dog, lora:ink=0-1[5] …"
_OUT = "Folder for the sheet, or its name: a .png, .jpg or .webp file."
_KEEP = "Write the single pictures too, to a folder named like the sheet."
_FROM = "Take what this picture's record says; other options override it."


@spread
def grid(
    prompt: Annotated[
        Text, typer.Argument(help="What to draw; - reads it from standard input.", show_default=False)
    ] = None,
    *,
    x: Annotated[Text, option(_X, _AXES, "--x", metavar="NAME=VALUES")] = None,
    y: Annotated[
        Text, option("What differs one below the other.", _AXES, "--y", metavar="NAME=VALUES")
    ] = None,
    z: Annotated[
        Text, option("What differs from table to table.", _AXES, "--z", metavar="NAME=VALUES")
    ] = None,
    limit: Annotated[int, option("The most pictures.", _AXES, min=1, metavar="NUMBER")] = 100,
    fields: RequestOptions,
    models: ModelOptions,
    out: Annotated[Path, option(_OUT, OUTPUT)] = Path("pictures"),
    keep: Annotated[bool, flag(_KEEP, OUTPUT, "--keep")] = False,
    source: Annotated[Path | None, option(_FROM, OUTPUT, "--from", metavar="PICTURE")] = None,
    quiet: Quiet = False,
) -> None:
    """Draw a prompt with several values of its options, on one sheet.

    An axis is a field of a request and its values: --x steps=10,20,30.
    --y replace=cat,dog puts another word into the prompt.
    All pictures have one seed, unless seeds are an axis.
    """
    from limner.pipeline.axes import Axis
    from limner.pipeline.grid import plan

    axes = {name: Axis.read(text) for name, text in (("x", x), ("y", y), ("z", z)) if text is not None}
    given = fields.given()
    if (words := read_prompt(prompt)) is not None:
        given["prompt"] = words
    elif source is None and any(axis.name == "prompt" for axis in axes.values()):
        given["prompt"] = ""  # those of the axis take its place
    request, _ = request_of(given, source, models.given())
    requests = plan(request, axes.values(), limit)
    place = Place(out)
    place.check(1)
    visible = sys.stderr.isatty() and not quiet
    try:
        with terminal.passing("loading …", visible):
            from limner.pipeline.grid import check

            loaded = _loaded(request, models, axes.values())
            check(requests, loaded)
    except KeyboardInterrupt:
        terminal.say("stopped", "nothing is drawn", "yellow")
        raise typer.Exit(130) from None
    path = place.path if place.is_file else place.sheet(requests[0].seed or 0)
    _draw(requests, axes, loaded, path, keep, visible)


def _loaded(
    request: "GenerationRequest", models: ModelOptions, axes: "Collection[Axis]"
) -> "Model | ModelCache":
    """The model, or where models are an axis, what loads them."""
    from limner.pipeline.loading import load
    from limner.pipeline.models import ModelCache

    if any(axis.name in ("model", "revision", "variant") for axis in axes):
        return ModelCache(**models.given())
    return load(request.model, revision=request.revision, variant=request.variant, **models.given())


def _draw(
    requests: "Sequence[GenerationRequest]",
    axes: "Mapping[str, Axis]",
    models: "Model | ModelCache",
    path: Path,
    keep: bool,
    visible: bool,
) -> None:
    """Draw, and write the sheet, however it ends."""
    from limner.pipeline.grid import Grid, draw
    from limner.pipeline.metadata import Picture, write_picture

    drawn: dict[int, Picture] = {}
    errors: dict[int, BaseException] = {}
    bar, since, stopped = terminal.Bar() if visible else None, time.monotonic(), False
    make_folder(path.parent)
    try:
        with closing(draw(requests, models)) as drawing:
            for place, outcome in drawing:
                if isinstance(outcome, Picture):
                    drawn[place] = outcome
                    if keep:
                        _keep(outcome, place, path, bar)
                else:
                    errors[place] = outcome
                if bar:
                    done, each = (
                        len(drawn) + len(errors),
                        (time.monotonic() - since) / (len(drawn) + len(errors)),
                    )
                    left = each * (len(requests) - done)
                    bar.update(
                        done, len(requests), f"{done} of {len(requests)} pictures", f"{each:.1f} s each", left
                    )
    except KeyboardInterrupt:
        stopped = True
    finally:
        if bar:
            bar.hide()
    sheet = Grid(**axes, pictures=drawn, errors=errors)
    if drawn:
        write_picture(sheet.image, path)
        typer.echo(os.fsencode(path))
    for warning in dict.fromkeys(
        warning for picture in drawn.values() for warning in picture.record.warnings
    ):
        terminal.warning(warning)
    if sheet.scale < 1.0:
        terminal.note(
            f"the pictures on the sheet are {sheet.scale:.0%} as wide as they were drawn; see --keep"
        )
    if stopped:
        kept = (
            f"a sheet with {len(drawn)} of {len(requests)} pictures is kept"
            if drawn
            else "nothing was finished"
        )
        terminal.say("stopped", kept, "yellow")
        raise typer.Exit(130) from None
    if errors:
        for place, error in sorted(errors.items()):
            why = error.message if isinstance(error, LimnerError) else repr(error)
            terminal.say("failed", f"{_where(place, axes)}: {why}", "red")
        raise typer.Exit(1)


def _keep(picture: "Picture", place: int, sheet: Path, bar: terminal.Bar | None) -> None:
    """Write a picture to a folder named like its sheet."""
    from limner.pipeline.metadata import write_picture

    folder = sheet.with_suffix("")
    make_folder(folder)
    path = folder / f"{place + 1:05d}-{picture.seed}.png"
    write_picture(picture, path)
    if bar and sys.stdout.isatty():
        bar.hide()
    typer.echo(os.fsencode(path))


def _where(place: int, axes: "Mapping[str, Axis]") -> str:
    """The values of a place."""
    said = []
    for axis in axes.values():  # x first, which changes fastest
        place, index = divmod(place, len(axis.values))
        said.append(f"{axis.name}={axis.texts[index]}")
    return ", ".join(said)
