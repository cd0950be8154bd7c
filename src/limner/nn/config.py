"""Strict reading of a network's `config.json`.

A key is a field of the network, or has a supported value that is checked, or is known to have no effect.
Anything else is an error: ignoring it would mean running another network than the file describes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

T = TypeVar("T")


def read_config(
    cls: type[T],
    values: Mapping[str, Any],
    *,
    supported: Mapping[str, tuple[Any, ...]],
    without_effect: Iterable[str] = (),
) -> T:
    """Build the config dataclass `cls` from a hub `config.json`.

    Args:
        cls: a dataclass; each of its fields is a key, and lists become tuples.
        values: the parsed JSON. Keys that begin with `_` are provenance and skipped.
        supported: Keys without a field in `cls`, and the supported values of each.
        without_effect: keys that may hold anything.

    Raises:
        ValueError: naming the key and the value, for an unknown key, an unsupported value or a
            missing key that has no default.
    """
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    without_effect = frozenset(without_effect)
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key.startswith("_") or key in without_effect:
            continue
        if key in known:
            # An explicit null means "as if absent", which is how the hub writes new optional keys.
            if value is not None or known[key].default is None:
                given[key] = tuple(value) if isinstance(value, list) else value
        elif key in supported:
            if value not in supported[key]:
                allowed = " or ".join(repr(v) for v in supported[key])
                raise ValueError(f"{key} is {value!r}; only {allowed} is supported")
        else:
            raise ValueError(f"unknown key {key!r} (value {value!r})")
    for name, field in known.items():
        if name not in given and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"missing key {name!r}")
    return cls(**given)


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless `condition` holds: a config's own consistency checks."""
    if not condition:
        raise ValueError(message)
