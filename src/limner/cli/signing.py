"""Signing, and how manifests are shown: what `generate`, `batch`, `detect` and `verify` share."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.errors import InvalidRequest
from limner.settings import SigningSettings

from . import terminal

if TYPE_CHECKING:
    from limner.images.assets import Assets
    from limner.images.picture import Encode
    from limner.request import GenerationRequest
    from limner.safety.provenance import Manifest, Signer


@dataclass(frozen=True)
class Signing:
    """How images are signed.

    Attributes:
        signer: What they are signed with.
        anchors: Certificates of those who vouch for the signers of input images.
        with_prompt: Whether manifests say the prompt.
    """

    signer: "Signer"
    anchors: bytes
    with_prompt: bool

    @classmethod
    def read(cls, wanted: bool, *, with_prompt: bool) -> "Signing | None":
        """As the environment says; None if no signature is wanted. A prompt in manifests asks for one.

        Raises:
            InvalidRequest: Keys that cannot be used, or limner[provenance] is not installed.
            OutputError: The development CA cannot be made.
        """
        if not (wanted or with_prompt):
            return None
        from limner.safety.provenance.keys import c2pa_library

        c2pa_library("signing")  # an error before anything is drawn
        return cls(_signer(SigningSettings.read()), read_anchors(), with_prompt)

    def encoding(self, request: "GenerationRequest", assets: "Assets | None") -> "Encode":
        """What encodes and signs the images of a request. Its input images are read now.

        Raises:
            InvalidRequest: An input image is not found.
        """
        from limner.safety.provenance import ingredients_of, signed_encoding

        return signed_encoding(
            self.signer,
            ingredients=ingredients_of(request, assets),
            anchors=self.anchors,
            with_prompt=self.with_prompt,
        )


def _signer(settings: SigningSettings) -> "Signer":
    from limner.safety.provenance import Signer, development_signer
    from limner.safety.provenance.keys import DEVELOPMENT_CA

    if settings.certificate is not None and settings.key is not None:
        return Signer.load(settings.certificate, settings.key, settings.timestamp_url)
    known = settings.development_keys.is_dir()
    signer = development_signer(settings.development_keys, settings.timestamp_url)
    if not known:
        terminal.note(
            f'made "{DEVELOPMENT_CA}" in {settings.development_keys}: its signatures can be checked on this '
            "machine, and prove nothing to others"
        )
    return signer


def read_anchors(files: Iterable[Path] = ()) -> bytes:
    """The certificates that vouch for signers: of these files, else of the settings, else of the development
    CA.

    Raises:
        InvalidRequest: A file cannot be read, or holds no certificate.
    """
    from limner.safety.provenance.keys import development_anchor

    settings = SigningSettings.read()
    given = tuple(files) or settings.trust_anchors
    if not given:
        return development_anchor(settings.development_keys)
    anchors = b""
    for file in given:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise InvalidRequest(f"the trust anchor {file} cannot be read: {error.strerror}") from None
        if b"BEGIN CERTIFICATE" not in data:
            raise InvalidRequest(f"{file} holds no certificate in PEM", hint="give the certificate of a CA")
        anchors += data + b"\n"
    return anchors


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
