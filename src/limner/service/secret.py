"""The signing key of a service: 32 random bytes in its data folder, from which other secrets are derived."""

import hmac
import os
import secrets
from pathlib import Path

from limner.errors import InvalidRequest, OutputError
from limner.files import whole_file

KEY_FILE = Path("keys") / "signing.key"
_BYTES = 32


def signing_key(data: Path, *, create: bool) -> bytes:
    """The signing key of a data folder.

    Args:
        create: Whether to make it if there is none. Not where the ledger has jobs already: what was signed
            for them could no longer be checked, and nobody would notice.

    Raises:
        InvalidRequest: It is missing, or the file holds something else.
        OutputError: It cannot be written.
    """
    return read_secret(
        data / KEY_FILE,
        "signing key",
        create=create,
        missing="restore the file from a backup, or make a new key with `limner webhooks secret --new`; "
        "receivers of webhooks then need the new secret",
    )


def new_signing_key(data: Path) -> bytes:
    """Make a signing key, in place of one that is there. Only the owner can read its file."""
    return new_secret(data / KEY_FILE, "signing key")


def read_secret(path: Path, name: str, *, create: bool, missing: str) -> bytes:
    """The secret of a file: 32 bytes in hex.

    Args:
        name: What it is, for errors.
        create: Whether to make it if there is none.
        missing: Hint of the error if there is none.

    Raises:
        InvalidRequest: It is missing, or the file holds something else.
        OutputError: It cannot be written.
    """
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        if create:
            return new_secret(path, name)
        raise InvalidRequest(
            f"the {name} {path} is missing, but this service has signed with it", hint=missing
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the {name} {path} cannot be read: {error}") from error
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != _BYTES:
        raise InvalidRequest(f"{path} holds no {name} of {_BYTES} bytes", hint=missing)
    return key


def new_secret(path: Path, name: str) -> bytes:
    """Make a secret, in place of one that is there. Only the owner can read its file. Raises OutputError."""
    key = secrets.token_bytes(_BYTES)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with whole_file(path) as temporary:
            temporary.touch(0o600)
            temporary.chmod(0o600)
            temporary.write_text(key.hex() + "\n", encoding="ascii")
            _flush(temporary)
    except OSError as error:
        raise OutputError(f"the {name} {path} cannot be written: {error.strerror}") from error
    return key


def derived(key: bytes, purpose: str) -> bytes:
    """A secret of 32 bytes for one purpose, from which neither the key nor another secret can be found."""
    return hmac.digest(key, purpose.encode(), "sha256")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
