"""`limner generate`: images from a prompt.

The request and the destination are checked before the model is loaded. Each image is written as soon as it is
finished, so Ctrl-C keeps the finished ones.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.cli.fields import RequestOptions
from limner.cli.lines import read_prompt
from limner.cli.options import (
    OUTPUT,
    ModelOptions,
    Quiet,
    Sign,
    SignPrompt,
    Text,
    Watermark,
    flag,
    option,
    spread,
    watermark_key,
)
from limner.cli.original import Original
from limner.cli.output import Destination
from limner.cli.signing import Signatures
from limner.errors import InvalidRequest

from . import terminal

if TYPE_CHECKING:
    from limner.engine.handle import Progress
    from limner.images.picture import Picture
    from limner.model.model import Model
    from limner.request import GenerationRequest

_OUT = "Folder for numbered files; for a single image, also a file name ending in .png, .jpg or .webp."
_FROM = "Generate the request stored in this image; other options override it."


@spread
def generate(
    prompt: Annotated[
        Text, typer.Argument(help="The prompt; `-` reads it from standard input.", show_default=False)
    ] = None,
    *,
    fields: RequestOptions,
    models: ModelOptions,
    out: Annotated[Path, option(_OUT, OUTPUT)] = Path("pictures"),
    grid: Annotated[bool, flag("Write a contact sheet of all images too.", OUTPUT, "--grid")] = False,
    source: Annotated[Path | None, option(_FROM, OUTPUT, "--from", metavar="PICTURE")] = None,
    watermark: Watermark = False,
    sign: Sign = False,
    sign_prompt: SignPrompt = False,
    quiet: Quiet = False,
) -> None:
    """Generate images from a prompt.

    Options left out take the model's own defaults. The path of each image goes to standard output.
    An image keeps its request: `limner show` prints it, --from generates it again.
    """
    words = read_prompt(prompt)
    given = fields.given() if words is None else {"prompt": words, **fields.given()}
    destination = Destination(out)
    try:
        request, original = request_of(given, source, models.given())
        destination.check(request.num_images)
        key, signing = watermark_key(watermark), Signatures.read(sign, with_prompt=sign_prompt)
        _draw(request, original, destination, models, grid, quiet, key, signing)
    except KeyboardInterrupt:
        terminal.say("stopped", destination.kept, "yellow")
        raise typer.Exit(130) from None


def request_of(
    given: dict[str, Any], source: Path | None, loading: Mapping[str, Any] | None = None
) -> tuple["GenerationRequest", Original | None]:
    """The request, and the image that it comes from if that has a record of Limner.

    Args:
        loading: Names of the options of `limner.load` that are given.

    Raises:
        InvalidRequest: As `GenerationRequest.of`; no prompt; the source is a sheet of several images.
        InvalidPicture: The source has no metadata from which a request can be read.
    """
    from limner.images.metadata import read_image
    from limner.request import GenerationRequest
    from limner.request.names import own_names

    loading = loading or {}
    if source is None:
        if "prompt" not in given:
            raise InvalidRequest(
                "there is no prompt", hint='limner generate "a red house", or --from PICTURE'
            )
        return GenerationRequest.of(given), None
    # A name such as "DPM++ 2M Karras" replaces both the sampler and the sigma schedule of the source.
    given = {**given, **own_names(given.get("sampler"), given.get("sigma_schedule"))}
    opened = read_image(source)
    read, original = opened.metadata.request({*given, *loading}), Original.of(source, opened)
    for warning in read.warnings:
        terminal.warning(warning)
    stored = read.fields
    if original is not None:
        original = original.with_inputs(given, loading.get("assets"))
        stored = original.record.request.model_dump(exclude_none=True)
    if "model" in given:
        stored = {name: value for name, value in stored.items() if name not in ("revision", "variant")}
    return GenerationRequest.of({**stored, **given}), original


def _draw(
    request: "GenerationRequest",
    original: Original | None,
    destination: Destination,
    models: ModelOptions,
    grid: bool,
    quiet: bool,
    key: bytes | None,
    signing: Signatures | None,
) -> None:
    """Draw, mark with a watermark if there is a key, sign if that is asked for, and write."""
    visible = sys.stderr.isatty() and not quiet
    with terminal.passing(f"loading {request.model} …", visible):
        from limner.engine.loaded import load
        from limner.images.picture import encode, write_new_picture
        from limner.safety.marking import marked
        from limner.safety.watermark import check_size

        options = (models if original is None else original.loading(models)).given()
        model = load(request.model, revision=request.revision, variant=request.variant, **options)
        resolved = model.resolve(request)
        request = resolved.request
        if key is not None:
            check_size((request.width or 0, request.height or 0))
        write = encode if signing is None else signing.encoding(request, model.assets)
    for warning in model.warnings:
        terminal.warning(warning)
    redrawn = original if original is not None and request == original.record.request else None
    if redrawn is not None:
        _warn_of_differences(redrawn, model)

    bar = terminal.Bar() if visible else None
    taken = [0] * request.num_images  # steps done, by image
    said = set(model.warnings)
    finished, paths = dict[int, "Picture"](), dict[int, Path]()
    handle = model.engine.submit(resolved)
    try:
        for progress in handle:
            if progress.picture is None:
                if bar:
                    taken[progress.image - 1] = progress.step
                    _show(bar, sum(taken), progress)
                continue
            if bar:
                bar.hide()
            picture = progress.picture if key is None else marked(progress.picture, key)
            finished[progress.image] = picture
            path = paths[progress.image] = destination.write(picture, write)
            for warning in picture.record.warnings:
                if warning not in said:
                    terminal.warning(warning)
                    said.add(warning)
            if redrawn is not None and not quiet:
                _compare(redrawn, progress.picture)
            typer.echo(os.fsencode(path))
        result = handle.result()
    finally:
        handle.cancel()
        if bar:
            bar.hide()
    for warning in result.warnings:
        if warning not in said:  # of images that are missing
            terminal.warning(warning)
    if grid:
        result = replace(result, images=tuple(finished[number] for number in sorted(finished)))
        if signing is not None:
            write = signing.sheet_encoding(paths[number].read_bytes() for number in sorted(paths))
        path = write_new_picture(result.grid(), destination.sheet(result.seeds[0]), write)
        typer.echo(os.fsencode(path))


def _warn_of_differences(original: Original, model: "Model") -> None:
    """Warn of differences in weights and environment that may change the image."""
    differences = original.record.differences(model.environment())
    if original.record.model.get("sha256") != model.identity["sha256"]:
        differences.insert(0, "the weights")
    if differences:
        terminal.warning(
            f"differs from when {original.path} was made: {'; '.join(differences)}. The image may differ."
        )


def _compare(original: Original, picture: "Picture") -> None:
    """Say whether the new image, without a watermark, equals the original before it was marked."""
    from limner.images.picture import pixel_hash
    from limner.safety.replay import compare

    path, record = original.path, original.record
    if record.watermark is None and original.format == "PNG":
        found = compare(original.pixels, original.format, record, picture)
        if found.file == "drawn":
            terminal.note(f"identical to {path}, bit for bit")
            return
        distance = "" if found.most is None else f": colours differ by up to {found.most} of 255"
        if distance and record.environment.get("batch_invariant") == "no":
            distance += "; on its device the bits depend on the other images of a batch"
        terminal.warning(f"not identical to {path}, bit for bit{distance}")
        return
    if not record.pixels:
        terminal.note(f"{path} is not a PNG, so its pixels are not compared")
        return
    before = "its watermark" if record.watermark is not None else f"its compression as {original.format}"
    if pixel_hash(picture) == record.pixels:
        terminal.note(f"identical to {path} before {before}, bit for bit")
    else:
        terminal.warning(f"not identical to {path} before {before}, bit for bit")


def _show(bar: terminal.Bar, taken: int, progress: "Progress") -> None:
    """Show the number of images, the steps of all of them, and the time left."""
    images, total = progress.images, progress.images * progress.steps
    title = "1 image" if images == 1 else f"{images} images"
    bar.update(taken, total, title, f"step {taken} of {total}", progress.seconds_left)
