"""Values in the form that diffusers gives them: configs and outputs whose parts have names and numbers."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from limner.errors import InvalidRequest


class NotOffered(InvalidRequest, AttributeError):
    """An attribute that diffusers has and Limner does not."""


class Config(dict[str, Any]):
    """A config: a dict whose keys are attributes too. It is not to be written to."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this config has no {name!r}") from None


@dataclass
class Output:
    """What a network or a pipeline gives: parts by attribute, by name or by number."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The parts that are there."""
        return tuple(value for _, value in self._parts())

    def keys(self) -> list[str]:
        """The names of the parts that are there."""
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
