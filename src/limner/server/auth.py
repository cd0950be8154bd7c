"""Who is calling: keys in each form that clients send, and the local account where no key is needed.

A key is accepted as a bearer token, as the password of Basic (or as `user:key`, which AUTOMATIC1111's clients
send), and in `X-Api-Key`; where an issuer is set, so is a token of OpenID Connect; and so is the cookie of a
session that was begun with a key, where nothing else is sent. On loopback nothing is needed until the first
key exists; until then a key that a client sends all the same, as OpenAI's SDK always does, has no effect.
"""

import base64
import binascii
import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from typing import Annotated

from fastapi import Depends, Request

from limner.service.identity import Principal, Quotas, Scope
from limner.service.ledger.writing import ACTING

from .oidc import looks_like_token
from .problems import Refused
from .sessions import MARK, STUDIO
from .state import ServerState, in_thread, state_of

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
_READING = ("GET", "HEAD", "OPTIONS")


async def principal(request: Request, scope: Scope) -> Principal:
    """The caller of a request, if it has the scope.

    Raises:
        Refused: 401 without a valid key where one is needed; 403 where the key lacks the scope.
    """
    caller = await _recognised(request)
    if scope not in caller.scopes:
        raise Refused(
            403,
            f"the key lacks the scope {scope}; it has {', '.join(caller.scopes) or 'none'}",
            hint=f"make a key with it: limner keys create --scope {scope}",
        )
    return caller


async def caller_or_none(request: Request) -> Principal | None:
    """The caller of a request; None for one who is not known."""
    try:
        return await _recognised(request)
    except Refused as error:
        if error.status_code == 401:
            return None
        raise


async def needs_key(request: Request) -> bool:
    """Whether the caller of a request needs a key, or has to sign in with one."""
    return not is_local(request) or await _local_account(state_of(request)) is None


def needs(scope: Scope, *, operator: bool = False) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency of a route: the caller, who has a scope and, if asked for, the role of operator."""

    async def caller(request: Request) -> Principal:
        found = await principal(request, scope)
        if operator and not found.is_operator:
            raise Refused(403, "only operators may do this")
        return found

    return caller


Reader = Annotated[Principal, Depends(needs("read"))]
Submitter = Annotated[Principal, Depends(needs("generate"))]
Manager = Annotated[Principal, Depends(needs("manage"))]
Operator = Annotated[Principal, Depends(needs("manage", operator=True))]


def secrets_of(request: Request) -> list[str]:
    """The possible keys in a request's headers, the likeliest first; empty if there are none.

    Raises:
        Refused: 401 for an Authorization header of an unknown scheme or form.
    """
    found = []
    if given := request.headers.get("authorization"):
        scheme, _, value = given.strip().partition(" ")
        value = value.strip()
        match scheme.lower():
            case "bearer":
                found.append(value)
            case "basic":
                found += _basic(request, value)
            case _:
                raise unauthorized(
                    request, f"Authorization has the scheme {scheme[:20]!r}; expected Bearer or Basic"
                )
    if given := request.headers.get("x-api-key"):
        found.append(given.strip())
    return found


def unauthorized(request: Request, message: str, *, hint: str | None = None) -> Refused:
    """A 401 error, whose header WWW-Authenticate names the forms in which a key may be sent.

    It does not name Basic to the scripts of a page: the browser would show its password dialog.
    """
    by_page = request.headers.get("sec-fetch-dest", "document") != "document"
    basic = "" if by_page else ', Basic realm="limner", charset="UTF-8"'
    return Refused(
        401,
        message,
        hint=hint or "send a key as `Authorization: Bearer …`; an operator makes one by limner keys create",
        headers={"www-authenticate": f'Bearer realm="limner"{basic}'},
    )


def is_local(request: Request) -> bool:
    """Whether the client is on this machine, with no proxy in between."""
    if any(name in request.headers for name in _FORWARDED):
        return False
    host = request.client.host if request.client else ""
    return not host or is_loopback(host)  # without a host it is a Unix socket


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself, as seen from it."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host in ("localhost", "testclient")


async def _recognised(request: Request) -> Principal:
    """The caller with its quotas. Raises Refused."""
    caller = _with_quotas(await _authenticated(request), state_of(request).settings.quotas)
    request.state.principal = caller
    ACTING.set(caller.account.id)
    return caller


async def _authenticated(request: Request) -> Principal:
    state = state_of(request)
    if is_local(request) and (local := await _local_account(state)) is not None:
        return local
    secrets = secrets_of(request)
    if not secrets:
        return await _of_session(request, state)
    token = False
    for secret in secrets:
        if state.oidc is not None and looks_like_token(secret):
            token, found = True, await in_thread(state.oidc.recognise, secret)
        else:
            found = await in_thread(state.ledger.authenticate, secret)
        if found is not None:
            return found
    if token:
        settings = state.settings
        raise unauthorized(
            request,
            "the token is not accepted",
            hint=f"send one of {settings.oidc_issuer} for {settings.oidc_audience} that has not expired; "
            "the service's log says what is wrong with this one",
        )
    raise unauthorized(request, "the key is not known, or has expired or been revoked")


async def _of_session(request: Request, state: ServerState) -> Principal:
    """The caller of a request without a key, by its session."""
    if state.sessions.cookie not in request.cookies:
        raise unauthorized(request, "the request has no key")
    session = state.sessions.of(request)
    caller = None if session is None else await in_thread(state.ledger.holder_of, session.key_id)
    if caller is None:
        raise unauthorized(request, "the session has ended", hint="sign in again")
    if request.method not in _READING and request.headers.get(MARK) != STUDIO:
        raise Refused(
            403,
            f"a change by the cookie of a session needs the header {MARK}",
            hint=f"send `{MARK}: {STUDIO}`, or a key as `Authorization: Bearer …`",
        )
    return caller


def _with_quotas(caller: Principal, defaults: Mapping[str, float]) -> Principal:
    """The caller with the service's quotas where the account has none of its own."""
    if not defaults:
        return caller
    own = {name: value for name, value in asdict(caller.account.quotas).items() if value is not None}
    quotas = Quotas(**{**defaults, **own})
    return replace(caller, account=replace(caller.account, quotas=quotas))


async def _local_account(state: ServerState) -> Principal | None:
    """The account of callers on loopback; None where they need a key."""
    if state.has_keys or state.settings.require_key or state.oidc is not None:
        return None

    account = await in_thread(state.ledger.find_keyless)
    state.has_keys = account is None
    return None if account is None else Principal(account)


def _basic(request: Request, value: str) -> list[str]:
    """Possible keys in Basic credentials: the password, the whole `user:password`, and the user."""
    try:
        text = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise unauthorized(request, "the Basic credentials are not base64 of UTF-8") from None
    user, _, password = text.partition(":")
    return [one for one in dict.fromkeys((password, text, user)) if one]
