"""`limner grid`: one request with every value of some axes, on one labelled sheet.

All requests are checked before anything is generated, and go through one engine. Ctrl-C keeps a sheet of
what is finished.
"""

import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli.fields import RequestOptions
from limner.cli.generate import request_of
from limner.cli.lines import read_prompt
from limner.cli.options import (
    OUTPUT,
    ModelOptions,
    Quiet,
    Sign,
    SignPrompt,
    Text,
    flag,
    option,
    spread,
)
from limner.cli.output import Destination, make_folder
from limner.cli.signing import Signatures
from limner.errors import LimnerError
from limner.files import numbered, write_first_free

from . import terminal

if TYPE_CHECKING:
    from limner.engine.models import ModelCache
    from limner.grids.axes import Axis
    from limner.images.picture import Encode
    from limner.model.model import Model
    from limner.request import GenerationRequest

_AXES = "Axes"
_X = "Axis from left to right: steps=10,20,30, seed=1-4, replace=cat,dog, lora:ink=0-1[5] …"
_OUT = "Folder for the sheet, or its file: .png, .jpg or .webp."
_KEEP = "Write the single images too, to a folder named like the sheet."
_FROM = "Take the request stored in this image; other options override it."


@spread
def grid(
    prompt: Annotated[
        Text, typer.Argument(help="What the image shows; - reads it from standard input.", show_default=False)
    ] = None,
    *,
    x: Annotated[Text, option(_X, _AXES, "--x", metavar="NAME=VALUES")] = None,
    y: Annotated[Text, option("Axis from top to bottom.", _AXES, "--y", metavar="NAME=VALUES")] = None,
    z: Annotated[Text, option("Axis from table to table.", _AXES, "--z", metavar="NAME=VALUES")] = None,
    limit: Annotated[int, option("Largest number of images.", _AXES, min=1, metavar="NUMBER")] = 100,
    fields: RequestOptions,
    models: ModelOptions,
    out: Annotated[Path, option(_OUT, OUTPUT)] = Path("pictures"),
    keep: Annotated[bool, flag(_KEEP, OUTPUT, "--keep")] = False,
    source: Annotated[Path | None, option(_FROM, OUTPUT, "--from", metavar="PICTURE")] = None,
    sign: Sign = False,
    sign_prompt: SignPrompt = False,
    quiet: Quiet = False,
) -> None:
    """Compare values of a prompt's options on one sheet (X/Y/Z plot).

    An axis is a field of a request and its values: --x steps=10,20,30.
    --y replace=cat,dog replaces a word of the prompt.
    All images share one seed, unless the seed is an axis.
    """
    from limner.grids.axes import Axis
    from limner.grids.grid import cell_requests

    axes = {name: Axis.read(text) for name, text in (("x", x), ("y", y), ("z", z)) if text is not None}
    given = fields.given()
    if (words := read_prompt(prompt)) is not None:
        given["prompt"] = words
    elif source is None and any(axis.name == "prompt" for axis in axes.values()):
        given["prompt"] = ""  # the axis has the prompts
    request, _ = request_of(given, source, models.given())
    requests = cell_requests(request, axes.values(), limit)
    destination = Destination(out)
    destination.check(1)
    signing = Signatures.read(sign, with_prompt=sign_prompt)
    visible = sys.stderr.isatty() and not quiet
    try:
        with terminal.passing("loading …", visible):
            from limner.grids.grid import check

            loaded = _loaded(request, models, axes.values())
            check(requests, loaded)
            encodings = _encodings(requests, signing, models)
    except KeyboardInterrupt:
        terminal.say("stopped", "nothing was generated", "yellow")
        raise typer.Exit(130) from None
    _draw(requests, axes, loaded, destination, keep, visible, encodings, signing)


def _loaded(
    request: "GenerationRequest", models: ModelOptions, axes: "Collection[Axis]"
) -> "Model | ModelCache":
    """The model, or a cache of models if they are an axis."""
    from limner.engine.loaded import load
    from limner.engine.models import ModelCache

    if any(axis.name in ("model", "revision", "variant") for axis in axes):
        return ModelCache(**models.given())
    return load(request.model, revision=request.revision, variant=request.variant, **models.given())


def _encodings(
    requests: "Sequence[GenerationRequest]", signing: Signatures | None, models: ModelOptions
) -> "list[Encode]":
    """What encodes the image of each request, and signs it if that is asked for. Input images are read now,
    those of equal requests once."""
    from limner.images.inputs import inputs_of
    from limner.images.picture import encode

    if signing is None:
        return [encode] * len(requests)
    assets = models.given().get("assets")
    known: dict[tuple[tuple[str, str], ...], Encode] = {}
    found: list[Encode] = []
    for request in requests:
        key = tuple(inputs_of(request))
        if key not in known:
            known[key] = signing.encoding(request, assets)
        found.append(known[key])
    return found


def _draw(
    requests: "Sequence[GenerationRequest]",
    axes: "Mapping[str, Axis]",
    models: "Model | ModelCache",
    to: Destination,
    keep: bool,
    visible: bool,
    encodings: "Sequence[Encode]",
    signing: Signatures | None,
) -> None:
    """Generate the images and write the sheet, also after Ctrl-C and errors.

    Args:
        encodings: What encodes the image of each cell.
        signing: Signs the sheet, with its images as ingredients; None: it is not signed.
    """
    from limner.grids.grid import Grid, draw
    from limner.images.picture import Picture, encode, fits, losses, write_new_picture, write_picture

    drawn: dict[int, Picture] = {}
    files: dict[int, bytes] = {}  # of images that are kept, or signed for the sheet
    errors: dict[int, BaseException] = {}
    bar, since, stopped = terminal.Bar() if visible else None, time.monotonic(), False
    make_folder(to.folder)
    names = to.sheet(requests[0].seed or 0)
    path = (
        to.path if to.is_file else next(n for n in names if not n.exists() and not n.with_suffix("").exists())
    )
    try:
        with closing(draw(requests, models)) as drawing:
            for cell, outcome in drawing:
                if isinstance(outcome, Picture):
                    drawn[cell] = outcome
                    if keep or signing is not None:
                        files[cell] = encodings[cell](outcome, "png")
                    if keep:
                        _keep(files[cell], outcome.seed, cell, path, bar)
                else:
                    errors[cell] = outcome
                if bar:
                    done, each = (
                        len(drawn) + len(errors),
                        (time.monotonic() - since) / (len(drawn) + len(errors)),
                    )
                    left = each * (len(requests) - done)
                    bar.update(
                        done, len(requests), f"{done} of {len(requests)} images", f"{each:.1f} s each", left
                    )
    except KeyboardInterrupt:
        stopped = True
    finally:
        if bar:
            bar.hide()
    sheet = Grid(**axes, pictures=drawn, errors=errors)
    if drawn:
        write: Encode = encode
        if signing is not None:
            write = signing.sheet_encoding(files[cell] for cell in sorted(files))
        if to.is_file:
            image = sheet.image
            if fits(image.size, path.suffix):
                write_picture(image, path, write)
            else:
                size = f"{image.width} x {image.height}"
                terminal.warning(f"the sheet is {size}, too large for {path.suffix}: it is written as PNG")
                path = write_new_picture(image, numbered(path.with_suffix(".png")), write)
            for loss in losses(image, path.suffix):
                terminal.warning(f"{path}: {loss}")
        else:
            path = write_new_picture(sheet.image, chain([path], names), write)
        typer.echo(os.fsencode(path))
    for warning in dict.fromkeys(
        warning for picture in drawn.values() for warning in picture.record.warnings
    ):
        terminal.warning(warning)
    if sheet.scale < 1.0:
        terminal.note(
            f"the images on the sheet are scaled to {sheet.scale:.0%}; --keep writes them at full size"
        )
    if stopped:
        kept = (
            f"a sheet with {len(drawn)} of {len(requests)} images is kept"
            if drawn
            else "nothing was finished"
        )
        terminal.say("stopped", kept, "yellow")
        raise typer.Exit(130) from None
    if errors:
        for cell, error in sorted(errors.items()):
            why = error.message if isinstance(error, LimnerError) else repr(error)
            terminal.say("failed", f"{_values_of(cell, axes)}: {why}", "red")
        raise typer.Exit(1)


def _keep(data: bytes, seed: int, cell: int, sheet: Path, bar: terminal.Bar | None) -> None:
    """Write the PNG of an image to a folder named like the sheet."""
    folder = sheet.with_suffix("")
    make_folder(folder)
    path = write_first_free(numbered(folder / f"{cell + 1:05d}-{seed}.png"), data)
    if bar and sys.stdout.isatty():
        bar.hide()
    typer.echo(os.fsencode(path))


def _values_of(cell: int, axes: "Mapping[str, Axis]") -> str:
    """The axes' values of a cell."""
    said = []
    for axis in axes.values():  # x first, which changes fastest
        cell, index = divmod(cell, len(axis.values))
        said.append(f"{axis.name}={axis.texts[index]}")
    return ", ".join(said)
