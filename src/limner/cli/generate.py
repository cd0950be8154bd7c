"""`limner generate`: images from a prompt.

The request and the destination are checked before the model is loaded. Each image is written as soon as it is
finished, so Ctrl-C keeps the finished ones.
"""

import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from limner.cli.fields import RequestOptions
from limner.cli.lines import looks_like_json
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
from limner.cli.output import Destination
from limner.cli.signing import Signing
from limner.errors import InvalidRequest

from . import terminal

if TYPE_CHECKING:
    from PIL.Image import Image

    from limner.engine.handle import Progress
    from limner.images.assets import Assets
    from limner.images.picture import Picture
    from limner.images.record import Record
    from limner.model.model import Model
    from limner.request import GenerationRequest

_MAX_STDIN = 1 << 20  # characters; a request takes far fewer


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
        key, signing = watermark_key(watermark), Signing.read(sign, with_prompt=sign_prompt)
        _draw(request, original, destination, models, grid, quiet, key, signing)
    except KeyboardInterrupt:
        terminal.say("stopped", destination.kept, "yellow")
        raise typer.Exit(130) from None


def read_prompt(prompt: str | None) -> str | None:
    """The prompt, from standard input where it is "-".

    Raises:
        InvalidRequest: The prompt is a request in JSON.
    """
    if prompt == "-":
        prompt = sys.stdin.read(_MAX_STDIN).rstrip("\n")
    if prompt is not None and looks_like_json(prompt):
        raise InvalidRequest(
            "the prompt is JSON",
            hint="`limner batch` takes requests in JSON, from a file or, with -, from standard input",
        )
    return prompt


@dataclass(frozen=True)
class _Original:
    """The image that is generated again.

    Attributes:
        path: Path of the image.
        record: Its record.
        pixels: Its pixels; None unless the file is a PNG.
    """

    path: Path
    record: "Record"
    pixels: "Image | None"

    @classmethod
    def read(cls, path: Path) -> "_Original | None":
        """Read an image; None if it has no record of Limner."""
        from PIL import Image

        from limner.images.metadata import read_record

        record = read_record(path)
        if record is None:
            return None
        with Image.open(path) as image:
            return cls(path, record, image.convert("RGB") if image.format == "PNG" else None)

    def with_inputs(self, given: Collection[str], assets: "Assets | None") -> "_Original":
        """The same with the present path of each input image: as stored, next to this image, or by content.

        Args:
            given: Fields whose images the command line replaces.
            assets: Folders to search in addition to that of this image.

        Raises:
            InvalidRequest: An input image was not found.
        """
        from limner.images.assets import Assets
        from limner.images.inputs import map_inputs

        known = Assets() if assets is None else assets
        known = replace(known, folders=(*known.folders, self.path.parent))

        def located(name: str, source: str) -> str:
            if name in given or source.startswith("sha256:"):
                return source if name in given else known.locate(source, name)
            digest = self.record.inputs.get(source)
            for path in (source, str(self.path.parent / source)):
                found = known.digest(path)
                if found is not None:
                    if digest not in (None, found):
                        terminal.warning(f"{path} has changed since {self.path} was made with it")
                    return path
            elsewhere = None if digest is None else known.find(digest)
            if elsewhere is None:
                raise InvalidRequest(
                    f"{self.path} was made with {source}, which was not found",
                    hint=f"give `{name}`, or the folder that holds it as `assets_dirs`",
                    fields=(name,),
                )
            terminal.note(f"{source} was not found; {elsewhere} has the same content")
            return str(elsewhere)

        request = map_inputs(self.record.request, located)
        return replace(self, record=self.record.model_copy(update={"request": request}))

    def warn_of_differences(self, model: "Model") -> None:
        """Warn of differences in weights and environment that may change the image."""
        differences = self.record.differences(model.environment())
        if self.record.model.get("sha256") != model.identity["sha256"]:
            differences.insert(0, "the weights")
        if differences:
            terminal.warning(
                f"differs from when {self.path} was made: {'; '.join(differences)}. The image may differ."
            )

    def compare(self, picture: "Picture") -> None:
        """Say whether the new image, without a watermark, equals the original before it was marked."""
        if self.record.watermark is not None:
            from limner.safety.marking import pixel_hash

            if pixel_hash(picture) == self.record.watermark.pixels:
                terminal.note(f"identical to {self.path} before its watermark, bit for bit")
            else:
                terminal.warning(f"not identical to {self.path} before its watermark, bit for bit")
            return
        if self.pixels is None:
            terminal.note(f"{self.path} is not a PNG, so its pixels are not compared")
        elif self.pixels.size == picture.size and self.pixels.tobytes() == picture.tobytes():
            terminal.note(f"identical to {self.path}, bit for bit")
        else:
            terminal.warning(f"not identical to {self.path}, bit for bit{self._distance(picture)}")

    def _distance(self, picture: "Picture") -> str:
        if self.pixels is None or self.pixels.size != picture.size:
            return ""
        from PIL import ImageChops

        difference = ImageChops.difference(self.pixels, picture.convert("RGB"))
        most = max(cast("tuple[int, int]", band.getextrema())[1] for band in difference.split())
        reason = ""
        if self.record.environment.get("batch_invariant") == "no":
            reason = "; on its device the bits depend on the other images of a batch"
        return f": colours differ by up to {most} of 255{reason}"


def request_of(
    given: dict[str, Any], source: Path | None, loading: Mapping[str, Any] | None = None
) -> tuple["GenerationRequest", _Original | None]:
    """The request, and the image that it comes from if that has a record of Limner.

    Args:
        loading: Names of the options of `limner.load` that are given.

    Raises:
        InvalidRequest: As `GenerationRequest.of`; no prompt; the source is a sheet of several images.
        InvalidPicture: The source has no metadata from which a request can be read.
    """
    from limner.images.metadata import read_request
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
    read, original = read_request(source, {*given, *loading}), _Original.read(source)
    if original is not None and original.record.grid:
        raise InvalidRequest(
            f"{source} is a sheet of several images",
            hint="name one of them; limner grid --keep writes them",
        )
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
    original: _Original | None,
    destination: Destination,
    models: ModelOptions,
    grid: bool,
    quiet: bool,
    key: bytes | None,
    signing: Signing | None,
) -> None:
    """Draw, mark with a watermark if there is a key, sign if that is asked for, and write."""
    visible = sys.stderr.isatty() and not quiet
    with terminal.passing(f"loading {request.model} …", visible):
        from limner.engine.loaded import load
        from limner.images.picture import encode, write_new_picture
        from limner.safety.marking import marked
        from limner.safety.watermark import check_size

        options = _as_recorded(models, original).given()
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
        redrawn.warn_of_differences(model)

    bar = terminal.Bar() if visible else None
    taken = [0] * request.num_images  # steps done, by image
    said = set(model.warnings)
    finished = dict[int, "Picture"]()
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
            path = destination.write(picture, write)
            for warning in picture.record.warnings:
                if warning not in said:
                    terminal.warning(warning)
                    said.add(warning)
            if redrawn is not None and not quiet:
                redrawn.compare(progress.picture)
            typer.echo(os.fsencode(path))
        result = handle.result()
    finally:
        handle.cancel()
        if bar:
            bar.hide()
    if grid:
        result = replace(result, images=tuple(finished[number] for number in sorted(finished)))
        path = write_new_picture(result.grid(), destination.sheet(result.seeds[0]), write)
        typer.echo(os.fsencode(path))


def _as_recorded(models: ModelOptions, original: _Original | None) -> ModelOptions:
    """The options with device, precision and backend: as given, else as recorded if this machine has them."""
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


def _show(bar: terminal.Bar, taken: int, progress: "Progress") -> None:
    """Show the number of images, the steps of all of them, and the time left."""
    images, total = progress.images, progress.images * progress.steps
    title = "1 image" if images == 1 else f"{images} images"
    bar.update(taken, total, title, f"step {taken} of {total}", progress.seconds_left)
