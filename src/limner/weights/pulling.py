"""`limner models pull`: models from the Hugging Face hub and Civitai, with their licence, checked by hash."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.catalogue.contents import KINDS, Kind, describe_tensors
from limner.catalogue.hashes import file_hash
from limner.catalogue.headers import read_header
from limner.catalogue.layout import CONFIG, MODEL_INDEX
from limner.errors import InvalidCheckpoint, LimnerError, ModelNotFound, OutputError, UnsupportedModel

from .civitai import URL, CivitaiFile, find_file, headers_of, is_civitai, refused
from .download import HttpError, Progress, download
from .hub import (
    ANYWHERE,
    HUB_ID,
    HUB_TIMEOUT,
    Access,
    clip_tokenizer,
    locate_file,
    locate_model,
)
from .hub_errors import hub_error
from .hub_parts import locate_network

_HUB_REFERENCE = re.compile(rf"({HUB_ID.pattern})(?::([\w.+() -]+(?:/[\w.+() -]+)*))?")
_HASH = re.compile(r"[0-9a-f]{64}")

Announce = Callable[[str, tuple[str, ...]], None]
"""Called before a download with the model's title and what is to be known: its licence first."""


@dataclass(frozen=True)
class Pulled:
    """A model that is on this machine now.

    Attributes:
        name: Name by which requests mean it.
        path: Its file or folder.
        kind: What it is; None where its configs do not tell.
        files: Number of files that were checked by their hashes.
        warnings: What the caller should know.
    """

    name: str
    path: Path
    kind: Kind | None
    files: int
    warnings: tuple[str, ...] = ()


def pull(
    reference: str,
    *,
    folder: Callable[[Kind], Path],
    revision: str | None = None,
    variant: str | None = None,
    access: Access = ANYWHERE,
    token: str | None = None,
    civitai_url: str = URL,
    announce: Announce = lambda _title, _lines: None,
    progress: Progress = lambda _done, _whole: None,
) -> Pulled:
    """Fetch a model, or what of it is missing, and check it.

    Args:
        reference: "organisation/name" or "organisation/name:FILE" on the hub, whose cache keeps it; or
            "civitai:12345", or "civitai:12345@67890" for a version.
        folder: Kind of a file of Civitai -> the folder that it goes to.
        revision, variant: As `limner.load`; of the hub alone.
        token: API key of an account of Civitai.
        announce, progress: Called before and during the download.

    Raises:
        ModelNotFound, UnsupportedModel, PickleRefused: There is no such model, or none that can be used.
        InvalidCheckpoint: A file is not what its source says; it is deleted.
        OutputError: A file cannot be written.
    """
    if is_civitai(reference):
        return _from_civitai(reference, folder, token, civitai_url, announce, progress)
    match = _HUB_REFERENCE.fullmatch(reference)
    if match is None:
        raise ModelNotFound(
            f"{reference!r} is no model that can be fetched",
            hint="give organisation/name or organisation/name:FILE on the hub, or civitai:NUMBER",
        )
    return _from_hub(match[1], match[2], revision, variant, access, announce)


def _from_hub(
    repo: str, file: str | None, revision: str | None, variant: str | None, access: Access, announce: Announce
) -> Pulled:
    info = _repository(repo, revision, access)
    siblings = {one.rfilename: one for one in info.siblings or ()}
    announce(repo, _terms(repo, info))
    kind: Kind | None = None
    if file is not None:
        path = locate_file(f"{repo}:{file}", revision=revision, access=access)
        kind, name = _kind_of(path), f"{repo}:{file}"
        paths = {file: path}
    elif MODEL_INDEX in siblings:
        path = locate_model(repo, revision=revision, variant=variant, access=access).folder
        kind, name, paths = "checkpoint", repo, _files_below(path)
    elif CONFIG in siblings:
        path = locate_network(repo, variant=variant)
        name, paths = repo, _files_below(path)
    else:
        single = sorted(one for one in siblings if one.endswith(".safetensors"))
        raise UnsupportedModel(
            f"{repo} on the hub has neither {MODEL_INDEX} nor {CONFIG}: it is no model as a whole",
            hint=f"name one of its files: {', '.join(f'{repo}:{one}' for one in single[:5])}"
            if single
            else None,
        )
    checked = sum(_check(path, siblings[name]) for name, path in paths.items() if name in siblings)
    lacks = _tokenizer(access) if kind == "checkpoint" and file is not None else ()
    return Pulled(name, path, kind, checked, lacks)


def _repository(repo: str, revision: str | None, access: Access) -> Any:
    """What the hub says of a repository: files with their hashes, and its card."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]

    try:
        return HfApi(token=access.token).model_info(
            repo, revision=revision, timeout=HUB_TIMEOUT, files_metadata=True
        )
    except (OSError, ValueError, TransportError) as error:
        raise hub_error(repo, revision, error) from error


def _terms(repo: str, info: Any) -> tuple[str, ...]:
    """The licence that a repository's card names."""
    card = info.card_data if isinstance(info.card_data, Mapping) else (info.card_data or {})
    licence = card.get("license_name") or card.get("license")
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    link = card.get("license_link") or f"https://huggingface.co/{repo}"
    said = (
        f"Licence: {licence} ({link})"
        if licence
        else f"No licence is named; see https://huggingface.co/{repo}"
    )
    return (said, "Its terms had to be accepted on the hub.") if getattr(info, "gated", False) else (said,)


def _files_below(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def _check(path: Path, told: Any) -> bool:
    """Check a file of the hub by the hash that the hub has of it: SHA-256 of a large file, Git's of another.

    Returns:
        Whether there was one.

    Raises:
        InvalidCheckpoint: It has another; the file is deleted from the cache.
    """
    if told.lfs is not None and _HASH.fullmatch(told.lfs.sha256 or ""):
        expected = told.lfs.sha256
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    elif told.blob_id is not None and told.lfs is None:
        expected = told.blob_id
        data = path.read_bytes()
        actual = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    else:
        return False
    if actual == expected:
        return True
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    raise InvalidCheckpoint(
        f"{path.name} is not what the hub says: its hash is {actual}; expected {expected}",
        hint="it is deleted; run the command again to fetch it anew",
    )


def _from_civitai(
    reference: str,
    folder: Callable[[Kind], Path],
    token: str | None,
    url: str,
    announce: Announce,
    progress: Progress,
) -> Pulled:
    found = find_file(reference, token=token, url=url)
    announce(f"{found.title} ({found.reference})", (*found.licence, f"See {found.page}"))
    for kind in KINDS:
        there = folder(kind) / found.name
        if found.sha256 and there.is_file() and file_hash(there) == found.sha256:
            return _pulled(found, there, kind)
    incoming = folder("checkpoint").parent / ".incoming" / found.reference.replace(":", "-") / found.name
    try:
        download(found.url, incoming, sha256=found.sha256, headers=headers_of(token), progress=progress)
    except HttpError as error:
        raise refused(found.name, error) from None
    try:
        held = _kind_of(incoming)
    except LimnerError:
        incoming.unlink()
        raise
    if held is None:
        incoming.unlink()
        raise UnsupportedModel(f"{found.name} holds no kind of model that Limner knows ({found.base_model})")
    target = folder(held) / found.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        incoming.replace(target)
        incoming.parent.rmdir()
        target.with_suffix(".civitai.info").write_text(found.note() + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}") from error
    return _pulled(found, target, held)


def _pulled(found: CivitaiFile, target: Path, kind: Kind) -> Pulled:
    lacks = _tokenizer(ANYWHERE) if kind == "checkpoint" else ()
    unchecked = () if found.sha256 else ("Civitai has no hash of this file, so it could not be checked",)
    return Pulled(target.stem, target, kind, 1 if found.sha256 else 0, (*unchecked, *lacks))


def _tokenizer(access: Access) -> tuple[str, ...]:
    """Fetch CLIP's tokenizer, which a single file does not hold. Returns a warning where that fails."""
    try:
        clip_tokenizer(access)
    except ModelNotFound as error:
        return (error.message,)
    return ()


def _kind_of(path: Path) -> Kind | None:
    """What a safetensors file is. Raises InvalidCheckpoint where its header is broken."""
    header = read_header(path)
    return describe_tensors({name: one.shape for name, one in header.tensors.items()}, header.metadata).kind
