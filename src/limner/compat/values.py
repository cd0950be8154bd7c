"""Configs and outputs in diffusers' form: dicts with attributes, and dataclasses that also index like
tuples."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from limner.errors import InvalidRequest

T = TypeVar("T")


class UnsupportedAttribute(InvalidRequest, AttributeError):
    """Access to an attribute that diffusers has and Limner does not support."""


class Config(dict[str, Any]):
    """A config: a dict whose keys are also attributes. Treat it as read-only."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this config has no {name!r}") from None


@dataclass
class Output:
    """Base of network and pipeline outputs. Fields are read by attribute, by name or by index."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None."""
        return tuple(value for _, value in self._parts())

    def keys(self) -> list[str]:
        """The names of the fields that are not None."""
        return [name for name, _ in self._parts()]

    def __getitem__(self, which: int | slice | str) -> Any:
        if isinstance(which, str):
            return dict(self._parts())[which]
        return self.to_tuple()[which]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def _parts(self) -> Iterator[tuple[str, Any]]:
        for field in fields(self):
            if (value := getattr(self, field.name)) is not None:
                yield field.name, value


def named_subclasses(base: type[T], suffix: str) -> dict[str, type[T]]:
    """Name -> class, for all direct and indirect subclasses of `base` whose names end with `suffix`."""
    found: dict[str, type[T]] = {}
    for subclass in base.__subclasses__():
        if subclass.__name__.endswith(suffix):
            found[subclass.__name__] = subclass
        found |= named_subclasses(subclass, suffix)
    return found
