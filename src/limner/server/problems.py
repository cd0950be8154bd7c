"""Errors as HTTP responses: the status of each error, written in the shape of the API that was called."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from limner.errors import (
    InternalError,
    LedgerError,
    LimnerError,
    OutputError,
    PromptRefused,
    StorageError,
    spelled,
)

_LOG = logging.getLogger("limner.server")
_PATH = re.compile(r"(?:^|[\s'\"`(=:])/[^\s/]")  # the beginning of an absolute one

STATUS = {
    "invalid_request": 422,
    "invalid_prompt": 422,
    "prompt_refused": 422,
    "invalid_picture": 422,
    "image_refused": 422,
    "unsupported_model": 422,
    "invalid_checkpoint": 422,
    "pickle_refused": 422,
    "not_found": 404,
    "model_not_found": 404,
    "idempotency_conflict": 409,
    "conflict": 409,
    "queue_full": 429,
    "quota_exceeded": 429,
    "worker_unavailable": 503,
    "engine_closed": 503,
    "ledger_error": 503,
    "ledger_unavailable": 503,
    "storage_error": 507,
    "out_of_memory": 503,
    "deadline_exceeded": 504,
    "output_error": 507,
}
"""Status by the code of an error; 500 for every other one."""

_CODES = {
    400: "malformed_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    413: "body_too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    429: "too_many_requests",
}


@dataclass(frozen=True)
class Problem:
    """What is wrong with a request, independent of the API.

    Attributes:
        status: HTTP status, as the native API gives it.
        code: Stable name of the kind of error: `LimnerError.code`, or of the server, such as "unauthorized".
        message: One sentence: what was given, what was expected. Names of fields are in backticks.
        hint: What to do about it.
        fields: Names of the fields at fault.
        retryable: Whether the same request may succeed later.
        retry_after: Seconds after which to try again.
        headers: Headers of the answer besides those of its shape.
        request_id: Id of the HTTP request, which the server's log has as well.
        decision: What the safety policy says, where it refuses the request.
    """

    status: int
    code: str
    message: str
    hint: str | None = None
    fields: tuple[str, ...] = ()
    retryable: bool = False
    retry_after: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    decision: Mapping[str, Any] | None = None

    @property
    def all_headers(self) -> dict[str, str]:
        """The headers of the answer, Retry-After in whole seconds among them."""
        if self.retry_after is None:
            return dict(self.headers)
        return {**self.headers, "retry-after": str(max(1, round(self.retry_after)))}

    def text(self, spell: Callable[[str, str], str | None] | None = None) -> str:
        """Message and hint as one text, with the names of fields as an API spells them."""
        text = f"{self.message}; {self.hint}" if self.hint else self.message
        return spelled(text, spell or plain)


ErrorResponse = Callable[[Problem], Response]
"""Writes a problem in the shape of an API."""


class Refused(HTTPException):
    """A request that the server itself refuses: without a key, too large, malformed.

    It is an HTTPException, which FastAPI passes on from wherever a body is read.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        fields: tuple[str, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code, self.hint, self.fields = code or _CODES.get(status, "error"), hint, fields


def for_callers(error: LimnerError) -> LimnerError:
    """An error without details that callers must not see; those go to the log.

    Errors of the ledger and of stores name files and databases, and an internal error holds the text of an
    unexpected exception.
    """
    match error:
        case LedgerError():
            message = "the service's ledger cannot be used just now"
        case StorageError() | OutputError() if _PATH.search(f"{error.message} {error.hint or ''}"):
            message = "the service cannot use its storage just now"
        case InternalError() if error.__cause__ is not None:
            message = "the server failed at this request"
        case _:
            return error
    _LOG.error("a request failed: %s", error.message, exc_info=error)
    hint = "the service's log has the cause"
    return type(error)(message, hint=hint, fields=error.fields, retry_after=error.retry_after)


def problem_of(error: Exception, request_id: str = "") -> Problem:
    """The problem that describes an exception.

    Details of an exception that Limner does not raise on purpose stay in the log.
    """
    if isinstance(error, LimnerError):
        error = for_callers(error)
    match error:
        case LimnerError():
            return Problem(
                STATUS.get(error.code, 500),
                error.code,
                error.message,
                error.hint,
                error.fields,
                error.retryable,
                error.retry_after,
                request_id=request_id,
                decision=error.decision if isinstance(error, PromptRefused) else None,
            )
        case RequestValidationError():
            return _invalid(error, request_id)
        case HTTPException():
            code = error.code if isinstance(error, Refused) else _CODES.get(error.status_code, "error")
            return Problem(
                error.status_code,
                code,
                _sentence(error),
                getattr(error, "hint", None),
                getattr(error, "fields", ()),
                error.status_code in (408, 429, 503),
                headers=error.headers or {},
                request_id=request_id,
            )
        case _:
            return Problem(
                500,
                "internal_error",
                "the server failed at this request",
                f"its log has the cause under the request id {request_id}" if request_id else None,
                retryable=True,
                request_id=request_id,
            )


def plain(name: str, value: str) -> str:
    """A field and its value as JSON's reader knows them."""
    return f"{name}={value}" if value else name


def native_error(problem: Problem) -> Response:
    """A problem as RFC 9457 has it, with further members: code, hint, fields, retryable, decision …"""
    body = {
        "type": f"urn:limner:problem:{problem.code}",
        "title": problem.code.replace("_", " ").capitalize(),
        "status": problem.status,
        "detail": spelled(problem.message, plain),
        "code": problem.code,
        "hint": problem.hint and spelled(problem.hint, plain),
        "fields": list(problem.fields),
        "retryable": problem.retryable,
        "retry_after": problem.retry_after,
        "request_id": problem.request_id,
        **({} if problem.decision is None else {"decision": dict(problem.decision)}),
    }
    return SafeJSON(body, problem.status, problem.all_headers, "application/problem+json")


class SafeJSON(JSONResponse):
    """JSON in ASCII: what clients sent and is repeated in an answer may hold what UTF-8 cannot carry."""

    def render(self, content: Any) -> bytes:
        return super().render(_encodable(content))


def _encodable(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case Mapping():
            return {_encodable(key): _encodable(one) for key, one in value.items()}
        case list() | tuple():
            return [_encodable(one) for one in value]
    return value


class Shapes:
    """Which API a path belongs to, and how that API writes errors.

    Args:
        by_prefix: Beginning of a path, such as "/v1" -> how its errors are written. The longest that fits
            counts; a prefix ends at a "/" of the path.
    """

    def __init__(self, by_prefix: Mapping[str, ErrorResponse]) -> None:
        self._by_prefix = sorted(by_prefix.items(), key=lambda item: -len(item[0]))

    def respond(self, path: str, problem: Problem) -> Response:
        """The answer to a request of this path."""
        for prefix, write in self._by_prefix:
            if path == prefix or path.startswith(f"{prefix}/"):
                return write(problem)
        return native_error(problem)


def request_id(request: Request) -> str:
    """Id of an HTTP request."""
    return str(getattr(request.state, "request_id", ""))


def _invalid(error: RequestValidationError, request_id: str) -> Problem:
    """What pydantic found wrong with parameters or a body."""
    faults, fields = [], []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"][1:]) or str(fault["loc"][0])
        given = repr(fault.get("input"))
        shown = given if len(given) <= 60 else f"{given[:57]}…"
        message = str(fault["msg"]).removeprefix("Value error, ")
        message = f"{message[:1].lower()}{message[1:]}"
        if fault["type"] == "missing":
            faults.append(f"{where} is missing")
        elif fault["type"] == "extra_forbidden":
            faults.append(f"{where} is not known")
        else:
            faults.append(f"{where} is {shown}: {message}")
        fields.append(where)
    unique = tuple(dict.fromkeys(fields))
    return Problem(422, "invalid_request", "; ".join(faults), None, unique, request_id=request_id)


def _sentence(error: HTTPException) -> str:
    if isinstance(error, Refused):
        return str(error.detail)
    if error.status_code == 404:
        return "there is nothing at this path"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return f"this path does not take this method; it takes {allowed}" if allowed else str(error.detail)
    return str(error.detail)
