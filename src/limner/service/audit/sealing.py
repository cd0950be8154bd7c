"""What an entry of the audit log says once it is a leaf: no names of accounts, no readable prompts.

A leaf is never changed. So what must be erasable is not in it: accounts are called by aliases, and prompts
are hashed or encrypted with a key of the account for each month. Erasing aliases and keys erases names and
prompts, and the tree still verifies.
"""

import hmac
import os
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

from limner.service.secret import derived
from limner.settings.values import PromptLog

from .canonical import canonical

VERSION = 1
ALIAS = re.compile(r"acc_[0-9a-f]{24}")
PROMPTS = "prompts"
"""Name of the sealed prompts among the details of an entry."""

_NONCE_BYTES = 12
_KEY_BYTES = 32


def entry_object(
    entry_id: int, at: float, actor: str, action: str, subject: str, details: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON object whose canonical bytes are a leaf."""
    return {
        "v": VERSION,
        "id": entry_id,
        "at": at,
        "actor": actor,
        "action": action,
        "subject": subject,
        "details": details,
    }


def month_of(at: float) -> str:
    """The month of a time in UTC, such as "2026-11": each has keys of its own."""
    return time.strftime("%Y-%m", time.gmtime(at))


class Sealer:
    """Encrypts the keys that prompts are sealed with, and opens what they have sealed.

    Args:
        key: The key of the audit log.
    """

    def __init__(self, key: bytes) -> None:
        self._wrapping = derived(key, "limner audit prompts")

    def new_key(self, alias: str, month: str) -> tuple[bytes, bytes]:
        """A new key of an account for a month, and the same key encrypted."""
        key = os.urandom(_KEY_BYTES)
        return key, _encrypt(self._wrapping, key, f"{alias} {month}")

    def unwrapped(self, wrapped: bytes, alias: str, month: str) -> bytes:
        """The key of an account for a month.

        Args:
            wrapped: The key, encrypted as by `new_key`.

        Raises:
            ValueError: It was encrypted with another key of the audit log.
        """
        return _decrypt(self._wrapping, wrapped, f"{alias} {month}")

    def open(self, sealed: Mapping[str, Any], wrapped: bytes, alias: str, entry_id: int) -> Mapping[str, Any]:
        """The prompts that `seal` has encrypted; what it has returned where they were hashed.

        Raises:
            ValueError: They were encrypted with another key.
        """
        import json

        if "encrypted" not in sealed:
            return sealed
        key = self.unwrapped(wrapped, alias, sealed["month"])
        found: Mapping[str, str] = json.loads(
            _decrypt(key, b64decode(sealed["encrypted"]), f"{alias} {entry_id}")
        )
        return found

    def fields_with(
        self, sealed: Mapping[str, Any], wrapped: bytes, alias: str, text: str
    ) -> tuple[str, ...]:
        """The fields whose hashed prompt is a text. Raises ValueError as `open`."""
        its = _hashed(self.unwrapped(wrapped, alias, sealed["month"]), text)
        return tuple(name for name, hashed in sealed["hashed"].items() if hashed == its)


def seal(
    prompts: Mapping[str, str], keep: PromptLog, key: bytes, alias: str, month: str, entry_id: int
) -> dict[str, Any]:
    """Prompts as they stand in a leaf.

    Args:
        prompts: Texts by the field of the request.
        keep: What is kept of them. Where they are kept as they are, that is beside the leaf.
        key: Key of the account for the month.
    """
    if keep == "encrypted":
        data = _encrypt(key, canonical(prompts), f"{alias} {entry_id}")
        return {"month": month, "encrypted": b64encode(data).decode()}
    return {"month": month, "hashed": {name: _hashed(key, text) for name, text in prompts.items()}}


def _hashed(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(), "sha256").hex()


def _encrypt(key: bytes, data: bytes, about: str) -> bytes:
    """Nonce and ciphertext by AES-256-GCM."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, data, about.encode())


def _decrypt(key: bytes, data: bytes, about: str) -> bytes:
    """What `_encrypt` has encrypted. Raises ValueError."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], about.encode())
    except InvalidTag:
        raise ValueError("it was encrypted with another key, or changed") from None
