"""`limner generate`: words become pictures.

Everything that can be refused is refused before the model is loaded: the request, then the place to write to.
Each picture is written as soon as it is finished, so that Ctrl-C keeps what is there.
"""

import os
import sys
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.cli import terminal
from limner.cli.options import OUTPUT, ModelOptions, Quiet, RequestOptions, Text, option, spread
from limner.cli.output import check_folder, make_folder
from limner.errors import InvalidRequest, OutputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from limner.pipeline.handle import Progress
    from limner.pipeline.metadata import Picture, Record
    from limner.pipeline.model import Model
    from limner.request import GenerationRequest

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # the formats that carry a record
_OTHER_SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".pdf", ".ppm", ".tga", ".tif", ".tiff")
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
    grid: Annotated[bool, option("Write a contact sheet of all pictures too.", OUTPUT, "--grid")] = False,
    source: Annotated[Path | None, option(_FROM, OUTPUT, "--from", metavar="PICTURE")] = None,
    quiet: Quiet = False,
) -> None:
    """Draw a picture from words.

    Options left out take the model's own defaults. The path of each picture goes to standard output.
    A picture keeps the request that drew it: `limner show` prints it, --from draws it again.
    """
    words = _read_prompt(prompt)
    given = fields.given() if words is None else {"prompt": words, **fields.given()}
    place = _Place(out)
    try:
        request, original = _request(given, source)
        place.check(request.num_images)
        _draw(request, original, place, models, grid, quiet)
    except KeyboardInterrupt:
        terminal.say("stopped", place.kept, "yellow")
        raise typer.Exit(130) from None


def _read_prompt(prompt: str | None) -> str | None:
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


@dataclass
class _Place:
    """Where pictures go: a file if the path has a picture's suffix, else a folder."""

    path: Path
    written: int = 0

    @property
    def is_file(self) -> bool:
        return self.path.suffix.lower() in _SUFFIXES and not self.path.is_dir()

    @property
    def folder(self) -> Path:
        return self.path.parent if self.is_file else self.path

    @property
    def kept(self) -> str:
        if not self.written:
            return "no picture was finished"
        return f"{self.written} finished picture{'s' * (self.written > 1)} kept in {self.path}"

    def check(self, number: int) -> None:
        """Try whether pictures can be written here, without leaving a trace.

        Raises:
            OutputError: they cannot.
            InvalidRequest: several pictures for one file.
        """
        if self.is_file and number > 1:
            raise InvalidRequest(
                f"--out names one file, {self.path}, for {number} pictures", hint="name a folder"
            )
        if self.path.suffix.lower() in _OTHER_SUFFIXES and not self.path.is_dir():
            raise OutputError(
                f"{self.path} cannot keep what drew it", hint=f"use {', '.join(_SUFFIXES)}, or a folder"
            )
        check_folder(self.folder)

    def write(self, picture: "Picture") -> Path:
        """Raises OutputError."""
        from limner.pipeline.metadata import write_picture
        from limner.pipeline.result import save_new

        if self.is_file:
            make_folder(self.folder)
            write_picture(picture, self.path)
            path = self.path
        else:
            path = save_new(picture, self.path)
        self.written += 1
        return path

    def write_grid(self, sheet: "Image", seed: int) -> Path:
        """Raises OutputError."""
        from limner.pipeline.metadata import write_picture

        names = (f"grid-{seed}{f'-{number}' if number > 1 else ''}.png" for number in count(1))
        path = next(path for name in names if not (path := self.folder / name).exists())
        write_picture(sheet, path)
        return path


def _request(given: dict[str, Any], source: Path | None) -> tuple["GenerationRequest", _Original | None]:
    """The request, and the picture that it comes from."""
    from limner.pipeline.metadata import read_request
    from limner.request import GenerationRequest

    if source is None:
        if "prompt" not in given:
            raise InvalidRequest(
                "there is no prompt", hint='limner generate "a red house", or --from PICTURE'
            )
        return GenerationRequest.of(given), None
    stored, original = read_request(source), _Original.read(source)
    if original is None and "model" not in given:
        terminal.warning(f"{source} comes from another program; its model is not looked for")
    if "model" in given:
        stored = {name: value for name, value in stored.items() if name not in ("revision", "variant")}
    return GenerationRequest.of({**stored, **given}), original


def _draw(
    request: "GenerationRequest",
    original: _Original | None,
    place: _Place,
    models: ModelOptions,
    grid: bool,
    quiet: bool,
) -> None:
    visible = sys.stderr.isatty() and not quiet
    with terminal.passing(f"loading {request.model} …", visible):
        from limner.pipeline.model import load

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
        typer.echo(os.fsencode(place.write_grid(result.grid(), result.seeds[0])))


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
