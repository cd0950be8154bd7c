"""OpenID Connect: tokens of an issuer in the place of keys. An optional extra: `limner[oidc]`.

A token is a signed JWT (RFC 7519) that the issuer has made for this service: its audience. Its keys are read
from the issuer's discovery document (OpenID Connect Discovery 1.0), kept for an hour, and read again when a
token cannot be checked with them, at most once in 30 seconds.
"""

import hashlib
import logging
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from limner.errors import Conflict, InvalidRequest, NotFound
from limner.service.identity import Principal
from limner.service.ledger.ledger import Ledger
from limner.settings.serve import ServeSettings

_LOG = logging.getLogger("limner.server")

ALGORITHMS = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "Ed25519",
    "EdDSA",
)
"""Signatures that are accepted: all need the issuer's private key."""

_LEEWAY = 60  # seconds that clocks may differ
_KEPT, _AGAIN = 3600.0, 30.0  # seconds that keys are kept, and between two readings
_TIMEOUT = 5.0
_MAX_BYTES = 1 << 20  # of the documents of an issuer
_PLAIN = re.compile(r"[A-Za-z0-9_.@-]{1,59}")  # names that can be a part of an account's
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class OpenIDConnect:
    """Recognises the tokens of an issuer. Safe to use from any thread.

    Args:
        settings: With `oidc_issuer` and `oidc_audience`.
        ledger: Where accounts are, and are made at the first token of somebody.

    Raises:
        InvalidRequest: The extra is not installed, or the issuer is no https URL.
    """

    def __init__(self, settings: ServeSettings, ledger: Ledger) -> None:
        if settings.oidc_issuer is None:
            raise ValueError("there is no issuer")
        parts = urlsplit(settings.oidc_issuer)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise InvalidRequest(
                f"oidc_issuer is {settings.oidc_issuer!r}; expected an https URL", fields=("oidc_issuer",)
            )
        try:
            import httpx  # noqa: F401
            import joserfc  # noqa: F401
        except ImportError as error:
            raise InvalidRequest(
                "oidc_issuer is set, but what reads tokens is not installed",
                hint="install limner[oidc]",
                fields=("oidc_issuer",),
            ) from error
        self._settings, self._ledger = settings, ledger
        self._lock = threading.Lock()
        self._keys: Any = None
        self._read_at = float("-inf")

    def recognise(self, token: str) -> Principal | None:
        """The caller that a token stands for; None if it is none that this service accepts."""
        from joserfc.errors import JoseError
        from joserfc.jwt import JWTClaimsRegistry, decode

        for again in (False, True):
            keys = self._known_keys(again=again)
            if keys is None:
                return None
            try:
                claims: Mapping[str, Any] = decode(token, keys, algorithms=ALGORITHMS).claims
                break
            except (JoseError, ValueError, TypeError, KeyError) as error:
                if again:
                    _LOG.info("a token is not accepted", extra={"fields": {"reason": type(error).__name__}})
                    return None
        registry = JWTClaimsRegistry(
            leeway=_LEEWAY,
            iss={"essential": True, "value": str(self._settings.oidc_issuer)},
            aud={"essential": True, "value": str(self._settings.oidc_audience)},
            exp={"essential": True},
        )
        try:
            registry.validate(dict(claims))
        except (JoseError, ValueError, TypeError) as error:
            _LOG.info("a token is not accepted", extra={"fields": {"reason": type(error).__name__}})
            return None
        name = claims.get(self._settings.oidc_account_claim)
        return self._principal(name) if isinstance(name, str) and name else None

    def _principal(self, name: str) -> Principal | None:
        """The caller of an account that is made if need be: `oidc.` and the name, or `oidc-` and its hash.

        An account that was not made for a token, such as "admin", is reached by the setting alone that links
        it: who chooses his name at the issuer must not choose an account here.
        """
        account_id = self._settings.oidc_accounts.get(name)
        if account_id is None and _PLAIN.fullmatch(name):
            account_id = f"oidc.{name}"
        elif account_id is None:
            account_id = f"oidc-{hashlib.sha256(name.encode()).hexdigest()[:24]}"
        try:
            account = self._ledger.get_account(account_id)
        except NotFound:
            with suppress(Conflict):  # made by another request at the same time
                self._ledger.create_account(account_id, actor="oidc")
            account = self._ledger.get_account(account_id)
        if name in self._settings.oidc_operators:
            account = replace(account, role="operator")
        return None if account.disabled else Principal(account)

    def _known_keys(self, *, again: bool) -> Any:
        """The issuer's keys; None if they were never read."""
        with self._lock:
            age = time.monotonic() - self._read_at
            if age > _KEPT or (again and age > _AGAIN):
                self._read_at = time.monotonic()
                try:
                    self._keys = self._read_keys()
                except Exception as error:  # those at hand may still be good
                    _LOG.warning(
                        "the keys of the issuer cannot be read", extra={"fields": {"error": repr(error)}}
                    )
            return self._keys

    def _read_keys(self) -> Any:
        from joserfc.jwk import KeySet

        issuer = str(self._settings.oidc_issuer)
        described = _fetch(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if described.get("issuer") != issuer:
            raise ValueError(f"the discovery document is that of {described.get('issuer')!r}")
        address = str(described["jwks_uri"])
        if urlsplit(address).scheme != urlsplit(issuer).scheme:
            raise ValueError(f"the keys are at {address!r}")
        usable = [
            one for one in _fetch(address)["keys"] if one.get("kty") != "oct" and one.get("use") != "enc"
        ]
        return KeySet.import_key_set({"keys": usable})


def looks_like_token(secret: str) -> bool:
    """Whether a bearer's secret may be a JWT: three parts of base64url."""
    return bool(re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", secret, re.ASCII))


def _fetch(url: str) -> dict[str, Any]:
    import httpx

    with httpx.stream("GET", url, timeout=_TIMEOUT, follow_redirects=False) as answer:
        answer.raise_for_status()
        body = b""
        for piece in answer.iter_bytes():
            body += piece
            if len(body) > _MAX_BYTES:
                raise ValueError(f"{url} is too long")
    value = httpx.Response(200, content=body).json()
    if not isinstance(value, dict):
        raise ValueError(f"{url} is no JSON object")
    return value
