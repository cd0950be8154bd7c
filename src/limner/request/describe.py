"""The schema of a request in words: what each field accepts, for help texts and the reference page."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

from .fields import MAX_SEED, Group
from .parsing import SCHEMA_VERSION
from .parts import Control, ImagePrompt, Lora
from .request import GenerationRequest

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class FieldDescription:
    """A field of a request.

    Attributes:
        group: Heading that it stands under.
        kind: "text", "integer", "number", "flag", "tuple" of fixed length, "list", or the class of an item.
        items: For a tuple, the kind of its elements; for a list, the name of its items' class or "text".
        accepts: Choices or range, such as "0 to 1"; "" where there is no limit worth a word.
        default: As JSON; None where there is none.
        parts: Names of a tuple's elements.
        also: Names that other programs have for it.
    """

    name: str
    group: str
    description: str
    kind: str
    items: str = ""
    accepts: str = ""
    default: Any = None
    required: bool = False
    parts: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    examples: tuple[Any, ...] = ()


@cache
def describe(model: type[BaseModel] = GenerationRequest) -> tuple[FieldDescription, ...]:
    """The fields of a request in the order of the groups; of one of its parts, required ones first."""
    schema = model.model_json_schema()
    groups = [group.value for group in Group]
    fields = [
        _field(name, prop, schema) for name, prop in schema["properties"].items() if name != "schema_version"
    ]
    order = {field.name: groups.index(field.group) if field.group else not field.required for field in fields}
    return tuple(sorted(fields, key=lambda field: order[field.name]))


def _field(name: str, prop: Schema, schema: Schema) -> FieldDescription:
    kind = _without_null(prop)
    accepts = _accepts(kind, prop.get("unit", ""))
    first = name.removeprefix("hires_")
    if "enum" in kind and first != name and _without_null(schema["properties"].get(first, {})) == kind:
        accepts = f"as {first}"
    return FieldDescription(
        name=name,
        group=prop.get("group", ""),
        description=prop["description"],
        kind=_kind(kind),
        items=_items(kind),
        accepts=accepts,
        default=prop.get("default"),
        required=name in schema.get("required", ()),
        parts=tuple(prop.get("parts", ())),
        also=tuple(prop.get("also", ())),
        examples=tuple(prop.get("examples", ())),
    )


def _without_null(schema: Schema) -> Schema:
    return next((one for one in schema.get("anyOf", ()) if one.get("type") != "null"), schema)


def _kind(schema: Schema) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema["type"] == "array":
        return "tuple" if "prefixItems" in schema else "list"
    kind = str(schema["type"])
    return {"string": "text", "boolean": "flag"}.get(kind, kind)


def _items(schema: Schema) -> str:
    if "prefixItems" in schema:
        return _kind(schema["prefixItems"][0])
    return _kind(schema["items"]) if schema.get("type") == "array" else ""


def _accepts(schema: Schema, unit: str) -> str:
    """Choices or range in words, such as "64 to 4096 pixels, a multiple of 8"."""
    if "enum" in schema:
        *most, last = schema["enum"]
        return f"{', '.join(most)} or {last}"
    if "prefixItems" in schema:
        each = _accepts(schema["prefixItems"][0], unit)
        return f"each {each}" if each else ""
    if schema.get("type") not in ("integer", "number"):
        return f"at most {schema['maxItems']}" if "maxItems" in schema else ""
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        said = f"{low:g} to 2^53 - 1" if high == MAX_SEED else f"{low:g} to {high:g}"
    else:
        bounds = (
            (low, "at least"),
            (above, "above"),
            (high, "at most"),
            (below, "below"),
        )
        said = ", ".join(f"{word} {bound:g}" for bound, word in bounds if bound is not None)
    if unit:
        said = f"{said} {unit}".strip()
    return f"{said}, a multiple of {schema['multipleOf']:g}" if "multipleOf" in schema else said


def reference() -> str:
    """The reference page of a request's schema, in Markdown."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    yield from (
        "# Fields of a request",
        "",
        "<!-- Written by `limner schema --markdown`; a test compares them. -->",
        "",
        "A `GenerationRequest` in Python, a line of `limner batch` and the record in an image have these",
        "fields. The options of `limner generate` are the same with hyphens; a list is given by an option in",
        "the singular that may be repeated. `limner schema` prints the JSON schema.",
        f"This is version {SCHEMA_VERSION} of the schema, which is stored as `schema_version`.",
    )
    group = None
    for field in describe():
        if field.group != group:
            group = field.group
            yield from ("", f"## {group}", "")
            yield from ("| Field | Value | Default | |", "|---|---|---|---|")
        yield _row(field)
    for part in (Lora, Control, ImagePrompt):
        yield from ("", f"## {part.__name__}", "", *str(part.__doc__).strip().splitlines()[:1], "")
        yield from ("| Field | Value | Default | |", "|---|---|---|---|")
        yield from map(_row, describe(part))


def _row(field: FieldDescription) -> str:
    kind = {"list": f"list of {field.items}", "flag": "true or false"}.get(field.kind, field.kind)
    if field.kind == "tuple":
        kind = f"{field.items}s: {', '.join(field.parts)}"
    value = f"{kind}; {field.accepts}" if field.accepts else kind
    if field.kind == "text" and field.accepts:
        value = field.accepts
    default = (
        "required" if field.required else "" if field.default in (None, []) else f"`{_json(field.default)}`"
    )
    also = f" Elsewhere: {', '.join(f'`{name}`' for name in field.also)}." if field.also else ""
    example = f" Example: `{_json(field.examples[0])}`." if field.examples else ""
    description = f"{field.description}{example}{also}".replace("|", "\\|")
    return f"| `{field.name}` | {value} | {default} | {description} |"


def _json(value: Any) -> str:
    return json.dumps(value).strip('"')
