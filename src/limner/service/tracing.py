"""Traces: how a request spends its time, from the client through the API process to the worker.

The trace context (https://www.w3.org/TR/trace-context/) of a request is kept with its set, whether this
service sends spans or not, so that a worker's spans belong to the trace that the client began. Spans are sent
by OpenTelemetry where the setting `telemetry` says so; where to is said by OpenTelemetry's variables, such as
OTEL_EXPORTER_OTLP_ENDPOINT. Spans hold ids and numbers, no prompts.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from limner import __version__
from limner.errors import InvalidRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_CURRENT: ContextVar[str | None] = ContextVar("limner_traceparent", default=None)

Value = str | int | float | bool


def valid_traceparent(header: str | None) -> str | None:
    """The header `traceparent`, if it is one; None otherwise, as its specification demands."""
    given = (header or "").strip()
    return given[:55] if len(given) <= 512 and _TRACEPARENT.fullmatch(given) else None


def current_traceparent() -> str | None:
    """The trace context of what this thread or task is doing; None outside a trace."""
    return _CURRENT.get()


class Span(Protocol):
    """A part of a trace."""

    def set(self, **attributes: Value | None) -> None:
        """Set attributes; those of None are left out. Underscores in names become dots."""

    def rename(self, name: str) -> None:
        """Give it another name, which was not known at its beginning."""

    def fail(self, error: BaseException) -> None:
        """Note that it has failed."""


class _Unsent:
    """A span where nothing is sent."""

    def set(self, **attributes: Value | None) -> None:
        pass

    def rename(self, name: str) -> None:
        pass

    def fail(self, error: BaseException) -> None:
        pass


class _Sent:
    """A span of OpenTelemetry."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def set(self, **attributes: Value | None) -> None:
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(name.replace("_", "."), value)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def fail(self, error: BaseException) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_status(StatusCode.ERROR, type(error).__name__)
        self._span.set_attribute("error.type", getattr(error, "code", type(error).__name__))


class Tracing:
    """The spans of a process.

    Args:
        provider: OpenTelemetry's provider; None: nothing is sent, and trace contexts are handed on unchanged.
    """

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        self._provider = provider
        self._tracer = None if provider is None else provider.get_tracer("limner", __version__)

    @classmethod
    def start(cls, *, enabled: bool, process: str, exporter: "SpanExporter | None" = None) -> "Tracing":
        """Start sending the spans of a process.

        Args:
            enabled: The setting `telemetry`.
            process: Name of the process, such as "api" or "worker cuda:0".
            exporter: Where to; by default OTLP over HTTP.

        Raises:
            InvalidRequest: OpenTelemetry is not installed.
        """
        if not enabled:
            return cls()
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise InvalidRequest(
                "the setting telemetry is on, but OpenTelemetry is not installed",
                hint="install limner[telemetry]",
                fields=("telemetry",),
            ) from error
        named = {"service.name": "limner", "service.version": __version__, "service.instance.id": process}
        # The variables OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win.
        resource = Resource.create().merge(Resource(named)).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        return cls(provider)

    @contextmanager
    def span(
        self, name: str, *, parent: str | None = None, server: bool = False, **attributes: Value | None
    ) -> Iterator[Span]:
        """A span around a block. An exception that leaves the block fails it.

        Args:
            parent: Trace context that it belongs to; by default that of the surrounding span.
            server: Whether it answers a request from outside.
        """
        within = parent or _CURRENT.get()
        if self._tracer is None:
            token = _CURRENT.set(within)
            try:
                yield _Unsent()
            finally:
                _CURRENT.reset(token)
            return
        from opentelemetry.trace import SpanKind

        kind = SpanKind.SERVER if server else SpanKind.INTERNAL
        raw = self._tracer.start_span(name, _context(within), kind)
        span = _Sent(raw)
        span.set(**attributes)
        token = _CURRENT.set(_traceparent(raw))
        try:
            yield span
        except BaseException as error:
            span.fail(error)
            raise
        finally:
            _CURRENT.reset(token)
            raw.end()

    def record(
        self,
        name: str,
        began: float,
        ended: float,
        *,
        parent: str | None,
        error: BaseException | None = None,
        **attributes: Value | None,
    ) -> str | None:
        """Send a span that is over, and return its trace context, for its parts. None where nothing is sent.

        Args:
            began, ended: Seconds since the epoch.
            parent: Trace context that it belongs to.
            error: Why it has failed.
        """
        if self._tracer is None:
            return None
        raw = self._tracer.start_span(name, _context(parent), start_time=_nanoseconds(began))
        span = _Sent(raw)
        span.set(**attributes)
        if error is not None:
            span.fail(error)
        raw.end(_nanoseconds(ended))
        return _traceparent(raw)

    def close(self) -> None:
        """Send what has not been sent."""
        if self._provider is not None:
            self._provider.shutdown()


def _context(traceparent: str | None) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: Mapping[str, str] = {} if traceparent is None else {"traceparent": traceparent}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _traceparent(span: Any) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
