"""`limner generate`: words become pictures.

Everything that can be refused is refused before the model is loaded: the request, then the place to write to.
Each picture is written as soon as it is finished, so that Ctrl-C keeps what is there.
"""

import os
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.cli import terminal
from limner.cli.options import OUTPUT, ModelOptions, Quiet, RequestOptions, Text, flag, option, spread
from limner.cli.output import Place
from limner.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from limner.pipeline.handle import Progress
    from limner.pipeline.metadata import Picture, Record
    from limner.pipeline.model import Model
    from limner.request import GenerationRequest

_MAX_STDIN = 1 << 20  # characters; a request takes far fewer


_OUT = "Folder for numbered files, or for one picture a .png, .jpg or .webp file."
_FROM = "Draw what this picture's record says; other options override it."


@spread
def generate(
    prompt: Annotated[
        Text, typer.Argument(help="What to draw; - reads it from standard input.", show_default=False)
    ] = None,
    *,
    fields: RequestOptions,
    models: ModelOptions,
    out: Annotated[Path, option(_OUT, OUTPUT)] = Path("pictures"),
    grid: Annotated[bool, flag("Write a contact sheet of all pictures too.", OUTPUT, "--grid")] = False,
    source: Annotated[Path | None, option(_FROM, OUTPUT, "--from", metavar="PICTURE")] = None,
    quiet: Quiet = False,
) -> None:
    """Draw a picture from words.

    Options left out take the model's own defaults. The path of each picture goes to standard output.
    A picture keeps the request that drew it: `limner show` prints it, --from draws it again.
    """
    words = read_prompt(prompt)
    given = fields.given() if words is None else {"prompt": words, **fields.given()}
    place = Place(out)
    try:
        request, original = request_of(given, source, models.given())
        place.check(request.num_images)
        _draw(request, original, place, models, grid, quiet)
    except KeyboardInterrupt:
        terminal.say("stopped", place.kept, "yellow")
        raise typer.Exit(130) from None


def read_prompt(prompt: str | None) -> str | None:
    """The prompt, from standard input where it is "-"."""
    return sys.stdin.read(_MAX_STDIN).rstrip("\n") if prompt == "-" else prompt


@dataclass(frozen=True)
class _Original:
    """The picture that is drawn again.

    Attributes:
        pixels: None where the format has lost the exact ones.
    """

    path: Path
    record: "Record"
    pixels: "Image | None"

    @classmethod
    def read(cls, path: Path) -> "_Original | None":
        """None where there is no record of Limner's."""
        from PIL import Image

        from limner.pipeline.metadata import read_record

        record = read_record(path)
        if record is None:
            return None
        with Image.open(path) as image:
            return cls(path, record, image.convert("RGB") if image.format == "PNG" else None)

    def tell_conditions(self, model: "Model") -> None:
        """Say what is not as it was, before drawing."""
        differences = self.record.differences(model.environment())
        if self.record.model.get("sha256") != model.identity["sha256"]:
            differences.insert(0, "the weights are not the same")
        if differences:
            terminal.warning(
                f"not as when {self.path} was drawn: {'; '.join(differences)}. The picture may differ."
            )

    def tell_outcome(self, picture: "Picture") -> None:
        """Say whether the picture has become the same."""
        if self.pixels is None:
            terminal.note(f"{self.path} is compressed with loss, so there are no bits to compare")
        elif self.pixels.size == picture.size and self.pixels.tobytes() == picture.tobytes():
            terminal.note(f"bit for bit the picture in {self.path}")
        else:
            terminal.warning(
                f"the picture in {self.path} is not the same, bit for bit{self._distance(picture)}"
            )

    def _distance(self, picture: "Picture") -> str:
        if self.pixels is None or self.pixels.size != picture.size:
            return ""
        from PIL import ImageChops

        difference = ImageChops.difference(self.pixels, picture.convert("RGB"))
        most = max(band.getextrema()[1] for band in difference.split())
        company = "" if self.record.request.exact else "; one drawn in company rounds differently"
        return f": colours differ by up to {most} of 255{company}"


def request_of(
    given: dict[str, Any], source: Path | None, loading: Collection[str] = ()
) -> tuple["GenerationRequest", _Original | None]:
    """The request, and the picture of Limner's that it comes from.

    Args:
        loading: the options of `limner.load` that are given besides.

    Raises:
        InvalidRequest: as `GenerationRequest.of`; there is no prompt; the source is a sheet of pictures.
        InvalidPicture: the source does not say what drew it.
    """
    from limner.pipeline.metadata import read_request
    from limner.prompts.names import own_names
    from limner.request import GenerationRequest

    if source is None:
        if "prompt" not in given:
            raise InvalidRequest(
                "there is no prompt", hint='limner generate "a red house", or --from PICTURE'
            )
        return GenerationRequest.of(given), None
    # A sampler given as "DPM++ 2M Karras" stands over both of the source's fields.
    given = {**given, **own_names(given.get("sampler"), given.get("sigma_schedule"))}
    read, original = read_request(source, {*given, *loading}), _Original.read(source)
    if original is not None and original.record.grid:
        raise InvalidRequest(
            f"{source} is a sheet of several pictures",
            hint="name one of them; limner grid --keep writes them",
        )
    for warning in read.warnings:
        terminal.warning(warning)
    stored = read.fields
    if "model" in given:
        stored = {name: value for name, value in stored.items() if name not in ("revision", "variant")}
    return GenerationRequest.of({**stored, **given}), original


def _draw(
    request: "GenerationRequest",
    original: _Original | None,
    place: Place,
    models: ModelOptions,
    grid: bool,
    quiet: bool,
) -> None:
    visible = sys.stderr.isatty() and not quiet
    with terminal.passing(f"loading {request.model} …", visible):
        from limner.pipeline.loading import load
        from limner.pipeline.metadata import write_picture

        options = _as_recorded(models, original).given()
        model = load(request.model, revision=request.revision, variant=request.variant, **options)
        request = model.resolve(request)
    for warning in model.warnings:
        terminal.warning(warning)
    redrawn = original if original is not None and request == original.record.request else None
    if redrawn is not None:
        redrawn.tell_conditions(model)

    bar = terminal.Bar() if visible else None
    taken = [0] * request.num_images  # steps of each picture
    said = set(model.warnings)
    handle = model.engine.submit(request)
    try:
        for progress in handle:
            if progress.picture is None:
                if bar:
                    taken[progress.image - 1] = progress.step
                    _tell(bar, sum(taken), progress)
                continue
            if bar:
                bar.hide()
            path = place.write(progress.picture)
            for warning in progress.picture.record.warnings:
                if warning not in said:
                    terminal.warning(warning)
                    said.add(warning)
            if redrawn is not None and not quiet:
                redrawn.tell_outcome(progress.picture)
            typer.echo(os.fsencode(path))
        result = handle.result()
    finally:
        handle.cancel()
        if bar:
            bar.hide()
    if grid:
        path = place.sheet(result.seeds[0])
        write_picture(result.grid(), path)
        typer.echo(os.fsencode(path))


def _as_recorded(models: ModelOptions, original: _Original | None) -> ModelOptions:
    """Device, precision and backend: as given, else the original's where this machine has them."""
    import torch

    recorded = original.record.environment if original else {}
    device, precision = models.device, models.precision
    if device is None:
        device = "cpu" if str(recorded.get("device", "")).startswith("cpu") else "auto"
    if precision is None:
        on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        precision = str(recorded.get("precision", "auto"))
        if on_cpu and precision == "fp16":
            precision = "auto"
    backend = models.backend or (str(recorded["backend"]) if "backend" in recorded else None)
    return replace(models, device=device, precision=precision, backend=backend)


def _tell(bar: terminal.Bar, taken: int, progress: "Progress") -> None:
    """How many pictures there are, the steps of all of them, and the time left."""
    images, total = progress.images, progress.images * progress.steps
    title = "1 image" if images == 1 else f"{images} images"
    bar.update(taken, total, title, f"step {taken} of {total}", progress.seconds_left)
