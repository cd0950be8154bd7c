"""The OpenAPI description: what FastAPI finds, and the bodies that routes read themselves."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from .native import BODIES

_DESCRIPTION = """\
Limner's own API. Keys are sent as `Authorization: Bearer …`; on the machine of the service none is needed
until the first key exists. Browsers sign in by `POST /session`. Errors are `application/problem+json`
(RFC 9457) with a stable `code` and the `fields` at fault. Times are seconds since the epoch.
"""

_PROBLEM = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "description": "`urn:limner:problem:` and the code."},
        "title": {"type": "string", "description": "The code as words."},
        "status": {"type": "integer", "description": "Status of the answer."},
        "detail": {"type": "string", "description": "What was given, and what was expected."},
        "code": {"type": "string", "description": "Stable name of the kind of error."},
        "hint": {"type": ["string", "null"], "description": "What to do about it."},
        "fields": {"type": "array", "items": {"type": "string"}, "description": "Fields at fault."},
        "retryable": {"type": "boolean", "description": "Whether the same request may succeed later."},
        "retry_after": {"type": ["number", "null"], "description": "Seconds after which to try again."},
        "request_id": {"type": "string", "description": "Id of the request in the server's log."},
        "decision": {
            "$ref": "#/components/schemas/DecisionView",
            "description": "What the safety policy says, where it refuses the request.",
        },
    },
    "required": ["type", "title", "status", "detail", "code"],
}


def describe_api(app: FastAPI) -> None:
    """Give an application its OpenAPI description, made when it is first asked for."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _described(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes)
    components = schema.setdefault("components", {})
    _, bodies = models_json_schema(
        [(model, "validation") for model in BODIES], ref_template="#/components/schemas/{model}"
    )
    schemas = components.setdefault("schemas", {})
    schemas |= bodies["$defs"]
    schemas["Problem"] = _PROBLEM
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "basic": {"type": "http", "scheme": "basic", "description": "The key is the password."},
        "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    }
    schema["security"] = [{"bearer": []}, {"basic": []}, {"key": []}, {}]
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if path.startswith("/api/"):
                operation["responses"]["default"] = {"description": "A problem.", "content": problem}
    return schema
