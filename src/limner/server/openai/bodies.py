"""Bodies of requests: JSON, or a form whose names spell lists and objects, read into one shape.

The SDKs send `image`, or `image[]` repeated; others `image[0]`, `image[1]`. An object in a form is
`loras[0][name]`, or `loras[][name]` repeated: a key that the last entry has begins another.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import InvalidParameter
from .parameters import shown

_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_KEY = re.compile(r"\[([^\[\]]*)\]")
_SIGNATURES = ("\x89PNG\r\n\x1a\n", "\xff\xd8\xff")  # of PNG and JPEG, as Latin-1
_MAX_DEPTH = 8  # of names in a form
_MAX_INDEX = 1000


@dataclass(frozen=True)
class File:
    """An uploaded file. Its declared type is not trusted."""

    data: bytes = field(repr=False)
    name: str = ""


@dataclass(frozen=True)
class Body:
    """The body of a request.

    Attributes:
        values: By name; texts, numbers, lists and mappings as in JSON, and files.
        texts: Whether it is a form, in which numbers are texts.
    """

    values: Mapping[str, Any]
    texts: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of the body. The boundary of a form, which differs at each try, does not count."""
        text = json.dumps(self.values, sort_keys=True, default=_digest_of)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_object(value: Any) -> Body:
    """The body of a JSON value.

    Raises:
        InvalidParameter: It is no object.
    """
    if not isinstance(value, dict):
        raise InvalidParameter(
            None,
            f"the body is {shown(value)}; expected an object with a prompt",
            reason="invalid_type",
        )
    return Body(value)


def read_form(pairs: Iterable[tuple[str, "str | File"]]) -> Body:
    """The body of a form.

    Args:
        pairs: Names and values, in the order of the form.

    Raises:
        InvalidParameter: A name that cannot be read, or that contradicts another.
    """
    root: dict[Any, Any] = {}
    for name, value in pairs:
        match = _NAME.fullmatch(name)
        keys = _KEY.findall(match[2]) if match else []
        if match is None or len(keys) > _MAX_DEPTH:
            raise InvalidParameter(
                name[:60], f"{name[:60]!r} is not the name of a parameter", reason="unknown_parameter"
            )
        _insert(root, [match[1], *keys], value, match[1])
    return Body({name: _finished(value) for name, value in root.items()}, texts=True)


def file_in(text: str) -> File | None:
    """The image file that a client has sent without a file's name, which is thus read as a text in Latin-1.

    None for any other text: no image file begins with characters that a text begins with.
    """
    return File(text.encode("latin-1", "replace")) if text.startswith(_SIGNATURES) else None


def decode_base64(text: str, param: str) -> bytes:
    """The bytes of a data URL, or of base64 as clients send it: with blanks, without padding, URL-safe.

    Raises:
        InvalidParameter: It is neither.
    """
    if text.startswith(("http://", "https://")):
        raise InvalidParameter(
            param,
            f"{param} is an address, and images are not fetched from addresses here",
            hint="send the image itself, as a file or a data: URL",
            reason="unsupported_value",
        )
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    encoded = "".join(encoded.split()).rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise InvalidParameter(
            param,
            f"{param} cannot be decoded; expected a file, a data: URL, or base64",
            reason="invalid_base64",
        )
    return data


def _insert(node: dict[Any, Any], keys: list[str], value: "str | File", name: str) -> None:
    """Put a value where its keys say. A list is a mapping with numbers for keys until it is finished."""
    key, *rest = keys
    place: str | int = key
    if key == "" or key.isdecimal():
        last = max((one for one in node if isinstance(one, int)), default=-1)
        if key:
            place = int(key) if len(key) < 6 else _MAX_INDEX
        else:  # an entry of objects is filled until it has the key
            filling = rest and isinstance(node.get(last), dict) and rest[0] not in node[last]
            place = last if filling else last + 1
        if place >= _MAX_INDEX:
            raise InvalidParameter(name, f"{name} has more than {_MAX_INDEX} entries")
    if node and isinstance(next(iter(node)), int) != isinstance(place, int):
        raise InvalidParameter(name, f"{name} is given both as a list and as an object or a value")
    if not rest:
        if place in node:  # the same name again: a list
            earlier = node[place]
            several = earlier if isinstance(earlier, dict) else {0: earlier}
            _insert(several, [""], value, name)
            node[place] = several
        else:
            node[place] = value
        return
    inner = node.setdefault(place, {})
    if not isinstance(inner, dict):
        inner = node[place] = {0: inner}  # `image`, then `image[]`
    _insert(inner, rest, value, name)


def _finished(value: Any) -> Any:
    """A value with lists where the keys are numbers."""
    if not isinstance(value, dict):
        return value
    if all(isinstance(key, int) for key in value):
        return [_finished(value[key]) for key in sorted(value)]
    return {key: _finished(inner) for key, inner in value.items()}


def _digest_of(value: Any) -> str:
    if isinstance(value, File):
        return hashlib.sha256(value.data).hexdigest()
    raise TypeError(f"{type(value).__name__} has no digest")
