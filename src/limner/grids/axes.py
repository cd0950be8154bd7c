"""The axes of a grid: the fields that change from image to image, and their values.

    steps=10,20,30           values of any field of a request
    steps=10-30(+10)         from one number to another, as AUTOMATIC1111's X/Y/Z plot writes it
    steps=10-30[3]           three values, evenly spaced
    replace=cat,dog,boat     the prompts unchanged, then with "cat" replaced by each of the other words
    lora:ink=0,0.5,1         the weight of an adapter

A value that contains a comma is put in double quotes.
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
from limner.request import GenerationRequest, Lora, parts_of
from limner.request.loras import with_loras

REPLACE, LORA = "replace", "lora:"
_MOST_VALUES = 1000  # of one axis
_RANGE = re.compile(
    r"([+-]?\d+(?:\.\d*)?)\s*-\s*([+-]?\d+(?:\.\d*)?)\s*"
    r"(?:\(\s*([+-]\d+(?:\.\d*)?)\s*\)|\[\s*(\d+)\s*\])?"
)
_DIGITS = 9  # decimals to round to: 0.1 + 0.2 is 0.3


@dataclass(frozen=True)
class Axis:
    """One direction of a grid.

    Attributes:
        name: A field of a request, "replace", or "lora:" and the name of an adapter.
        values: Values of the field; for "replace" texts, of which the first is replaced in the prompts by the
            others; for an adapter weights.

    Raises:
        InvalidRequest: The name is none of these, or there are no values.
    """

    name: str
    values: Sequence[Any]

    def __post_init__(self) -> None:
        known = {*GenerationRequest.model_fields, REPLACE} - {"num_images", "schema_version"}
        if self.name not in known and not self.adapter:
            near = difflib.get_close_matches(self.name, known)
            like = f"; did you mean {' or '.join(near)}?" if near else ""
            raise InvalidRequest(
                f"{self.name!r} cannot be an axis{like}",
                hint="expected a field of a request, replace=, or lora:NAME=",
            )
        if not 1 <= len(self.values) <= _MOST_VALUES:
            many = "no" if not self.values else f"more than {_MOST_VALUES}"
            raise InvalidRequest(f"the axis {self.name} has {many} values", hint=f"{self.name}=one,another")

    @property
    def adapter(self) -> str:
        """The name of the adapter whose weight is the axis; "" for other axes."""
        return self.name.removeprefix(LORA) if self.name.startswith(LORA) else ""

    @classmethod
    def read(cls, text: str) -> "Axis":
        """Read an axis from a text such as "steps=10,20".

        Raises:
            InvalidRequest: The text is no axis, or a value is not valid for its field.
        """
        name, equals, listed = text.partition("=")
        name = name.strip()
        if not name.startswith(LORA):
            name = name.replace("-", "_").lower()
        if not equals:
            raise InvalidRequest(
                f"{text!r} is not an axis", hint="expected a name and values: steps=10,20,30"
            )
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
            InvalidRequest: The text to replace is not in the prompts, or the prompt sets the adapter's
                weight.
        """
        if self.name == REPLACE:
            first = self.values[0]
            prompts = {name: fields.get(name) or "" for name in ("prompt", "negative_prompt")}
            if not any(first in prompt for prompt in prompts.values()):
                raise InvalidRequest(
                    f"replace={first}: neither the prompt nor the negative prompt contains {first!r}",
                    hint="the first value is the text that the others replace",
                )
            changed = {
                name: prompt.replace(first, value) for name, prompt in prompts.items() if first in prompt
            }
            return {**fields, **changed}
        if self.adapter:
            prompt = {name: fields[name] for name in ("prompt", "prompt_syntax")}
            if any(lora.name == self.adapter for lora in with_loras(GenerationRequest.of(prompt)).loras):
                raise InvalidRequest(
                    f"the prompt already sets a weight of {self.adapter}",
                    hint=f"leave <lora:{self.adapter}> out of it",
                )
            others = [lora for lora in map(Lora.model_validate, fields["loras"]) if lora.name != self.adapter]
            return {**fields, "loras": (*others, {"name": self.adapter, "weight": value})}
        dropped = (
            {"revision", "variant"} if self.name == "model" else set()
        )  # they are those of another model
        return {**{name: kept for name, kept in fields.items() if name not in dropped}, self.name: value}

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the values on the sheet: texts alone, other values with the name of the axis."""
        name = self.adapter or self.name.replace("_", " ")
        return tuple(
            text if isinstance(value, str) else f"{name}: {text}"
            for value, text in zip(self.values, self.texts, strict=True)
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """The values as texts that `read` accepts; data URLs are shortened."""
        between = {"styles": ", ", "controls": "; ", "image_prompts": "; "}.get(self.name, " ")
        return tuple(_text(value, between) for value in self.values)


def requests_of(base: GenerationRequest, axes: Collection[Axis]) -> list[GenerationRequest]:
    """A request for each cell of a grid, row by row, table after table.

    Args:
        axes: In the order x, y, z; x changes fastest.

    Raises:
        InvalidRequest: Two axes are the same, or a value does not fit the other fields.
    """
    names = [axis.name for axis in axes if axis.name != REPLACE]
    if len(set(names)) < len(names):
        raise InvalidRequest(f"two axes are the same: {', '.join(names)}", hint="give all values to one axis")
    if base.num_images != 1:
        raise InvalidRequest(
            f"num_images is {base.num_images}; each cell of a grid has one image",
            hint="make the seed an axis: `z=seed=1-4`",
        )
    fields = base.model_dump(exclude_none=True)
    requests = []
    slowest_first = list(reversed(list(axes)))
    for values in product(*(axis.values for axis in slowest_first)):
        changed: dict[str, Any] = fields
        # Replacements apply to the prompt that another axis sets, so they come last.
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
    """The numbers of a range; None for other texts."""
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
        raise InvalidRequest(f"the range {text} is empty", hint="expected 1-5, 1-9(+2) or 9-1(-2)")
    count = int((last - first) / step + 1e-6) + 1
    return [kind(round(first + i * step, _DIGITS)) for i in range(min(count, _MOST_VALUES + 1))]


def _read_value(name: str, given: Any) -> Any:
    """A value of an axis in the type of its field. Raises InvalidRequest."""
    if name == REPLACE or not isinstance(given, str):
        return given
    if name.startswith(LORA):
        try:
            return float(given)
        except ValueError:
            raise InvalidRequest(f"{name}={given}: expected a weight, such as 0.8") from None
    read = GenerationRequest.read_text(name, given)
    if name in ("sampler", "hires_sampler"):
        return given  # it may name a sigma schedule too
    if isinstance(read, tuple) and any(isinstance(part, BaseModel) for part in read):
        return parts_of(name, given)  # adapters and controls as texts are shorter labels
    return read


def _text(value: Any, between: str) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return between.join(_text(part, between) for part in value)
    text = str(value)
    return f"{text[:32]}…" if text.startswith("data:") else text
