"""Reading a request: versions of its schema, names of other programs, texts, and errors."""

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from limner.errors import InvalidRequest

from .fields import MIN_SIDE
from .names import own_names, own_upscaler

SCHEMA_VERSION = "1.1"
_UPDATE = "install a newer version of Limner"


def with_own_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, with Limner's names for samplers, sigma schedules and upscalers.

    Raises:
        InvalidRequest: a name that is not known.
    """
    own = dict(fields)
    for prefix in ("", "hires_"):
        names = {
            name: fields[prefix + name]
            for name in ("sampler", "sigma_schedule")
            if isinstance(fields.get(prefix + name), str)
        }
        own |= {prefix + name: value for name, value in own_names(**names, prefix=prefix).items()}
    if isinstance(fields.get("hires_upscaler"), str):
        own["hires_upscaler"] = own_upscaler(fields["hires_upscaler"])
    return own


def check_version(version: object, fields: Collection[str], known: Collection[str]) -> None:
    """Refuse a request of a newer schema version that this one cannot read whole.

    Args:
        fields: of the request.
        known: the fields of this version.

    Raises:
        PydanticCustomError: what `version` is and what this version of Limner reads.
    """
    if not isinstance(version, str) or not re.fullmatch(r"\d{1,9}\.\d{1,9}", version):
        raise invalid_fields(
            f"schema_version is {version!r}; expected two numbers such as '{SCHEMA_VERSION}'", None
        )
    newer = f"the request is of schema version {version}, and this version of Limner reads {SCHEMA_VERSION}"
    given, own = (tuple(map(int, text.split("."))) for text in (version, SCHEMA_VERSION))
    if given[0] > own[0]:
        raise invalid_fields(newer, _UPDATE)
    unknown = {*fields} - {*known}
    if given > own and unknown:
        raise invalid_fields(f"{newer}, which lacks {', '.join(sorted(unknown))}", _UPDATE)


def invalid_fields(message: str, hint: str | None) -> PydanticCustomError:
    """An error for pydantic to report, with the hint that `invalid_request` gives."""
    context = {"message": message} if hint is None else {"message": message, "hint": hint}
    return PydanticCustomError("invalid_request", "{message}", context)


_BETWEEN_ITEMS = re.compile(r";\s*(?=[a-z_]+=)")
# Separators of a tuple's elements other than blanks: names of styles and values of items contain blanks.
_SEPARATORS = {
    "styles": re.compile(r"\s*,\s*"),
    "controls": _BETWEEN_ITEMS,
    "image_prompts": _BETWEEN_ITEMS,
}


def parts_of(name: str, text: str) -> tuple[str, ...]:
    """The elements of the tuple that a text, such as a cell of a table, gives for the field `name`."""
    return tuple(_SEPARATORS[name].split(text.strip()) if name in _SEPARATORS else text.split())


def invalid_request(error: ValidationError, fields: Mapping[str, FieldInfo], *field: str) -> InvalidRequest:
    """Pydantic's error as one sentence that names each field at fault, what it is and what is expected.

    Args:
        fields: of the request, to suggest the one that was meant.
        field: of the request that was validated alone, if it was one.
    """
    faults, names = [], []
    for fault in error.errors(include_url=False):
        message = fault["msg"].removeprefix("Value error, ")
        where = (*field, *fault["loc"])
        if not where:
            faults.append(message)
            continue
        given = repr(fault["input"])
        shown = given if len(given) <= 60 else f"{given[:57]}…"
        name = ".".join(map(str, where))
        names.append(str(where[0]))
        if fault["type"] == "extra_forbidden":
            faults.append(f"{name} is not a field of a request")
        elif fault["type"] == "missing":
            faults.append(f"{name} is missing")
        else:
            faults.append(f"{name} is {shown}: {message[0].lower()}{message[1:]}")
    return InvalidRequest("; ".join(faults), hint=_hint(error, fields), fields=tuple(dict.fromkeys(names)))


def _hint(error: ValidationError, fields: Mapping[str, FieldInfo]) -> str | None:
    """What to do about the error, where it has a single fault and that is plain."""
    [fault, *others] = error.errors(include_url=False)
    if not others and "hint" in fault.get("ctx", {}):
        return str(fault["ctx"]["hint"])
    name = fault["loc"][-1] if fault["loc"] and not others else None
    if name in ("width", "height") and fault["type"] == "multiple_of" and int(fault["input"]) > MIN_SIDE:
        unit = fault["ctx"]["multiple_of"]
        below = int(fault["input"]) // unit * unit
        return f"the nearest are {below} and {below + unit}"
    if name in ("seed", "variation_seed") and fault["type"] == "greater_than_equal":
        return "leave it out for a random one"
    if fault["type"] == "extra_forbidden" and isinstance(name, str):
        also = {other: own for own, info in fields.items() for other in other_names(info)}
        near = get_close_matches(also.get(name, name), fields, 1)
        if near:
            return f"did you mean {near[0]}?"
    return None


def other_names(field: FieldInfo) -> tuple[str, ...]:
    """The names that other programs have for a field."""
    extra = field.json_schema_extra
    also = extra.get("also", ()) if isinstance(extra, dict) else ()
    return tuple(str(name) for name in also) if isinstance(also, list) else ()
