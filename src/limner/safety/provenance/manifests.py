"""Writes and reads C2PA manifests in image files, by `c2pa-python`."""

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from limner import __version__
from limner.errors import OutputError
from limner.images.record import Watermark

from .ingredients import Ingredient, Role
from .keys import Signer, c2pa_library
from .xmp import COMPOSED, COMPOSITE, GENERATED

SOFT_BINDING = "limner.spread-spectrum.1"
"""Name of the watermark of `limner.safety.watermark` as a soft binding. C2PA's list does not have it."""

State = Literal["trusted", "untrusted", "invalid"]

_BEGINNINGS = (  # of files, by their first bytes
    (re.compile(rb"\x89PNG\r\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "image/avif"),
    (re.compile(rb"II\*\0|MM\0\*"), "image/tiff"),
    (re.compile(rb"GIF8"), "image/gif"),
)
_PADDING = re.compile(rb"\x63pad(?:\x58(.)|\x59(..))", re.DOTALL)  # CBOR: "pad", then a length
_OTHER_MIME = "image/bmp"  # of ingredients; the library takes each format without manifests alike
_ACTIONS, _SOFT_BINDING = "c2pa.actions", "c2pa.soft-binding"  # beginnings of the labels of assertions
_AGENT = {"name": "Limner", "version": __version__}
_UNTRUSTED = "signingCredential.untrusted"
_MARK = b"c2pa"  # in each file with a manifest, as the type of its box


@dataclass(frozen=True)
class InputImage:
    """An input image, as a manifest names it.

    Attributes:
        title, role: As of `Ingredient`.
        state: What whoever signed the image found about the manifest of its input; None if that had none.
        signer: Who signed the manifest of the input; "" without one.
    """

    title: str
    role: str
    state: State | None = None
    signer: str = ""


@dataclass(frozen=True)
class Manifest:
    """What the manifest of an image file says, and whether it holds.

    Attributes:
        state: "trusted" if the file is as it was signed, by somebody whom an anchor vouches for; "untrusted"
            if nobody vouches for the signer; "invalid" if the file or the manifest was changed, or the
            signature is wrong.
        failures: What does not hold, as C2PA's status codes with explanations.
        signer, issuer: Common name of the signer's certificate, and the organisation in it. "" if unknown.
        signed: Time of the signature as a time-stamp authority states it; "" without one.
        generator: Program that made the manifest, with its version.
        actions: How the image was made: C2PA's names of the actions, such as "c2pa.created".
        source_types: IPTC's digital source types of these, without their address: "trainedAlgorithmicMedia".
        watermark: Digits of the watermark that the image is bound to; "" if there is none of Limner.
        ingredients: The input images.
    """

    state: State
    failures: tuple[str, ...] = ()
    signer: str = ""
    issuer: str = ""
    signed: str = ""
    generator: str = ""
    actions: tuple[str, ...] = ()
    source_types: tuple[str, ...] = ()
    watermark: str = ""
    ingredients: tuple[InputImage, ...] = ()


def sign(
    data: bytes,
    signer: Signer,
    *,
    ingredients: Sequence[Ingredient] = (),
    watermark: Watermark | None = None,
    prompt: str = "",
    anchors: bytes = b"",
    converted_as: str | None = None,
) -> bytes:
    """The same image file with a manifest. It is bound to all bytes, so this comes last.

    Safe to call from any thread.

    Args:
        data: An image file: PNG, JPEG, WebP, AVIF, TIFF or GIF.
        ingredients: The images that it was made from. With one that is edited ("parentOf") the image counts
            as an edit of it, with those on a sheet ("componentOf") as composed of them.
        watermark: The watermark in its pixels.
        prompt: Prompt to put into the manifest; "" leaves it out.
        anchors: Certificates in PEM of those who vouch for the signers of input images.
        converted_as: Digital source type of an image that is the same as its "parentOf" in another format;
            None for any other image.

    Raises:
        InvalidRequest: limner[provenance] is not installed.
        OutputError: The data is no image of a format with manifests, the certificate is not one for C2PA, or
            the time-stamp authority does not answer.
    """
    library = c2pa_library("signing")
    mime = _mime(data)
    if mime is None:
        raise OutputError("a file of this format holds no manifest", hint="use png, jpeg, webp or avif")
    signed = io.BytesIO()
    try:
        with _context(library, anchors) as context:
            definition = _definition(ingredients, watermark, prompt, converted_as)
            builder = library.Builder(definition, context=context)
            for number, one in enumerate(ingredients):
                _add_ingredient(library, builder, number, one)
            key = library.C2paSignerInfo(signer.algorithm, signer.chain, signer.key, signer.timestamp_url)
            with library.Signer.from_info(key) as signing:
                builder.sign(signing, mime, io.BytesIO(data), signed)
    except library.C2paError as error:
        raise OutputError(
            f"the image cannot be signed: {error}",
            hint="the certificate must be one for C2PA, and a time-stamp authority that is set must answer",
        ) from error
    return signed.getvalue()


def source_type_of(ingredients: Sequence[Ingredient]) -> str:
    """Digital source type of an image that a model made from these."""
    if _labels(ingredients, "parentOf"):
        return COMPOSITE
    return COMPOSED if _labels(ingredients, "componentOf") else GENERATED


def has_manifest(data: bytes) -> bool:
    """Whether a file seems to have a manifest. Needs no library, and proves nothing."""
    return _MARK in data and b"jumb" in data


def read_manifest(data: bytes, anchors: bytes = b"") -> Manifest | None:
    """The manifest of an image file, checked; None without one. Manifests on other machines are not fetched.

    Args:
        anchors: Certificates in PEM of those who vouch for signers.

    Raises:
        InvalidRequest: limner[provenance] is not installed.
    """
    library = c2pa_library("reading a manifest")
    try:
        with _context(library, anchors) as context:
            reader = library.Reader.try_create(_mime(data), io.BytesIO(data), context=context)
            if reader is None:
                return None
            with reader:
                manifest = _manifest(json.loads(reader.json()))
    except library.C2paError.RemoteManifest:
        return None
    except library.C2paError as error:
        return Manifest("invalid", (str(error),))
    if not _padded_with_zeros(data):
        said = (*manifest.failures, "padding: the bytes that fill up the signature are not zero")
        manifest = replace(manifest, state="invalid", failures=said)
    return manifest


def _padded_with_zeros(data: bytes) -> bool:
    """Whether the padding in a file's manifests is as the specification demands.

    The library does not check it, and no hash covers it.
    """
    for found in _PADDING.finditer(data):
        begin, length = found.end(), int.from_bytes(found[1] or found[2])
        if data[begin : begin + length].strip(b"\0"):
            return False
    return True


def _context(library: Any, anchors: bytes) -> Any:
    settings: dict[str, Any] = {
        "version": 1,
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True},
        "builder": {"thumbnail": {"enabled": False}},
    }
    if anchors:
        settings["trust"] = {"trust_anchors": anchors.decode("ascii", "ignore")}
    return library.Context.from_dict(settings)


def _mime(data: bytes) -> str | None:
    """The media type of an image file that can hold a manifest; None for another file."""
    return next((mime for beginning, mime in _BEGINNINGS if beginning.match(data)), None)


def _definition(
    ingredients: Sequence[Ingredient], watermark: Watermark | None, prompt: str, converted_as: str | None
) -> dict[str, Any]:
    """A manifest as the library takes it."""
    made: dict[str, Any] = {
        "digitalSourceType": converted_as or source_type_of(ingredients),
        "softwareAgent": _AGENT,
    }
    if prompt:
        made["description"] = prompt
    if inputs := _labels(ingredients, "inputTo"):
        made["parameters"] = {"ingredientIds": inputs}
    parents, components = (_labels(ingredients, role) for role in ("parentOf", "componentOf"))
    if parents:
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": parents}}
        actions = [opened, {"action": "c2pa.edited" if converted_as is None else "c2pa.transcoded", **made}]
    else:
        actions = [{"action": "c2pa.created", **made}]
    if components:
        actions.append({"action": "c2pa.placed", "parameters": {"ingredientIds": components}})
    assertions: list[dict[str, Any]] = []
    if watermark is not None:
        if converted_as is None:  # else the mark is that of the parent
            actions.append({"action": "c2pa.watermarked.bound", "softwareAgent": _AGENT})
        digits = watermark.id[: watermark.bits // 4]
        block = {"scope": {}, "value": digits}
        assertions.append(
            {"label": _SOFT_BINDING, "data": {"alg": SOFT_BINDING, "blocks": [block], "pad": ""}}
        )
    assertions.insert(0, {"label": f"{_ACTIONS}.v2", "data": {"actions": actions}})
    return {"claim_generator_info": [_AGENT], "assertions": assertions}


def _labels(ingredients: Sequence[Ingredient], role: Role) -> list[str]:
    return [_label(number) for number, one in enumerate(ingredients) if one.role == role]


def _label(number: int) -> str:
    return f"ingredient-{number}"


def _add_ingredient(library: Any, builder: Any, number: int, one: Ingredient) -> None:
    """Add an image. One whose manifest is broken beyond reading is named as such, and signed without it."""
    described = {"title": one.title, "relationship": one.role, "label": _label(number)}
    try:
        builder.add_ingredient(described, _mime(one.data) or _OTHER_MIME, io.BytesIO(one.data))
    except library.C2paError:
        unread = {**described, "title": f"{one.title}, whose manifest cannot be read"}
        builder.add_ingredient(unread, _OTHER_MIME, io.BytesIO(one.data))


def _manifest(store: Mapping[str, Any]) -> Manifest:
    """The active manifest of the library's report."""
    results = store.get("validation_results", {})
    failures = results.get("activeManifest", {}).get("failure", [])
    for delta in results.get("ingredientDeltas", []):
        failures = [*failures, *delta.get("validationDeltas", {}).get("failure", [])]
    said = tuple(f"{one['code']}: {one.get('explanation', '')}" for one in failures)
    states: dict[str, State] = {"Trusted": "trusted", "Valid": "untrusted"}
    state = states.get(store.get("validation_state", ""), "invalid")
    try:
        return Manifest(state, said, **_statements(store))
    except (LookupError, TypeError, AttributeError, ValueError):  # of another program, or changed
        return Manifest(state, said)


def _statements(store: Mapping[str, Any]) -> dict[str, Any]:
    """What the active manifest says, as arguments of `Manifest`."""
    active = store["manifests"][store["active_manifest"]]
    signature = active.get("signature_info", {})
    actions = [action for data in _data(active, _ACTIONS) for action in data.get("actions", [])]
    sources = [action.get("digitalSourceType", "").rpartition("/")[2] for action in actions]
    bindings = [data for data in _data(active, _SOFT_BINDING) if data.get("alg") == SOFT_BINDING]
    return {
        "signer": signature.get("common_name") or "",
        "issuer": signature.get("issuer") or "",
        "signed": signature.get("time") or "",
        "generator": _generator(active),
        "actions": tuple(action.get("action", "") for action in actions),
        "source_types": tuple(dict.fromkeys(filter(None, sources))),
        "watermark": next((str(block["value"]) for data in bindings for block in data["blocks"]), ""),
        "ingredients": tuple(_ingredient(store, one) for one in active.get("ingredients", [])),
    }


def _data(manifest: Mapping[str, Any], label: str) -> Iterator[Mapping[str, Any]]:
    """The contents of the assertions whose labels begin so."""
    for assertion in manifest.get("assertions", []):
        if assertion.get("label", "").startswith(label):
            yield assertion.get("data", {})


def _generator(manifest: Mapping[str, Any]) -> str:
    [first, *_] = manifest.get("claim_generator_info") or [{}]
    named = f"{first.get('name', '')} {first.get('version', '')}".strip()
    return named or str(manifest.get("claim_generator", ""))


def _ingredient(store: Mapping[str, Any], found: Mapping[str, Any]) -> InputImage:
    results = found.get("validation_results", {}).get("activeManifest")
    state: State | None = None
    if results is not None:
        codes = {failure["code"] for failure in results.get("failure", [])}
        state = "invalid" if codes - {_UNTRUSTED} else "untrusted" if codes else "trusted"
    own = store["manifests"].get(found.get("active_manifest", ""), {})
    signer = own.get("signature_info", {}).get("common_name", "")
    return InputImage(found.get("title", ""), found.get("relationship", ""), state, signer)
