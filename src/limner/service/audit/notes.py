"""Checkpoints of the audit log as signed notes.

Formats of https://c2sp.org: a checkpoint (`tlog-checkpoint`) is the origin of the log, the size of its tree
and its root in base64, a line each. A note (`signed-note`) is such a text, an empty line, and lines of
signatures by Ed25519 with the names of their keys.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from limner.errors import InvalidRequest

from .merkle import HASH_BYTES

_ED25519 = b"\x01"
_DASH = "— "
_SIGNATURE_BYTES = 64
_PUBLIC_BYTES = 32


@dataclass(frozen=True)
class Checkpoint:
    """The state of a log.

    Attributes:
        origin: Name of the log.
        size: Number of its entries.
        root: Root of its tree.
    """

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """The checkpoint of a text; further lines are ignored. Raises InvalidRequest."""
        lines = text.split("\n")
        try:
            origin, size, root = lines[0], lines[1], base64.b64decode(lines[2], validate=True)
        except (IndexError, binascii.Error):
            raise _no_checkpoint() from None
        whole = size.isascii() and size.isdigit() and size == str(int(size))
        if not origin or not whole or len(root) != HASH_BYTES:
            raise _no_checkpoint()
        return cls(origin, int(size), root)


@dataclass(frozen=True)
class PublicKey:
    """A public key that signs notes.

    Attributes:
        name: Its name: the origin of its log.
        key: Its 32 bytes.
    """

    name: str
    key: bytes

    @property
    def id(self) -> bytes:
        """Four bytes that a signature names it by."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.key).digest()[:4]

    def __str__(self) -> str:
        """As programs for signed notes write it: name, id and key, joined by "+"."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(_ED25519 + self.key).decode()}"

    @classmethod
    def parse(cls, text: str) -> "PublicKey":
        """The key that `str` has written. Raises InvalidRequest."""
        name, _, rest = text.strip().partition("+")
        number, _, body = rest.partition("+")
        try:
            data = base64.b64decode(body, validate=True)
        except binascii.Error:
            data = b""
        found = cls(name, data[1:])
        if data[:1] != _ED25519 or len(data) != 1 + _PUBLIC_BYTES or found.id.hex() != number:
            raise InvalidRequest(
                f"{text.strip()[:80]!r} is no public key of an audit log",
                hint="expected name+id+key, as `limner audit key` prints it",
            )
        return found

    def verifies(self, signature: bytes, text: str) -> bool:
        """Whether it has signed a text."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(signature, text.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


class SigningKey:
    """A key that signs notes.

    Attributes:
        public: Its public key.

    Args:
        name: Name of the key.
        seed: The private key: 32 random bytes.
    """

    def __init__(self, name: str, seed: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = PublicKey(name, self._private.public_key().public_bytes_raw())

    def sign(self, text: str) -> str:
        """A note: the text with its signature."""
        signature = base64.b64encode(self.public.id + self._private.sign(text.encode())).decode()
        return f"{text}\n{_DASH}{self.public.name} {signature}\n"


def open_note(note: str, keys: Iterable[PublicKey]) -> tuple[str, PublicKey]:
    """The text of a note and the key that has signed it. Signatures by other keys are ignored.

    Raises:
        InvalidRequest: It is no note, or none of the keys has signed it.
    """
    text, empty, signatures = note.rpartition("\n\n")
    lines = signatures.split("\n")
    if not empty or not all(line.startswith(_DASH) for line in lines[:-1]) or lines[-1] or len(lines) < 2:
        raise InvalidRequest("this is no signed note", hint="expected a checkpoint of `limner audit`")
    text += "\n"
    known = list(keys)
    for line in lines[:-1]:
        name, _, body = line.removeprefix(_DASH).partition(" ")
        try:
            data = base64.b64decode(body, validate=True)
        except binascii.Error:
            continue
        for key in known:
            if key.name == name and data[:4] == key.id and len(data) == 4 + _SIGNATURE_BYTES:
                if key.verifies(data[4:], text):
                    return text, key
                raise InvalidRequest(
                    f"the signature of {name} is wrong",
                    hint="the checkpoint was changed, or signed by another key of this name",
                )
    raise InvalidRequest(
        "the checkpoint is not signed by a known key",
        hint="give the key of the log that signed it, which `limner audit key` prints",
    )


def open_checkpoint(note: str, keys: Iterable[PublicKey]) -> Checkpoint:
    """The checkpoint of a note. Raises InvalidRequest as `opened_checkpoint`."""
    return opened_checkpoint(note, keys)[0]


def opened_checkpoint(note: str, keys: Iterable[PublicKey]) -> tuple[Checkpoint, PublicKey]:
    """The checkpoint of a note and the key that has signed it.

    Raises:
        InvalidRequest: As `open_note`, and for a checkpoint of another log.
    """
    text, key = open_note(note, keys)
    found = Checkpoint.parse(text)
    if found.origin != key.name:
        raise InvalidRequest(f"the checkpoint is of {found.origin}, but signed by the key of {key.name}")
    return found, key


def _no_checkpoint() -> InvalidRequest:
    return InvalidRequest(
        "this is no checkpoint", hint="expected lines with the origin, the size and the root in base64"
    )
