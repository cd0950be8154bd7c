"""Errors in the shape of OpenAI's API: {"error": {"message", "type", "param", "code"}}.

The SDKs choose the class of an exception by the status alone, and repeat a request after 408, 409, 429 and
5xx unless the header `x-should-retry` says otherwise. An image that failed by its own fault must not be drawn
twice more, so every error says whether to repeat the request.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limner.errors import InvalidRequest, LimnerError, spelled
from limner.server.problems import for_callers

PARAMS = {"num_images": "n", "width": "size", "height": "size"}
"""Parameters of this API that have another name than the field of a request."""


class InvalidParameter(InvalidRequest):
    """A parameter that this API does not have, or with a value that it does not take.

    Attributes:
        reason: OpenAI's `code` of the error.
    """

    def __init__(
        self, param: str | None, message: str, *, reason: str = "invalid_value", hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, fields=() if param is None else (param,))
        self.reason = reason


@dataclass(frozen=True)
class ErrorKind:
    """How one kind of error is reported to the client.

    Attributes:
        status: HTTP status, which decides the SDK's exception.
        type: OpenAI's type of the error.
        retry: Whether the SDK may repeat the request.
        code: OpenAI's code; None takes that of the error.
    """

    status: int
    type: str = "invalid_request_error"
    retry: bool = False
    code: str | None = None


_INVALID = ErrorKind(400)
_SERVER = ErrorKind(500, "server_error")
_BUSY = ErrorKind(503, "server_error", retry=True)

KINDS: Mapping[str, ErrorKind] = {
    "invalid_request": _INVALID,
    "invalid_prompt": _INVALID,
    "prompt_refused": ErrorKind(400, "image_generation_user_error", code="content_policy_violation"),
    "image_refused": ErrorKind(400, "image_generation_user_error", code="moderation_blocked"),
    "invalid_picture": _INVALID,
    "unsupported_model": _INVALID,
    "out_of_memory": _INVALID,
    "model_not_found": ErrorKind(404),
    "not_found": ErrorKind(404),
    "unauthorized": ErrorKind(401, code="invalid_api_key"),
    "forbidden": ErrorKind(403),
    "payload_too_large": ErrorKind(413),
    "idempotency_conflict": ErrorKind(409),
    "conflict": ErrorKind(409),
    "cancelled": ErrorKind(409),
    "quota_exceeded": ErrorKind(429, "insufficient_quota", code="insufficient_quota"),
    "queue_full": ErrorKind(429, "rate_limit_error", retry=True, code="rate_limit_exceeded"),
    "deadline_exceeded": ErrorKind(504, "server_error"),
    "worker_unavailable": _BUSY,
    "engine_closed": _BUSY,
    "ledger_unavailable": _BUSY,
    "storage_error": _BUSY,
}
"""By the code of a `LimnerError`. Any other is a server error that is not repeated."""


@dataclass(frozen=True)
class ApiError:
    """An error as it is sent.

    Attributes:
        kind: Status, type and whether to repeat the request.
        message: What was given, what was expected, and what to do.
        param: Parameter at fault; None where there is none.
        code: OpenAI's code, or Limner's.
        retry_after: Seconds after which to try again.
        repeat: Whether the SDK may repeat the request; None takes that of the kind.
    """

    kind: ErrorKind
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None
    repeat: bool | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body, also the data of an error in a stream."""
        fault = {"message": self.message, "type": self.kind.type, "param": self.param, "code": self.code}
        return {"error": fault}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that tell the SDKs whether and when to repeat the request."""
        repeat = self.kind.retry if self.repeat is None else self.repeat
        headers = {"x-should-retry": "true" if repeat else "false"}
        if self.retry_after is not None:
            seconds = max(1, round(self.retry_after))
            headers |= {"retry-after": str(seconds), "retry-after-ms": str(seconds * 1000)}
        return headers


def api_error(error: LimnerError, sources: Mapping[str, str] | None = None) -> ApiError:
    """An error of Limner in OpenAI's shape.

    Args:
        sources: Field of the request -> the parameter that it was taken from, where that has another name.
    """
    error = for_callers(error)
    code = error.reason if isinstance(error, InvalidParameter) else error.code
    retry_after = getattr(error, "retry_after", None)
    return error_of(code, error.message, error.hint, error.fields, sources, retry_after, type_of=error.code)


def error_of(
    code: str,
    message: str,
    hint: str | None = None,
    fields: tuple[str, ...] = (),
    sources: Mapping[str, str] | None = None,
    retry_after: float | None = None,
    *,
    type_of: str | None = None,
) -> ApiError:
    """An error in OpenAI's shape, from the parts that a `JobError` keeps.

    Args:
        sources, retry_after: As in `api_error` and `ApiError`.
        type_of: Code that decides the kind of error, where `code` is OpenAI's own.
    """
    kind = KINDS.get(type_of or code, _SERVER)
    if kind.status == 404 and code == "model_not_found" and fields and "model" not in fields:
        kind = _INVALID  # an adapter or a control network; 404 is about `model`
    params = {**PARAMS, **(sources or {})}
    names = [params.get(field, field) for field in fields]
    param = names[0] if names else None
    if param is None and code == "model_not_found":
        param = "model"
    text = message if hint is None else f"{message}; {hint}"
    text = spelled(text, lambda name, value: f"'{params.get(name, name)}'{value and f' {value}'}")
    return ApiError(kind, text, param, kind.code or code, retry_after)
