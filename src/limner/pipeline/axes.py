"""The axes of a grid of pictures: what changes from one picture to the next, and through which values.

    steps=10,20,30           any field of a request, by its values
    steps=10-30(+10)         from one number to another, as AUTOMATIC1111's X/Y/Z plot writes it
    steps=10-30[3]           three of them, spread evenly
    replace=cat,dog,boat     prompts with "cat" as they stand, then with another word in its place
    lora:ink=0,0.5,1         the weight of an adapter

A value with a comma in it stands in double quotes.
"""

import csv
import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from limner.errors import InvalidRequest
from limner.prompts.networks import take_networks
from limner.request import GenerationRequest, Lora, parts_of

REPLACE, LORA = "replace", "lora:"
_MOST_VALUES = 1000  # of one axis
_RANGE = re.compile(
    r"([+-]?\d+(?:\.\d*)?)\s*-\s*([+-]?\d+(?:\.\d*)?)\s*"
    r"(?:\(\s*([+-]\d+(?:\.\d*)?)\s*\)|\[\s*(\d+)\s*\])?"
)
_DIGITS = 9  # behind the point: 0.1 + 0.2 is 0.3


@dataclass(frozen=True)
class Axis:
    """What one direction of a grid shows.

    Attributes:
        name: a field of a request; "replace"; or "lora:" and the name of an adapter.
        values: of the field; texts, the first of which the others take the place of in the prompts; weights.

    Raises:
        InvalidRequest: nothing of this name can be an axis, or there are no values.
    """

    name: str
    values: Sequence[Any]

    def __post_init__(self) -> None:
        known = {*GenerationRequest.model_fields, REPLACE} - {"num_images"}
        if self.name not in known and not self.adapter:
            near = difflib.get_close_matches(self.name, known)
            like = f"; much like it: {', '.join(near)}" if near else ""
            raise InvalidRequest(
                f"{self.name!r} cannot be an axis{like}",
                hint="expected a field that one picture has, replace=, or lora:NAME=",
            )
        if not 1 <= len(self.values) <= _MOST_VALUES:
            many = "no" if not self.values else f"more than {_MOST_VALUES}"
            raise InvalidRequest(f"the axis {self.name} has {many} values", hint=f"{self.name}=one,another")

    @property
    def adapter(self) -> str:
        """The name of the adapter whose weight this is; empty where it is no such axis."""
        return self.name.removeprefix(LORA) if self.name.startswith(LORA) else ""

    @classmethod
    def read(cls, text: str) -> "Axis":
        """An axis as a text says it: "steps=10,20". A value with a comma in it stands in double quotes.

        Raises:
            InvalidRequest: it says none, or a value is not one of its field.
        """
        name, equals, listed = text.partition("=")
        name = name.strip()
        if not name.startswith(LORA):
            name = name.replace("-", "_").lower()
        if not equals:
            raise InvalidRequest(f"{text!r} is no axis", hint="expected a name and values: steps=10,20,30")
        axis = cls(name, [part.strip() for part in next(csv.reader([listed], skipinitialspace=True), [])])
        kind = float if name.startswith(LORA) else _kind(name)
        numbers = [_range(part, kind) if kind else None for part in axis.values]
        values = [
            value for part, several in zip(axis.values, numbers, strict=True) for value in several or [part]
        ]
        return cls(name, [_read_value(name, value) for value in values])

    def applied(self, fields: Mapping[str, Any], value: Any) -> dict[str, Any]:
        """The fields of a request with a value of this axis.

        Raises:
            InvalidRequest: the first value of a replacement is not in the prompts.
        """
        if self.name == REPLACE:
            first = self.values[0]
            prompts = {name: fields.get(name) or "" for name in ("prompt", "negative_prompt")}
            if not any(first in prompt for prompt in prompts.values()):
                raise InvalidRequest(
                    f"replace={first}: neither the prompt nor the negative prompt has {first!r} in it",
                    hint="the first value is what the others take the place of",
                )
            changed = {
                name: prompt.replace(first, value) for name, prompt in prompts.items() if first in prompt
            }
            return {**fields, **changed}
        if self.adapter:
            _, tags = take_networks(fields["prompt"])
            if any(tag.kind == "lora" and tag.items[:1] == (self.adapter,) for tag in tags):
                raise InvalidRequest(
                    f"the prompt gives {self.adapter} a weight of its own",
                    hint=f"leave <lora:{self.adapter}> out of it",
                )
            others = [lora for lora in map(Lora.model_validate, fields["loras"]) if lora.name != self.adapter]
            return {**fields, "loras": (*others, {"name": self.adapter, "weight": value})}
        dropped = {"revision", "variant"} if self.name == "model" else set()  # they are of another model
        return {**{name: kept for name, kept in fields.items() if name not in dropped}, self.name: value}

    @property
    def labels(self) -> tuple[str, ...]:
        """What stands beside the pictures: a text alone, anything else with its name."""
        name = self.adapter or self.name.replace("_", " ")
        return tuple(
            text if isinstance(value, str) else f"{name}: {text}"
            for value, text in zip(self.values, self.texts, strict=True)
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """The values as `read` takes them, but for whole pictures, of which only the beginning is told."""
        between = {"styles": ", ", "controls": "; ", "image_prompts": "; "}.get(self.name, " ")
        return tuple(_text(value, between) for value in self.values)


def requests_of(base: GenerationRequest, axes: Collection[Axis]) -> list[GenerationRequest]:
    """A request for each picture of a grid, row by row, table after table.

    Args:
        axes: x, which changes fastest, first.

    Raises:
        InvalidRequest: an axis twice, or a value that makes no request.
    """
    names = [axis.name for axis in axes if axis.name != REPLACE]
    if len(set(names)) < len(names):
        raise InvalidRequest(f"two axes are the same: {', '.join(names)}", hint="give one all the values")
    if base.num_images != 1:
        raise InvalidRequest(
            f"num_images is {base.num_images}; each place of a grid has one picture",
            hint="make seeds an axis: --z seed=1-4",
        )
    fields = base.model_dump(exclude_none=True)
    requests = []
    slowest_first = list(reversed(list(axes)))
    for values in product(*(axis.values for axis in slowest_first)):
        changed: dict[str, Any] = fields
        # Words are replaced in the prompt that another axis gives, so last.
        chosen = zip(slowest_first, values, strict=True)
        for axis, value in sorted(chosen, key=lambda pair: pair[0].name == REPLACE):
            changed = axis.applied(changed, value)
        requests.append(GenerationRequest.of(changed))
    return requests


def _kind(name: str) -> type[int] | type[float] | None:
    """The type of a field that is a number."""

    def kinds(annotation: Any) -> set[Any]:
        if get_origin(annotation) is tuple:
            return set()
        return {annotation}.union(*map(kinds, get_args(annotation)))

    field = GenerationRequest.model_fields.get(name)
    found = set() if field is None else kinds(field.annotation)
    return int if int in found else float if float in found else None


def _range(text: str, kind: type[int] | type[float]) -> list[int] | list[float] | None:
    """The numbers of a range; None for what is none."""
    match = _RANGE.fullmatch(text)
    if match is None or (kind is int and "." in text):
        return None
    first, last = kind(match[1]), kind(match[2])
    if match[4] is not None:
        count = int(match[4])
        spread = (
            first + (last - first) * (i / max(count - 1, 1)) for i in range(min(count, _MOST_VALUES + 1))
        )
        return [kind(round(value, _DIGITS)) for value in spread]
    step = kind(match[3] or (1 if last >= first else -1))
    if not step or (last - first) / step < 0:
        raise InvalidRequest(
            f"the range {text} has no numbers in it", hint="expected 1-5, 1-9(+2) or 9-1(-2)"
        )
    count = int((last - first) / step + 1e-6) + 1
    return [kind(round(first + i * step, _DIGITS)) for i in range(min(count, _MOST_VALUES + 1))]


def _read_value(name: str, given: Any) -> Any:
    """A value of an axis as its field has it. Raises InvalidRequest."""
    if name == REPLACE or not isinstance(given, str):
        return given
    if name.startswith(LORA):
        try:
            return float(given)
        except ValueError:
            raise InvalidRequest(f"{name}={given}: expected a weight, such as 0.8") from None
    read = GenerationRequest.read_text(name, given)
    if name in ("sampler", "hires_sampler"):
        return given  # which may say a sigma schedule too
    if isinstance(read, tuple) and any(isinstance(part, BaseModel) for part in read):
        return parts_of(name, given)  # adapters and controls, which are shorter as texts
    return read


def _text(value: Any, between: str) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return between.join(_text(part, between) for part in value)
    text = str(value)
    return f"{text[:32]}…" if text.startswith("data:") else text
