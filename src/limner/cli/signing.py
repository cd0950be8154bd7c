"""Signing, and how manifests are shown: what the commands that write or read images share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.settings import DEVELOPMENT_KEYS, SigningSettings

from . import terminal

if TYPE_CHECKING:
    from PIL.Image import Image

    from limner.images.assets import Assets
    from limner.images.picture import Encode
    from limner.request import GenerationRequest
    from limner.safety.provenance import Ingredient, Manifest, Signing


class Signatures:
    """Signs the images of a command.

    Args:
        signing: How they are signed.
    """

    def __init__(self, signing: "Signing") -> None:
        self._signing, self._said = signing, set[str]()

    @classmethod
    def read(cls, wanted: bool, *, with_prompt: bool) -> "Signatures | None":
        """As the environment says; None if no signature is wanted. A prompt in manifests asks for one.

        Raises:
            InvalidRequest: Keys that cannot be used, or limner[provenance] is not installed.
            OutputError: The development CA cannot be made.
        """
        if not (wanted or with_prompt):
            return None
        from limner.safety.provenance import Signing, load_signer
        from limner.safety.provenance.keys import DEVELOPMENT_CA

        settings = SigningSettings.read()
        keys = settings.development_keys
        known = keys.is_dir()
        signer = load_signer(settings.certificate, settings.key, settings.timestamp_url, keys)
        if not known and keys.is_dir():
            terminal.note(
                f'made "{DEVELOPMENT_CA}" in {keys}: its signatures can be checked on this machine, and '
                "prove nothing to others"
            )
        return cls(Signing(signer, read_anchors(), with_prompt=with_prompt))

    def encoding(self, request: "GenerationRequest", assets: "Assets | None") -> "Encode":
        """What encodes and signs the images of a request. Its input images are read now.

        Raises:
            InvalidRequest: An input image is not found.
        """
        from limner.safety.provenance import ingredients_of

        return self._encoding(ingredients_of(request, assets))

    def sheet_encoding(self, files: Iterable[bytes]) -> "Encode":
        """What encodes and signs a sheet.

        Args:
            files: The signed files of the images on it.
        """
        from limner.safety.provenance import Ingredient

        numbered = enumerate(files, 1)
        return self._encoding([Ingredient(one, "componentOf", f"image {number}") for number, one in numbered])

    def _encoding(self, ingredients: "Sequence[Ingredient]") -> "Encode":
        def encoded(image: "Image", format: str) -> bytes:
            file = self._signing.encode(image, format, ingredients)
            for warning in file.warnings:
                if warning not in self._said:
                    self._said.add(warning)
                    terminal.warning(warning)
            return file.data

        return encoded


def read_anchors(files: Iterable[Path] = (), data: Path | None = None) -> bytes:
    """The certificates that vouch for signers: of these files, else of the settings, else of the development
    CA. Raises as `limner.safety.provenance.load_anchors`.

    Args:
        data: Data folder of the service whose development CA is meant; None: that of the commands.
    """
    from limner.safety.provenance import load_anchors

    settings = SigningSettings.read()
    keys = settings.development_keys if data is None else data / DEVELOPMENT_KEYS
    return load_anchors(tuple(files) or settings.trust_anchors, keys)


_STATES = {
    "trusted": "valid",
    "untrusted": "not trusted: the file is as it was signed, but no trust anchor vouches for the signer",
    "invalid": "invalid",
}


def manifest_json(manifest: "Manifest | None") -> dict[str, Any] | None:
    """What a manifest says, as `--json` prints it."""
    return None if manifest is None else asdict(manifest)


def manifest_rows(manifest: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What a manifest says, for people. It is given as `manifest_json` returns it."""
    if manifest is None:
        return [("manifest", "none")]
    rows = [("manifest", _STATES[manifest["state"]])]
    if manifest["state"] == "invalid":
        rows += [("fault", fault) for fault in manifest["failures"]]
    issuer = f" ({manifest['issuer']})" if manifest["issuer"] else ""
    rows += [
        ("signed by", f"{manifest['signer']}{issuer}"),
        ("time stamp", manifest["signed"]),
        ("made by", manifest["generator"]),
        ("actions", ", ".join(manifest["actions"])),
        ("source type", ", ".join(manifest["source_types"])),
        ("bound watermark", manifest["watermark"]),
    ]
    for one in manifest["ingredients"]:
        own = f"its manifest is {one['state']}, signed by {one['signer']}" if one["state"] else "no manifest"
        rows.append(("made from", f"{one['title']} ({one['role']}): {own}"))
    return [(name, value) for name, value in rows if value]
