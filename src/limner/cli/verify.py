"""`limner verify`: whether images are as they were signed."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from limner.errors import InvalidPicture, LimnerError

from . import terminal
from .signing import manifest_json, manifest_rows, read_anchors

_NOT_VALID, _UNREADABLE = 1, 2  # exit codes
_ANCHORS = (
    "PEM file of certificates that vouch for signers. May be repeated. Default: the environment's "
    "LIMNER_TRUST_ANCHORS, else the development CA of this machine."
)


def verify(
    files: Annotated[list[Path], typer.Argument(help="Images.", show_default=False)],
    anchors: Annotated[list[Path] | None, typer.Option(help=_ANCHORS, metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a file.")] = False,
) -> None:
    """Check the signatures of images, or draw them again from their records.

    Exit codes: 0 if each is as it was signed, by somebody whom a trust anchor vouches for; 1 if one is not,
    or is not signed; 2 if a file cannot be examined.
    """
    code, trusted = 0, read_anchors(anchors or ())
    for file in files:
        try:
            found = _examined(file, trusted)
        except LimnerError as error:
            terminal.error(f"{file}: {error.message}", error.hint)
            code = _UNREADABLE
            continue
        if found["manifest"] is None or found["manifest"]["state"] != "trusted":
            code = max(code, _NOT_VALID)
        if as_json:
            typer.echo(json.dumps(found))
        else:
            terminal.columns([("file", str(file)), *manifest_rows(found["manifest"])])
    raise typer.Exit(code)


def _examined(file: Path, anchors: bytes) -> dict[str, Any]:
    """What is found about an image, as `--json` prints it.

    Raises:
        LimnerError: It is no image, or limner[provenance] is not installed.
    """
    from limner.images.metadata import read_metadata
    from limner.safety.provenance import Manifest, has_manifest, read_manifest

    data = file.read_bytes()
    manifest = read_manifest(data, anchors) if has_manifest(data) else None
    try:
        read_metadata(file)
    except InvalidPicture as error:  # a manifest that is whole does not help an image that is not
        if manifest is None:
            raise
        manifest = Manifest("invalid", (*manifest.failures, error.message))
    return {"file": str(file), "manifest": manifest_json(manifest)}
