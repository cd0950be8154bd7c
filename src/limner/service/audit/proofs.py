"""Proofs as JSON documents that hold all that checking them needs, and nothing of other entries."""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limner.errors import InvalidRequest

from .canonical import canonical
from .merkle import is_consistent, leaf_hash, root_by_inclusion
from .notes import Checkpoint, PublicKey, open_checkpoint, opened_checkpoint

INCLUSION = "limner-audit-inclusion-1"
CONSISTENCY = "limner-audit-consistency-1"


@dataclass(frozen=True)
class Proved:
    """What a document proves.

    Attributes:
        key: Public key that has signed the checkpoint.
        checkpoint: State of the log.
        entry: The entry that is in the log; None for a proof of consistency.
        leaf: Its number.
        old: The earlier state that the log continues; None for a proof of inclusion.
    """

    key: PublicKey
    checkpoint: Checkpoint
    entry: Mapping[str, Any] | None = None
    leaf: int | None = None
    old: Checkpoint | None = None


def inclusion_document(
    entry: Mapping[str, Any], leaf: int, path: Sequence[bytes], checkpoint: str, key: PublicKey
) -> dict[str, Any]:
    """The proof that an entry is in the log.

    Args:
        path: As `merkle.inclusion_proof` returns it for the size of the checkpoint.
        checkpoint: The signed note.
    """
    return {
        "format": INCLUSION,
        "entry": entry,
        "leaf": leaf,
        "path": _written(path),
        "checkpoint": checkpoint,
        "key": str(key),
    }


def consistency_document(
    old: str, new: str, path: Sequence[bytes], keys: Sequence[PublicKey]
) -> dict[str, Any]:
    """The proof that the log of one checkpoint continues that of an older one."""
    return {
        "format": CONSISTENCY,
        "old": old,
        "path": _written(path),
        "checkpoint": new,
        "keys": [str(key) for key in keys],
    }


def check_document(text: str, keys: Sequence[PublicKey] = ()) -> Proved:
    """Check a proof.

    Args:
        text: The document.
        keys: Keys that the checkpoint may be signed with; none: the one that the document names itself, which
            the caller has to compare with a known one.

    Raises:
        InvalidRequest: It proves nothing: it is no such document, or was changed.
    """
    try:
        document = json.loads(text)
        kind = document["format"]
        if kind == INCLUSION:
            return _check_inclusion(document, keys)
        if kind == CONSISTENCY:
            return _check_consistency(document, keys)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidRequest(
            f"this is no proof of an audit log: {type(error).__name__}: {error}",
            hint="expected a file that `limner audit prove` has written",
        ) from None
    raise InvalidRequest(f"the proof has the format {kind!r}; expected {INCLUSION} or {CONSISTENCY}")


def _check_inclusion(document: Mapping[str, Any], keys: Sequence[PublicKey]) -> Proved:
    used = list(keys) or [PublicKey.parse(document["key"])]
    checkpoint, key = opened_checkpoint(document["checkpoint"], used)
    hashed, leaf = leaf_hash(canonical(document["entry"])), int(document["leaf"])
    try:
        root = root_by_inclusion(hashed, leaf, checkpoint.size, _read(document["path"]))
    except ValueError as error:
        raise InvalidRequest(f"the proof does not hold: {error}") from None
    if root != checkpoint.root:
        raise InvalidRequest(
            "the proof does not hold: its entry is not in the log of its checkpoint",
            hint="the entry, its number or the proof was changed",
        )
    return Proved(key, checkpoint, document["entry"], leaf)


def _check_consistency(document: Mapping[str, Any], keys: Sequence[PublicKey]) -> Proved:
    used = list(keys) or [PublicKey.parse(one) for one in document["keys"]]
    old = open_checkpoint(document["old"], used)
    new, key = opened_checkpoint(document["checkpoint"], used)
    if not is_consistent(old.size, old.root, new.size, new.root, _read(document["path"])):
        raise InvalidRequest(
            f"the proof does not hold: the log of size {new.size} does not continue that of size {old.size}"
        )
    return Proved(key, new, old=old)


def _written(path: Sequence[bytes]) -> list[str]:
    return [b64encode(one).decode() for one in path]


def _read(path: Sequence[str]) -> list[bytes]:
    return [b64decode(one, validate=True) for one in path]
