"""`limner detect`: the watermark, the manifest and the record of images."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limner.errors import InvalidRequest, LimnerError

from . import terminal
from .moments import when
from .opening import DataOption, open_ledger, service_settings
from .options import watermark_keys
from .signing import manifest_json, manifest_rows, read_anchors

if TYPE_CHECKING:
    from limner.images.record import Record
    from limner.safety.provenance import Manifest
    from limner.safety.watermark import KeyName

_NO_MARK, _UNREADABLE = 1, 2  # exit codes


def detect(
    files: Annotated[list[Path], typer.Argument(help="Images, crops or re-encoded copies.")],
    scales: Annotated[
        bool,
        typer.Option(
            "--scales/--no-scales",
            help="Where nothing is found at first, look for a mark in a scaled image, which takes seconds.",
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a file.")] = False,
    data: DataOption = None,
) -> None:
    """Find the watermark, the manifest and the record of images.

    Marks made with the key of LIMNER_WATERMARK_KEY, and with the published one, are found; with --data, marks
    of that service, and which of its images it is. Exit codes: 0 if every image has a watermark, 1 if one has
    none, 2 if a file cannot be examined.
    """
    code, keys, anchors = 0, _keys(data), read_anchors(data=data)
    for file in files:
        try:
            found = _examined(file, keys, anchors, scales)
            if data is not None:
                found["images"] = _images_of(found["watermark"], data)
        except LimnerError as error:
            terminal.error(f"{file}: {error.message}", error.hint)
            code = _UNREADABLE
            continue
        if found["watermark"] is None:
            code = max(code, _NO_MARK)
        if as_json:
            typer.echo(json.dumps(found))
        else:
            terminal.columns(_rows(found))
    raise typer.Exit(code)


def _examined(file: Path, keys: "Mapping[KeyName, bytes]", anchors: bytes, scales: bool) -> dict[str, Any]:
    """What an image says of itself, as `--json` prints it.

    Raises:
        LimnerError: It is no image, or too small.
    """
    from limner.images.opening import open_image
    from limner.safety.watermark import find_mark

    found = find_mark(open_image(file), keys, search_scales=scales)
    record = _record(file)
    mark = None if found is None else found.mark
    named = record.watermark if record is not None else None
    return {
        "file": str(file),
        "watermark": None
        if found is None or mark is None
        else {
            "id": mark.digits,
            "bits": mark.bits,
            "z": round(mark.z, 2),
            "scale": round(mark.scale, 4),
            "key": found.key,
        },
        "manifest": manifest_json(_manifest(file, anchors)),
        "of_record": None if mark is None or named is None else named.id.startswith(mark.digits),
        "record": None if record is None else record.model_dump(mode="json"),
    }


def _record(file: Path) -> "Record | None":
    from limner.errors import InvalidPicture
    from limner.images.metadata import read_record

    try:
        return read_record(file)
    except InvalidPicture as error:
        terminal.warning(error.message)
        return None


def _manifest(file: Path, anchors: bytes) -> "Manifest | None":
    from limner.safety.provenance import has_manifest, read_manifest

    data = file.read_bytes()
    if not has_manifest(data):
        return None
    try:
        return read_manifest(data, anchors)
    except InvalidRequest as error:
        terminal.warning(f"{file} has a manifest; {error.message} ({error.hint})")
        return None


def _images_of(mark: Mapping[str, Any] | None, data: Path) -> list[dict[str, Any]]:
    """The images of a service that have a watermark, as `--json` prints them. Raises as `open_ledger`."""
    if mark is None:
        return []
    with open_ledger(data) as ledger:
        return [
            {
                "id": one.id,
                "account": one.account_id,
                "job": one.job_id,
                "created_at": one.created_at,
                "prompt": one.prompt,
            }
            for one in ledger.find_watermark(mark["id"])
        ]


def _keys(data: Path | None) -> "dict[KeyName, bytes]":
    """The keys that marks are looked for with.

    Args:
        data: Data folder of the service whose key is the own one; None: that of the commands.

    Raises:
        InvalidRequest: The key that is set is too short, or cannot be read.
    """
    if data is None:
        return watermark_keys()
    from limner.safety.watermark import known_keys
    from limner.service.release import watermark_key

    return known_keys(watermark_key(service_settings(data)))


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    rows, mark, record = [("file", found["file"])], found["watermark"], found["record"]
    if mark is None:
        rows.append(("watermark", "none found"))
    else:
        rows.append(("watermark", f"{mark['id']} ({mark['bits']} bits, {mark['key']} key)"))
        rows.append(("z score", f"{mark['z']:.1f}"))
        rows.append(("scale", f"{mark['scale']:g}"))
    for image in found.get("images", ()):
        made = when(image["created_at"])
        rows.append(("image", f"{image['id']} of the account {image['account']}, {made} UTC"))
    rows += manifest_rows(found["manifest"])
    if record is None:
        rows.append(("record", "none"))
        return rows
    model, request = record["model"], record["request"]
    rows.append(("model", f"{model.get('name', '')} {model.get('sha256', '')[:10]}".strip()))
    rows.append(("prompt", request["prompt"]))
    rows.append(("seed", str(request["seed"])))
    if record["watermark"] is not None:
        agreement = {
            True: "is that of the pixels",
            False: "is not that of the pixels",
            None: "not in the pixels",
        }
        rows.append(("recorded watermark", f"{record['watermark']['id']}, {agreement[found['of_record']]}"))
    return rows
