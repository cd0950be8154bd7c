"""Canonical JSON by RFC 8785: one sequence of bytes for a value, whoever writes it.

Objects are sorted by the UTF-16 code units of their keys, and numbers are written as ECMAScript writes them.
"""

import math
from collections.abc import Mapping
from json.encoder import encode_basestring
from typing import Any

_LARGEST = 2**53  # whole numbers beyond it are not exact in ECMAScript


def canonical(value: Any) -> bytes:
    """The canonical bytes of a JSON value.

    Raises:
        ValueError: It holds what JSON does not: NaN, infinity, halves of surrogate pairs, other types.
    """
    return _written(value).encode()


def storable(value: Any) -> Any:
    """A JSON value without what `canonical` refuses: such parts are replaced by text."""
    if isinstance(value, Mapping):
        return {_text(str(key)): storable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [storable(one) for one in value]
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= _LARGEST or _is_exact(value) else str(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    return _text(str(value))


def _text(value: str) -> str:
    return value.encode("utf-8", "backslashreplace").decode()


def _written(value: Any) -> str:
    if isinstance(value, str):
        return encode_basestring(value)
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, int):
        return str(value) if abs(value) <= _LARGEST else _large(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        names: list[str] = list(value)
        ordered = sorted(names) if all(map(str.isascii, names)) else sorted(names, key=_units)
        return "{" + ",".join(f"{encode_basestring(name)}:{_written(value[name])}" for name in ordered) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_written, value)) + "]"
    raise ValueError(f"{type(value).__name__} is no type of JSON")


def _large(value: int) -> str:
    """A whole number that may not be one of JSON."""
    if not _is_exact(value):
        raise ValueError(f"{value} is not exact in JSON")
    return _number(float(value))


def _is_exact(value: int) -> bool:
    """Whether a whole number is a double, or is written as one is."""
    try:
        return float(value) == value or _number(float(value)) == str(value)
    except OverflowError:
        return False


def _units(name: str) -> bytes:
    return name.encode("utf-16-be")


def _number(value: float) -> str:
    """A number as ECMAScript's Number::toString writes it: the shortest digits that give it back."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is no number of JSON")
    if value == 0:
        return "0"
    text = repr(value)
    if "e" not in text:
        return text.removesuffix(".0")
    sign = "-" if value < 0 else ""
    mantissa, _, power = text.lstrip("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(power or 0) - (len(whole + fraction) - len(digits))  # digits before the point
    digits = digits.rstrip("0")
    if 0 < point <= 21:
        left = digits[:point].ljust(point, "0")
        return sign + left + (f".{digits[point:]}" if len(digits) > point else "")
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    exponent = f"e{'+' if point > 0 else '-'}{abs(point - 1)}"
    return sign + digits[0] + (f".{digits[1:]}" if len(digits) > 1 else "") + exponent
