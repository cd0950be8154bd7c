"""`limner verify`: whether images are as they were signed, and as their records draw them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.cli.options import ModelOptions, spread, watermark_keys
from limner.errors import InvalidPicture, InvalidRequest, LimnerError

from . import terminal
from .signing import manifest_json, manifest_rows, read_anchors

if TYPE_CHECKING:
    from limner.cli.original import Original
    from limner.engine.loaded import Model
    from limner.images.metadata import OpenedImage
    from limner.safety.replay import Comparison

_NOT_VALID, _UNREADABLE = 1, 2  # exit codes
_ANCHORS = (
    "PEM file of certificates that vouch for signers. May be repeated. Default: the environment's "
    "LIMNER_TRUST_ANCHORS, else the development CA of this machine."
)
_REPLAY = "Draw each image again from its record, and compare. What is not signed may pass then."
_DIFFERENCE = "With --replay, write a picture of the differences, the greatest as white."
_MODEL = "With --replay, model to draw with, where the recorded name does not find it."


@spread
def verify(
    files: Annotated[list[Path], typer.Argument(help="Images.", show_default=False)],
    *,
    anchors: Annotated[list[Path] | None, typer.Option(help=_ANCHORS, metavar="FILE")] = None,
    replay: Annotated[bool, typer.Option("--replay", help=_REPLAY)] = False,
    difference: Annotated[Path | None, typer.Option(help=_DIFFERENCE, metavar="PNG")] = None,
    model: Annotated[str | None, typer.Option(help=_MODEL, metavar="MODEL")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a file.")] = False,
    models: ModelOptions,
) -> None:
    """Check the signatures of images, or draw them again from their records.

    Exit codes: 0 if each is as it was signed, by somebody whom a trust anchor vouches for, and with --replay
    as its record draws it; 1 if one is not, or is not signed; 2 if a file cannot be examined.
    """
    if (difference is not None or model is not None) and not replay:
        raise InvalidRequest("--difference and --model need --replay", hint="add --replay")
    if difference is not None and len(files) > 1:
        raise InvalidRequest(f"--difference names one file for {len(files)} images", hint="verify one image")
    code, trusted = 0, read_anchors(anchors or ())
    redrawing = _Redrawing(models, model, difference) if replay else None
    for file in files:
        try:
            found = _examined(file, trusted, redrawing)
        except LimnerError as error:
            terminal.error(f"{file}: {error.message}", error.hint)
            code = _UNREADABLE
            continue
        if not _holds(found):
            code = max(code, _NOT_VALID)
        if as_json:
            typer.echo(json.dumps(found))
        else:
            rows = [("file", str(file)), *manifest_rows(found["manifest"])]
            terminal.columns(rows + _replay_rows(found["replay"]))
    raise typer.Exit(code)


def _holds(found: Mapping[str, Any]) -> bool:
    """Whether an image passes. With --replay, one without a manifest may."""
    manifest, replay = found["manifest"], found["replay"]
    if manifest is None:
        return replay is not None and bool(replay["holds"])
    return manifest["state"] == "trusted" and (replay is None or bool(replay["holds"]))


def _examined(file: Path, anchors: bytes, redrawing: "_Redrawing | None") -> dict[str, Any]:
    """What is found about an image, as `--json` prints it.

    Raises:
        LimnerError: It is no image, its record cannot be drawn, or limner[provenance] is not installed.
    """
    from limner.images.metadata import read_image
    from limner.safety.provenance import Manifest, has_manifest, read_manifest

    data = file.read_bytes()
    manifest = read_manifest(data, anchors) if has_manifest(data) else None
    found: dict[str, Any] = {"file": str(file), "manifest": manifest_json(manifest), "replay": None}
    try:
        opened = read_image(file)
    except InvalidPicture as error:  # a manifest that is whole does not help an image that is not
        if manifest is None:
            raise
        broken = Manifest("invalid", (*manifest.failures, error.message))
        return {**found, "manifest": manifest_json(broken)}
    return found if redrawing is None else {**found, "replay": redrawing(file, opened)}


class _Redrawing:
    """Draws images again and compares them.

    Args:
        models: How models are loaded; what is left out is as recorded.
        model: Name of the model to use; None: the recorded one's.
        difference: File for a picture of the differences; None: none is written.
    """

    def __init__(self, models: ModelOptions, model: str | None, difference: Path | None) -> None:
        self._options, self._name, self._difference = models, model, difference
        self._loaded: tuple[object, Model] | None = None  # the last model, by its name and options

    def __call__(self, file: Path, opened: "OpenedImage") -> dict[str, Any]:
        """What is found about the image of a file, as `--json` prints it.

        Raises:
            LimnerError: There is no record, or it cannot be drawn here.
        """
        from limner.cli.original import Original
        from limner.safety.replay import compare, differences

        stored = Original.of(file, opened)
        if stored is None:
            raise InvalidPicture(
                f"{file} holds no record of Limner's, so it cannot be drawn again",
                hint="`limner generate --from` draws what another program has recorded",
            )
        original = stored.with_inputs((), self._options.given().get("assets"))
        if self._name is not None:
            request = original.record.request.model_copy(
                update={"model": self._name, "revision": None, "variant": None}
            )
            original = original.asking(request)
        with _threads(original.record.environment.get("threads")):
            model = self._model(original)
            [again] = model.generate(request=original.record.request).images
        keys = tuple(watermark_keys().values())
        found = compare(original.pixels, original.format, stored.record, again, keys)
        picture = found.map()
        if self._difference is not None and picture is not None:
            from limner.images.picture import write_picture

            write_picture(picture, self._difference)
        invariant = "no" not in (
            one.environment.get("batch_invariant") for one in (stored.record, again.record)
        )
        return {
            **_replay_json(found),
            "batch_invariant": invariant,
            "differences": [asdict(one) for one in differences(stored.record, again.record)],
        }

    def _model(self, original: "Original") -> "Model":
        from limner.engine.loaded import load

        request, options = original.record.request, original.loading(self._options)
        wanted = (request.model, request.revision, request.variant, options)
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = None  # its memory is free before the next one is read
            loaded = load(
                request.model, revision=request.revision, variant=request.variant, **options.given()
            )
            self._loaded = wanted, loaded
        return self._loaded[1]


@contextmanager
def _threads(number: object) -> Iterator[None]:
    """Use as many threads of the processor as recorded: sums may depend on how they are split."""
    import torch

    before = torch.get_num_threads()
    if isinstance(number, int) and 0 < number != before:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _replay_json(found: "Comparison") -> dict[str, Any]:
    return {
        "holds": found.holds,
        "same": found.same,
        "file": found.file,
        "most": found.most,
        "mean": None if found.mean is None else round(found.mean, 4),
        "differing": None if found.differing is None else round(found.differing, 6),
    }


_FILES = {
    "drawn": "the file's pixels are these, bit for bit",
    "watermarked": "the file's pixels are these with the watermark, bit for bit",
    "compressed": "the file's pixels are these after compression, bit for bit",
}


def _replay_rows(replay: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What drawing again showed, for people."""
    if replay is None:
        return []
    from limner.safety.replay import Difference

    reproduced = {
        True: "the same pixels as recorded",
        False: "not the pixels that were recorded",
        None: "the record does not say the pixels",
    }[replay["same"]]
    rows = [("drawn again", reproduced), ("the file", _FILES.get(replay["file"], _distance(replay)))]
    if replay["holds"]:
        return rows
    if replay["same"]:
        return [
            *rows,
            ("explained by", "the file was changed, or compressed by another program, after drawing"),
        ]
    differences = (Difference(**one) for one in replay["differences"])
    said = [str(one) for one in differences if one.name != "batch_invariant"]
    if not replay["batch_invariant"]:
        said.append("the bits depend on the other images of a batch, on one of the two devices or backends")
    return rows + [("explained by", one) for one in said or ["nothing that the record knows"]]


def _distance(replay: Mapping[str, Any]) -> str:
    if replay["most"] is None:
        return "has another size"
    return (
        f"differs by up to {replay['most']} of 255, by {replay['mean']:g} on average, in "
        f"{replay['differing']:.2%} of its pixels"
    )
