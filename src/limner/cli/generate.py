"""`limner generate`: words become pictures.

Everything that can be refused is refused before the model is loaded: the request, then the place to write to.
Each picture is written as soon as it is finished, so that Ctrl-C keeps what is there.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from limner.cli import terminal
from limner.errors import InvalidRequest, OutputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from limner.pipeline.backends.base import Precision
    from limner.pipeline.handle import Progress
    from limner.pipeline.metadata import Picture, Record
    from limner.pipeline.model import BackendName, Model
    from limner.request import GenerationRequest

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # the formats that carry a record
_OTHER_SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".pdf", ".ppm", ".tga", ".tif", ".tiff")
_MAX_STDIN = 1 << 20  # characters; a request takes far fewer


def _option(help: str, panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


_PICTURE, _PROMPT, _SAMPLING, _MODEL, _OUTPUT = "Picture", "Prompt", "Sampling", "Model", "Output"
_SYNTAX = "a1111 reads (emphasis:1.3) and BREAK, as AUTOMATIC1111 does; literal takes every sign for itself."
_SAMPLERS = "ddim, ddpm, euler, euler_a, heun, lms, pndm, dpmpp_2m, dpmpp_2m_sde or unipc."
_REFERENCE = "picturebook (the default), a folder, or a hub id such as organisation/name."
_EXACT = "Draw each picture by itself, so that its bits do not depend on the others, or (default) share work."
_OUT = "Folder for numbered files, or for one picture a .png, .jpg or .webp file."
_FROM = "Draw what this picture's record says; other options override it."

Text = str | None  # an option left out is None, and the model's own default holds
Whole = int | None
Number = float | None


def generate(
    prompt: Annotated[
        Text, typer.Argument(help="What to draw; - reads it from standard input.", show_default=False)
    ] = None,
    width: Annotated[Whole, _option("In pixels, a multiple of 8.", _PICTURE)] = None,
    height: Annotated[Whole, _option("In pixels, a multiple of 8.", _PICTURE)] = None,
    seed: Annotated[Whole, _option("Of the first picture; by default a new one.", _PICTURE)] = None,
    num_images: Annotated[
        Whole, _option("How many; each takes the next seed.", _PICTURE, "--num-images", "-n")
    ] = None,
    negative_prompt: Annotated[Text, _option("What to steer away from.", _PROMPT)] = None,
    prompt_syntax: Annotated[Text, _option(_SYNTAX, _PROMPT)] = None,
    clip_skip: Annotated[Whole, _option("1: the text encoder's last layer, 2: one before …", _PROMPT)] = None,
    steps: Annotated[Whole, _option("Sampler steps.", _SAMPLING)] = None,
    guidance_scale: Annotated[Number, _option("How closely to follow the prompt; 1: off.", _SAMPLING)] = None,
    guidance_rescale: Annotated[Number, _option("0 to 1: keeps contrast from growing.", _SAMPLING)] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        _option("Lowest and highest sigma at which guidance is on.", _SAMPLING, metavar="LOW HIGH"),
    ] = None,
    sampler: Annotated[Text, _option(_SAMPLERS, _SAMPLING)] = None,
    sigma_schedule: Annotated[Text, _option("uniform, karras or exponential.", _SAMPLING)] = None,
    timestep_spacing: Annotated[Text, _option("leading, linspace or trailing.", _SAMPLING)] = None,
    eta: Annotated[Number, _option("0 to 1: ddim's share of fresh noise.", _SAMPLING)] = None,
    model: Annotated[Text, _option(_REFERENCE, _MODEL)] = None,
    revision: Annotated[Text, _option("Branch, tag or commit on the hub.", _MODEL)] = None,
    variant: Annotated[Text, _option("Of the weight files, such as fp16.", _MODEL)] = None,
    device: Annotated[Text, _option("auto, cpu, cuda, cuda:1 …", _MODEL)] = None,
    precision: Annotated[Text, _option("auto, fp32, bf16, fp16 or int8.", _MODEL)] = None,
    backend: Annotated[str, _option("What runs the networks: torch or openvino.", _MODEL)] = "torch",
    exact: Annotated[bool | None, _option(_EXACT, _SAMPLING, "--exact/--shared", show_default=False)] = None,
    out: Annotated[Path, _option(_OUT, _OUTPUT)] = Path("pictures"),
    grid: Annotated[bool, _option("Write a contact sheet of all pictures too.", _OUTPUT, "--grid")] = False,
    source: Annotated[Path | None, _option(_FROM, _OUTPUT, "--from", metavar="PICTURE")] = None,
    quiet: Annotated[bool, _option("No progress or notes, only warnings.", _OUTPUT, "--quiet", "-q")] = False,
) -> None:
    """Draw a picture from words.

    Options left out take the model's own defaults. The path of each picture goes to standard output.
    A picture keeps the request that drew it: `limner show` prints it, --from draws it again.
    """
    given = {
        "prompt": _read_prompt(prompt),
        "negative_prompt": negative_prompt,
        "prompt_syntax": prompt_syntax,
        "clip_skip": clip_skip,
        "num_images": num_images,
        "width": width,
        "height": height,
        "seed": seed,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "guidance_rescale": guidance_rescale,
        "guidance_interval": guidance_interval,
        "sampler": sampler,
        "sigma_schedule": sigma_schedule,
        "timestep_spacing": timestep_spacing,
        "eta": eta,
        "exact": exact,
        "model": model,
        "revision": revision,
        "variant": variant,
    }
    place = _Place(out)
    try:
        request, original = _request({k: v for k, v in given.items() if v is not None}, source)
        place.check(request.num_images)
        _draw(request, original, place, device, precision, backend, grid, quiet)
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
        there = self.folder
        try:
            while not _exists(there):
                there = there.parent
            tempfile.TemporaryFile(dir=there).close()
        except OSError as error:
            raise OutputError(
                f"{self.folder} cannot be written: {error.strerror}", hint="choose another place with --out"
            ) from error

    def write(self, picture: "Picture") -> Path:
        """Raises OutputError."""
        from limner.pipeline.metadata import write_picture
        from limner.pipeline.result import save_new

        if self.is_file:
            _make(self.folder)
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


def _exists(path: Path) -> bool:
    """Unlike Path.exists, true for a broken link, and raising OSError for what can be no path."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}") from error


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
    device: str | None,
    precision: str | None,
    backend: str,
    grid: bool,
    quiet: bool,
) -> None:
    visible = sys.stderr.isatty() and not quiet
    with _line(f"loading {request.model} …", visible):
        from limner.pipeline.model import load

        device, precision = _where(original, device, precision)
        model = load(
            request.model,
            revision=request.revision,
            variant=request.variant,
            device=device,
            precision=cast("Precision", precision),
            backend=cast("BackendName", backend),
        )
        request = model.resolve(request)
    for warning in model.warnings:
        terminal.warning(warning)
    redrawn = original if original is not None and request == original.record.request else None
    if redrawn is not None:
        redrawn.tell_conditions(model)

    bar = _Bar(request.num_images) if visible else None
    said = set(model.warnings)
    handle = model.engine.submit(request)
    try:
        for progress in handle:
            if progress.picture is None:
                if bar:
                    bar.update(progress)
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


def _where(original: _Original | None, device: str | None, precision: str | None) -> tuple[str, str]:
    """Device and precision: as given, else those of the original where this machine has them."""
    import torch

    recorded = original.record.environment if original else {}
    if device is None:
        device = "cpu" if str(recorded.get("device", "")).startswith("cpu") else "auto"
    if precision is None:
        on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        precision = str(recorded.get("precision", "auto"))
        if on_cpu and precision == "fp16":
            precision = "auto"
    return device, precision


@contextmanager
def _line(text: str, visible: bool) -> Iterator[None]:
    """A line on stderr that is gone when the block ends."""
    if visible:
        typer.echo(terminal.printable(text), nl=False, err=True)
    try:
        yield
    finally:
        if visible:
            typer.echo("\r\x1b[K", nl=False, err=True)  # erases to the end of the line


class _Bar:
    """How many pictures are done, the steps of all of them, and the time left, on stderr.

    It appears with a step, and is hidden while something else is printed.
    """

    def __init__(self, images: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._steps = [0] * images  # of each picture
        self._progress = RichProgress(
            TextColumn("{task.fields[images]}"),
            BarColumn(),
            TextColumn("step {task.fields[step]}"),
            TextColumn("{task.fields[left]} left", style="progress.remaining"),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,  # it would send the paths to stderr
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("", total=None, images="", step="", left="")

    def update(self, progress: "Progress") -> None:
        self._steps[progress.image - 1] = progress.step
        done, total = sum(self._steps), progress.images * progress.steps
        seconds = round(progress.seconds_left)
        self._progress.update(
            self._task,
            total=total,
            completed=done,
            images="1 image" if progress.images == 1 else f"{progress.images} images",
            step=f"{done} of {total}",
            left=f"{seconds // 60}:{seconds % 60:02d}",
        )
        self._progress.start()

    def hide(self) -> None:
        self._progress.stop()
