"""Checks of every request before a route sees it, and headers of every answer.

A page of another origin must not reach a service on a user's machine: the Host header must name this service
(against DNS rebinding), and a browser's Origin or Sec-Fetch-Site must not be foreign. Programs send neither.
A body is limited before anything reads it, in bytes and in time.
"""

import asyncio
import ipaddress
import logging
import re
import time
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limner.settings.serve import ServeSettings

from .problems import Refused, Shapes, problem_of

_LOG = logging.getLogger("limner.server")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOOPBACK = ("localhost", "localhost.localdomain", "ip6-localhost")
_SEND_TIMEOUT = 60.0  # seconds that a client may take to read a part of an answer
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; form-action 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Headers of every answer that does not set them itself."""

_EXPOSED = "x-request-id, retry-after, location, etag, content-range, idempotent-replayed, x-limner-seed"
_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"

Observe = Callable[[Scope, int, float], None]
"""Called with a request, the status of its answer (0 for none) and the seconds until it began."""


class Edge:
    """ASGI middleware around all routes.

    Args:
        shapes: How the API of a path writes errors.
        observe: Called at the end of each request.
    """

    def __init__(
        self, app: ASGIApp, settings: ServeSettings, shapes: Shapes, observe: Observe | None = None
    ) -> None:
        self._app, self._settings, self._shapes, self._observe = app, settings, shapes, observe
        self._hosts = tuple(_allowed_hosts(settings))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        _tidy_path(scope)
        if scope["type"] == "websocket":
            await self._websocket(scope, headers, receive, send)
            return
        answer = _Answer(send, request_id, self._cors(headers))
        began = time.monotonic()
        try:
            early = self._early(scope, headers)
            if early is not None:
                await early(scope, receive, answer)
                return
            body = _Body(receive, self._settings.max_body_bytes, self._settings.body_timeout_seconds)
            await self._app(scope, body, answer)
        except Exception as error:
            await self._failed(scope, receive, answer, error)
        finally:
            if self._observe is not None:
                self._observe(scope, answer.status, (answer.began or time.monotonic()) - began)

    def _early(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a preflight or to a request that is refused; None for one that passes."""
        try:
            self.check(scope, headers)
        except Refused as error:
            return self._shapes.respond(scope["path"], problem_of(error, scope["state"]["request_id"]))
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return Response(status_code=204)
        return None

    def check(self, scope: Scope, headers: Headers) -> None:
        """Raise Refused for a request that must not reach a route."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or len(origins) > 1 or len(headers.getlist("authorization")) > 1:
            raise Refused(400, "the headers Host, Origin and Authorization are given once, Host always")
        host = _host_name(hosts[0])
        if host is None or not self._is_allowed(host):
            raise Refused(
                403,
                f"the service does not go by the name {hosts[0][:100]!r} of the Host header",
                code="host_not_allowed",
                hint="an operator allows it by the setting allowed_hosts",
            )
        self._check_origin(scope, headers, hosts[0])
        if "\0" in scope["path"] or b"%00" in scope.get("query_string", b""):
            raise Refused(400, "the address contains a NUL character")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            raise Refused(400, "Content-Length is not a number")
        if int(length) > self._settings.max_body_bytes:
            raise too_large(self._settings.max_body_bytes)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise Refused(415, f"the body is encoded as {encoding[:20]!r}", hint="send it as it is")

    def _check_origin(self, scope: Scope, headers: Headers, host: str) -> None:
        origin = headers.get("origin")
        if origin is not None:
            if self._is_own(origin, host) or self._is_cors(origin):
                return
            raise _foreign(origin)
        site = headers.get("sec-fetch-site", "none").lower()
        if site in ("none", "same-origin") or "*" in self._settings.cors_origins:
            return
        # A link on another page may lead here; a form, an image or a script of it may not.
        opened = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if not (opened and scope.get("method") in ("GET", "HEAD")):
            raise _foreign(site)

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether an origin is the address that the request was sent to."""
        parts = urlsplit(origin)
        default = {"http": ":80", "https": ":443"}.get(parts.scheme)
        if default is None:
            return False
        own = host.lower()
        return parts.netloc.lower().removesuffix(default) == own.removesuffix(default)

    def _is_cors(self, origin: str | None) -> bool:
        allowed = self._settings.cors_origins
        return origin is not None and ("*" in allowed or origin in allowed)

    def _cors(self, headers: Headers) -> dict[str, str]:
        """Headers that let the page of an allowed origin read the answer."""
        origin = headers.get("origin")
        if not self._is_cors(origin):
            return {"vary": "Origin"} if self._settings.cors_origins else {}
        wanted = headers.get("access-control-request-headers", "")
        return {
            "vary": "Origin",
            "access-control-allow-origin": str(origin),
            "access-control-expose-headers": _EXPOSED,
            "cross-origin-resource-policy": "cross-origin",
            "access-control-allow-methods": _METHODS,
            **({"access-control-allow-headers": wanted} if wanted else {}),
        }

    def _is_allowed(self, host: str) -> bool:
        # A page cannot have an address of digits rebound, so a literal address is this service's own.
        if _is_address(host):
            return True
        return any(host == one or (one.startswith("*.") and host.endswith(one[1:])) for one in self._hosts)

    async def _websocket(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        try:
            self.check(scope, headers)
        except Refused:
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._app(scope, receive, send)

    async def _failed(self, scope: Scope, receive: Receive, answer: "_Answer", error: Exception) -> None:
        """Answer with 500, or end the connection where the answer has begun; the cause goes to the log."""
        request_id = scope["state"]["request_id"]
        if isinstance(error, ClientDisconnect):
            return  # nobody reads an answer
        if isinstance(error, TimeoutError) and answer.status:
            _LOG.info("a client does not read its answer", extra={"fields": {"request_id": request_id}})
        else:
            _LOG.error(
                "a request failed",
                exc_info=error,
                extra={"fields": {"request_id": request_id, "path": scope["path"][:200]}},
            )
        if answer.status:
            raise error
        await self._shapes.respond(scope["path"], problem_of(error, request_id))(scope, receive, answer)


class _Answer:
    """Sends an answer with the headers that all have, and gives up on a client that does not read it.

    Attributes:
        status: Status of the answer; 0 before it begins.
        began: When it began, as `time.monotonic` has it; 0 before.
    """

    def __init__(self, send: Send, request_id: str, headers: dict[str, str]) -> None:
        self._send, self._request_id, self._cors = send, request_id, headers
        self.status, self.began = 0, 0.0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.began = message["status"], time.monotonic()
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            for name, value in {**_HEADERS, **self._cors}.items():
                if name == "vary":
                    headers.add_vary_header(value)
                elif name in self._cors or name not in headers:
                    headers[name] = value
            headers["x-request-id"] = self._request_id
        async with asyncio.timeout(_SEND_TIMEOUT):
            await self._send(message)


class _Body:
    """Receives a body up to a number of bytes, in a limited time."""

    def __init__(self, receive: Receive, limit: int, seconds: float) -> None:
        self._receive, self._limit = receive, limit
        self._bytes, self._complete = 0, False
        self._until = time.monotonic() + seconds

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise Refused(408, "the body of the request did not arrive in time") from None
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._bytes > self._limit:
                raise too_large(self._limit)
        return message


def too_large(limit: int) -> Refused:
    """413 for a body of more than `limit` bytes."""
    return Refused(
        413,
        f"the body has more than {limit:,} bytes",
        hint="send less; an operator raises the limit by the setting max_body_bytes",
        headers={"connection": "close"},
    )


def _foreign(origin: str) -> Refused:
    return Refused(
        403,
        f"pages of another origin ({origin[:100]!r}) may not call this service",
        code="origin_not_allowed",
        hint="an operator allows an origin by the setting cors_origins",
    )


def _allowed_hosts(settings: ServeSettings) -> Iterable[str]:
    yield from _LOOPBACK
    yield settings.host.lower()
    yield from (name.lower() for name in settings.allowed_hosts)
    if settings.public_url is not None:
        yield (urlsplit(settings.public_url).hostname or "").lower()


def _host_name(header: str) -> str | None:
    """The name or address in a Host header, in lower case; None for a malformed one."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+)(?::(\d{1,5}))?", header.strip())
    return match[1].strip("[]").lower().removesuffix(".") if match else None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _tidy_path(scope: Scope) -> None:
    """Doubled slashes, and one at the end, have no meaning: base URLs of clients often end with one."""
    path = scope["path"]
    tidy = re.sub(r"/{2,}", "/", path)
    tidy = tidy.rstrip("/") or "/"
    if tidy != path:
        scope["path"] = tidy
        scope["raw_path"] = tidy.encode("utf-8", "surrogateescape")
