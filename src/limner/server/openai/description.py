"""The OpenAPI description of the routes, which read bodies and write answers themselves."""

from typing import Any

from limner.request import GenerationRequest

from .parameters import PARAMETERS, Operation
from .translate import MAX_INPUTS, OWN_FIELDS

_TEXT = {"type": "string"}
_NUMBER = {"type": "integer"}
_IMAGE = {"type": "string", "description": "A data URL, or base64."}
_FILE = {"type": "string", "format": "binary", "description": "An image file."}
_ERROR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"], "description": "Parameter at fault."},
                "code": {"type": ["string", "null"]},
            },
        }
    },
    "required": ["error"],
}
_ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "created": {**_NUMBER, "description": "Seconds since the epoch."},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "b64_json": _TEXT,
                    "url": _TEXT,
                    "revised_prompt": {**_TEXT, "description": "With its styles and wildcards applied."},
                    "seed": _NUMBER,
                    "id": {**_TEXT, "description": "Id of the image in the native API."},
                },
            },
        },
        "background": _TEXT,
        "output_format": _TEXT,
        "quality": _TEXT,
        "size": _TEXT,
        "usage": {"type": "object"},
        "warnings": {"type": "array", "items": _TEXT},
    },
    "required": ["created", "data"],
}


def responses(*, files: bool = False) -> dict[int | str, dict[str, Any]]:
    """The answers of a route.

    Args:
        files: Whether it answers with image files, in place of JSON.
    """
    answered: dict[str, Any] = {"application/json": {}}
    if files:
        answered = {"image/png": {}, "image/jpeg": {}, "image/webp": {}}
    return {
        200: {"description": "Done.", "content": answered},
        "default": {"description": "An error.", "content": {"application/json": {"schema": _ERROR}}},
    }


def image_responses() -> dict[int | str, dict[str, Any]]:
    """The answers of a request for images."""
    content = {"application/json": {"schema": _ANSWER}, "text/event-stream": {}}
    return {**responses(), 200: {"description": "The images.", "content": content}}


def body(operation: Operation) -> dict[str, Any]:
    """The OpenAPI entry of a body."""
    parameters = {name: one.schema for name, one in PARAMETERS[operation].items()}
    described = GenerationRequest.model_json_schema(ref_template="#/components/schemas/{model}")["properties"]
    own = {name: described[name] for name in sorted(OWN_FIELDS)}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {**parameters, **own},
        "required": ["prompt"],
    }
    content = {"application/json": {"schema": schema}}
    if operation == "edit":
        images = {"image": _inputs(_IMAGE), "mask": _IMAGE}
        files = {"image": _inputs(_FILE), "mask": _FILE}
        content = {
            "multipart/form-data": {"schema": _with(schema, files)},
            "application/json": {"schema": _with(schema, images)},
        }
    return {"requestBody": {"required": True, "content": content}}


def _with(schema: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    required = [*schema["required"], "image"]
    return {**schema, "properties": {**schema["properties"], **more}, "required": required}


def _inputs(one: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": MAX_INPUTS}]}
