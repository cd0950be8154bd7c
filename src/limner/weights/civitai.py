"""Models on Civitai (https://civitai.com): what its API says of them, and which file of theirs to take."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from limner.catalogue.headers import PICKLE_HINT
from limner.errors import InvalidRequest, ModelNotFound, PickleRefused

from .download import HttpError, get

URL = "https://civitai.com"
_REFERENCE = re.compile(r"civitai:(?:models/)?(\d{1,12})(?:@(\d{1,12}))?")
_UNSAFE = re.compile(r"[^\w.()+\[\] -]")
_MOST = 8 << 20  # bytes of an answer


@dataclass(frozen=True)
class CivitaiFile:
    """A file on Civitai.

    Attributes:
        reference: "civitai:MODEL@VERSION".
        name: Name of the file, safe to be used here.
        title: Names of the model and its version.
        url: Where it is downloaded.
        sha256: Its hash, in hex; None where Civitai does not know it.
        base_model: What it is made for, in Civitai's words.
        trained_words: Words that it answers to.
        licence: What may be done with it, in sentences.
        page: Its page.
    """

    reference: str
    name: str
    title: str
    url: str
    sha256: str | None
    base_model: str
    trained_words: tuple[str, ...]
    licence: tuple[str, ...]
    page: str

    def note(self) -> str:
        """The text of `NAME.civitai.info`, from which other programs and the catalogue know the file."""
        match = _REFERENCE.fullmatch(self.reference)
        assert match is not None
        return json.dumps(
            {
                "modelId": int(match[1]),
                "id": int(match[2]),
                "name": self.title,
                "baseModel": self.base_model,
                "trainedWords": list(self.trained_words),
                "sha256": self.sha256,
                "licence": list(self.licence),
                "page": self.page,
            },
            indent=2,
        )


def is_civitai(reference: str) -> bool:
    """Whether a reference is one of Civitai: "civitai:12345" or "civitai:12345@67890"."""
    return reference.startswith("civitai:")


def headers_of(token: str | None) -> dict[str, str]:
    """Headers of requests with an API key of an account."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def find_file(reference: str, *, token: str | None = None, url: str = URL) -> CivitaiFile:
    """The file of a model, by its number and, after an @, that of a version; by default the newest.

    Args:
        token: API key of an account, which some models need.
        url: Address of Civitai.

    Raises:
        InvalidRequest: The reference is malformed.
        ModelNotFound: There is no such model or version, or no access to it.
        PickleRefused: It has no .safetensors file.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise InvalidRequest(
            f"{reference!r} is no model on Civitai",
            hint="give its number, as in its page's address: civitai:12345, or civitai:12345@67890 "
            "for a version",
        )
    model = _ask(f"{url}/api/v1/models/{match[1]}", f"the model {match[1]}", token)
    versions = [one for one in model.get("modelVersions") or () if isinstance(one, Mapping)]
    wanted = [one for one in versions if match[2] is None or str(one.get("id")) == match[2]]
    if not wanted:
        known = ", ".join(f"{one.get('id')} ({one.get('name')})" for one in versions[:10])
        raise ModelNotFound(
            f"the model {match[1]} on Civitai has no version {match[2] or ''}".rstrip(),
            hint=f"its versions: {known}" if known else None,
        )
    version = wanted[0]
    file = _choose(version, reference)
    name = str(file["name"]).replace("\\", "/").rpartition("/")[2]
    digest = str((file.get("hashes") or {}).get("SHA256") or "").lower()
    return CivitaiFile(
        reference=f"civitai:{match[1]}@{version['id']}",
        name=_UNSAFE.sub("_", name).lstrip(". ")[-160:],
        title=f"{model.get('name', '')} {version.get('name', '')}".strip(),
        url=_download_url(str(file.get("downloadUrl") or version.get("downloadUrl") or ""), url),
        sha256=digest if re.fullmatch(r"[0-9a-f]{64}", digest) else None,
        base_model=str(version.get("baseModel") or ""),
        trained_words=tuple(str(word) for word in version.get("trainedWords") or ()),
        licence=_licence(model, str(version.get("baseModel") or "")),
        page=f"{url}/models/{match[1]}?modelVersionId={version['id']}",
    )


def _ask(url: str, what: str, token: str | None) -> Mapping[str, Any]:
    try:
        with get(url, {"Accept": "application/json", **headers_of(token)}) as answer:
            found = json.loads(answer.read(_MOST))
    except HttpError as error:
        if error.status == 404:
            raise ModelNotFound(f"Civitai has not {what}") from None
        raise refused(what, error) from None
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"Civitai cannot be asked for {what}: {error}", hint="try again") from error
    if not isinstance(found, Mapping):
        raise ModelNotFound(f"Civitai's answer about {what} is not understood")
    return found


def refused(what: str, error: HttpError) -> ModelNotFound:
    """The error for an answer of Civitai that is no success."""
    if error.status in (401, 403):
        return ModelNotFound(
            f"Civitai gives {what} only to accounts",
            hint="make an API key in your account's settings there, and set LIMNER_CIVITAI_TOKEN",
        )
    return ModelNotFound(f"Civitai cannot be asked for {what}: {error}", hint="try again later")


def _choose(version: Mapping[str, Any], reference: str) -> Mapping[str, Any]:
    """The .safetensors file of a version: its primary one, else the smallest whole model."""
    files = [one for one in version.get("files") or () if isinstance(one, Mapping) and one.get("name")]
    usable = [one for one in files if str(one["name"]).lower().endswith(".safetensors")]
    whole = [one for one in usable if one.get("type") in ("Model", "Pruned Model", None)] or usable
    if not whole:
        names = ", ".join(str(one["name"]) for one in files) or "none"
        raise PickleRefused(f"{reference} has no .safetensors file; its files: {names}", hint=PICKLE_HINT)
    return min(whole, key=lambda one: (not one.get("primary"), float(one.get("sizeKB") or 0)))


def _download_url(given: str, url: str) -> str:
    """The address of a download, which must be Civitai's own: the key goes with it."""
    if urlsplit(given)[:2] != urlsplit(url)[:2]:
        raise ModelNotFound(
            f"Civitai names {given[:100]!r} as the address of a download, which is not its own"
        )
    return given


def _licence(model: Mapping[str, Any], base: str) -> tuple[str, ...]:
    """What the model's author allows, as sentences."""
    uses = model.get("allowCommercialUse")
    commercial = uses if isinstance(uses, Sequence) and not isinstance(uses, str) else [uses]
    kinds = ", ".join(str(one) for one in commercial if one and one != "None")
    said = [
        f"Made from {base}, whose licence holds as well." if base else "",
        f"Commercial use: {kinds}." if kinds else "No commercial use.",
        "" if model.get("allowNoCredit") else "The author must be named.",
        "" if model.get("allowDerivatives") else "No derivatives: no merging, no training from it.",
        "" if model.get("allowDifferentLicense") else "Derivatives keep these terms.",
    ]
    return tuple(filter(None, said))
