"""Reads request bodies: strict JSON, validated by models whose errors name each field at fault."""

import hashlib
import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from limner.errors import InvalidRequest
from limner.request.parsing import invalid_request
from limner.request.request import GenerationRequest

from .problems import Refused

M = TypeVar("M", bound=BaseModel)

_DEPTH = 64  # of nested arrays and objects
_UNSTORABLE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F][0-9a-fA-F]{2})")  # NUL, and halves of surrogate pairs


async def read_json(request: Request, *, any_type: bool = False) -> Any:
    """The JSON body of a request.

    Args:
        any_type: Whether a Content-Type other than JSON's is accepted, as of clients that send none.

    Raises:
        Refused: 415 for another type, 400 for invalid JSON or text that cannot be stored.
    """
    if not any_type:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise Refused(
                415,
                f"Content-Type is {kind[:60]!r}; expected application/json",
                hint="send the header `content-type: application/json`",
            )
    body = await request.body()
    try:
        # Not from bytes, of which Python's parser takes UTF-16 as well, and halves of surrogate pairs.
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        where = f": {error.msg} at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise Refused(400, f"the body is no JSON{where}") from None
    if _UNSTORABLE.search(body):
        check_texts(value)
    if _deeper_than(value, _DEPTH):
        raise Refused(400, f"the body is nested more than {_DEPTH} levels deep")
    return value


def read_model(model: type[M], value: Any) -> M:
    """A value of JSON as a model.

    Raises:
        InvalidRequest: Naming each field at fault, its value and what is expected.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        field = model.model_fields.get("request")
        places = [fault["loc"] for fault in error.errors(include_url=False, include_input=False)]
        within = all(place[:1] == ("request",) and len(place) > 1 for place in places)
        if within and field is not None and field.annotation is GenerationRequest:
            GenerationRequest.of(value["request"])  # raises with the names and hints of its fields
        raise invalid_request(error, model.model_fields) from None


async def read_body(request: Request, model: type[M]) -> M:
    """The JSON body of a request as a model. Raises as `read_json` and `read_model`."""
    return read_model(model, await read_json(request))


async def read_envelope(request: Request, model: type[M]) -> M:
    """As `read_body`, for a model with a field `request`; the error explains a request sent without it."""
    value = await read_json(request)
    if isinstance(value, dict) and "prompt" in value and "request" not in value:
        raise InvalidRequest(
            "the body is a request; it is expected under the name request",
            hint='send {"request": {"prompt": …}}',
            fields=("request",),
        )
    return read_model(model, value)


async def body_digest(request: Request) -> str:
    """SHA-256 of what the caller sent: path and body."""
    return hashlib.sha256(request.url.path.encode() + b"\0" + await request.body()).hexdigest()


def body_schema(model: type[BaseModel], *, description: str = "") -> dict[str, Any]:
    """The OpenAPI entry of a body that a route reads by `read_body`. The model is among the `components`."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    return {"requestBody": {"required": True, "content": content, "description": description}}


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def check_texts(value: Any) -> None:
    """Raise Refused for a text that UTF-8 or a database cannot hold."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, str):
            if "\0" in one or not _is_utf8(one):
                raise Refused(400, "the body holds a text with a NUL or half of a surrogate pair")
        elif isinstance(one, dict):
            pending += [*one, *one.values()]
        elif isinstance(one, list):
            pending += one


def _is_utf8(text: str) -> bool:
    """Whether UTF-8 can hold a text. Encoding it takes a thousandth of the time of a loop over megabytes."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
