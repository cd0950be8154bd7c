"""Observes each request: counts it, logs it by its route, and makes it a span of a trace."""

import logging
from collections.abc import Callable

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from limner.logs import log_fields
from limner.service.tracing import Tracing, valid_traceparent

_LOG = logging.getLogger("limner.access")

_OFTEN = ("/health/", "/metrics")  # asked for by machines every few seconds
_HUNG_UP = 499

Template = Callable[[Scope], str]
"""Template of a request's path, such as "/api/v1/jobs/{job_id}"."""


class Traced:
    """ASGI middleware: each request is a span, and its events in the log have its id.

    Args:
        template: Names the route of a request that was answered.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing, template: Template) -> None:
        self._app, self._tracing, self._template = app, tracing, template

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_OFTEN):
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"traceparent"), b"")
        parent = valid_traceparent(given.decode("latin-1"))
        request_id = str(scope.get("state", {}).get("request_id", ""))
        method = scope["method"]
        with (
            log_fields(request_id=request_id),
            self._tracing.span(method, parent=parent, server=True, http_request_method=method) as span,
        ):
            try:
                await self._app(scope, receive, send)
            finally:
                route = self._template(scope)
                span.rename(f"{method} {route}")
                span.set(http_route=route, limner_request=request_id)


def observer(app: FastAPI, template: Template) -> Callable[[Scope, int, float], None]:
    """What `Edge` calls at the end of each request: it counts and logs it."""

    def observe(scope: Scope, status: int, seconds: float) -> None:
        state = getattr(app.state, "limner", None)
        if state is None:
            return
        method, route = str(scope.get("method", "")), template(scope)
        state.metrics.http(method, route, status, seconds)
        caller = scope["state"].get("principal")
        fields = {
            "method": method,
            "path": scope["path"][:200],
            "route": route,
            "status": status or _HUNG_UP,
            "seconds": round(seconds, 4),
            "request_id": scope["state"]["request_id"],
            "account": None if caller is None else caller.account.id,
        }
        level = logging.DEBUG if route.startswith(_OFTEN) else logging.INFO
        _LOG.log(level, "request", extra={"fields": fields})

    return observe
