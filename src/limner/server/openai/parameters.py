"""The parameters of OpenAI's Images API: their types and limits, and reading their values.

In a JSON body a value has its type; in a form each is a text. One table serves both. What has no counterpart
here is refused by name, except for the value that OpenAI itself takes where the parameter is left out: such a
value asks for nothing. None counts as left out, as the SDKs send it for it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from limner.request import MAX_SIDE, MIN_SIDE

from .errors import InvalidParameter

Operation = Literal["generation", "edit"]

MAX_IMAGES, MAX_PARTIAL_IMAGES = 10, 3  # OpenAI's limits of `n` and `partial_images`
_MULTIPLE = 8  # of a side, in pixels
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_NUMBER = re.compile(r"[+-]?\d{1,18}")
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class Parameter:
    """The type of a parameter's values, and which of them are taken.

    Attributes:
        type: str, int or bool.
        description: What it does here.
        choices: Texts that are taken; empty takes any.
        low, high: Range of a number, or of the length of a text.
        refused: Why values that OpenAI takes are refused here, by value.
    """

    type: type[Any]
    description: str
    choices: tuple[str, ...] = ()
    low: int = 0
    high: int | None = None
    refused: Mapping[str, str] | None = None

    @property
    def expected(self) -> str:
        """What values are taken, for messages."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.type is bool:
            return "true or false"
        if self.type is int:
            return f"a whole number from {self.low} to {self.high}"
        return f"a text of {self.low} to {self.high} characters" if self.high else "a text"

    @property
    def schema(self) -> dict[str, Any]:
        """As JSON schema. None is accepted for each parameter, and counts as left out."""
        kind = {str: "string", int: "integer", bool: "boolean"}[self.type]
        schema: dict[str, Any] = {"type": [kind, "null"], "description": self.description}
        if self.choices:
            schema["enum"] = [*self.choices, None]
        elif self.type is int:
            schema |= {"minimum": self.low, "maximum": self.high}
        elif self.type is str:
            schema |= {"minLength": self.low, "maxLength": self.high}
        return schema

    def read(self, name: str, value: Any, *, texts: bool) -> Any:
        """A value, checked.

        Args:
            texts: Whether the value comes from a form, where numbers are texts.

        Raises:
            InvalidParameter: Another type, or a value that is not taken.
        """
        read: Any = _from_text(self.type, value) if texts and isinstance(value, str) else value
        reason = self._fault(read)
        if reason is not None:
            expected = f"expected {self.expected}"
            if reason == "unsupported_value" and self.refused:
                expected = self.refused[read]
            raise InvalidParameter(name, f"{name} is {shown(value)}; {expected}", reason=reason)
        return read

    def _fault(self, value: Any) -> str | None:
        """OpenAI's code for what is wrong with a value; None for one that is taken."""
        if not isinstance(value, self.type) or isinstance(value, bool) is not (self.type is bool):
            return "invalid_type"
        if self.type is bool:
            return None
        if self.refused and value in self.refused:
            return "unsupported_value"
        if self.choices:
            return None if value in self.choices else "invalid_value"
        length = len(value) if isinstance(value, str) else int(value)
        if length < self.low or (self.high is not None and length > self.high):
            return "invalid_value"
        return None


_FORMATS = {
    "gif": "an animation is not drawn here: expected png, jpeg or webp",
    "svg": "vector images are not drawn here: expected png, jpeg or webp",
}
_COMMON: dict[str, Parameter] = {
    "prompt": Parameter(str, "What the images show.", low=1, high=65_536),
    "model": Parameter(str, "Model, alias, or a name of OpenAI's for the default model.", low=1, high=4096),
    "n": Parameter(int, "Number of images.", low=1, high=MAX_IMAGES),
    "size": Parameter(str, "WIDTHxHEIGHT in multiples of 8 pixels, or auto.", high=16),
    "quality": Parameter(
        str,
        "Number of steps relative to the model's own; `steps` overrides it.",
        choices=("auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"),
    ),
    "response_format": Parameter(
        str,
        "The file in base64, or an address that is valid for a day.",
        choices=("url", "b64_json"),
    ),
    "output_format": Parameter(str, "Format of the file.", choices=("png", "jpeg", "webp"), refused=_FORMATS),
    "output_compression": Parameter(int, "Quality of a jpeg or webp.", high=100),
    "background": Parameter(
        str,
        "Images are opaque.",
        choices=("auto", "opaque"),
        refused={"transparent": "no model here draws transparency: expected auto or opaque"},
    ),
    "stream": Parameter(bool, "Whether server-sent events are answered."),
    "partial_images": Parameter(
        int, "Number of previews of each image in a stream, at most.", high=MAX_PARTIAL_IMAGES
    ),
    "moderation": Parameter(str, "Without effect: no image is held back.", choices=("auto", "low")),
    "user": Parameter(str, "Repeated in the answer, and not stored.", high=512),
    "safety_identifier": Parameter(str, "Repeated in the answer, and not stored.", high=512),
}
_STYLES = {"natural": "describe the style in the prompt, or name one in styles"}
PARAMETERS: Mapping[Operation, Mapping[str, Parameter]] = {
    "generation": {
        **_COMMON,
        "style": Parameter(str, "Without effect.", choices=("vivid",), refused=_STYLES),
    },
    "edit": {
        **_COMMON,
        "input_fidelity": Parameter(
            str, "`high` keeps more of the image; `strength` overrides it.", choices=("high", "low")
        ),
    },
}
"""By operation: the parameters, without the images of an edit."""

REFUSED: Mapping[str, str] = {
    "complexity": "it concerns vector images, which are not drawn here",
    "svg": "vector images are not drawn here",
    "frame_count": "animations are not drawn here",
    "frame_duration_ms": "animations are not drawn here",
    "markup": "markup on images is not read: paint a mask, or describe the edit in the prompt",
}
"""Parameters of OpenAI's that are refused, and why."""


def read_size(value: str) -> tuple[int, int] | None:
    """Width and height of a `size`; None for "auto".

    Raises:
        InvalidParameter: Another text, or sides that cannot be drawn; the message has the nearest that can.
    """
    if value == "auto":
        return None
    match = _SIZE.fullmatch(value.strip().lower())
    if match is None:
        raise InvalidParameter(
            "size", f"size is {shown(value)}; expected WIDTHxHEIGHT in pixels, such as 512x512, or auto"
        )
    width, height = int(match[1]), int(match[2])
    if all(MIN_SIDE <= side <= MAX_SIDE and side % _MULTIPLE == 0 for side in (width, height)):
        return width, height
    nearest = dict.fromkeys(
        "x".join(str(_side(side, step)) for side in (width, height)) for step in (0, _MULTIPLE - 1)
    )
    raise InvalidParameter(
        "size",
        f"size is {value}; expected sides from {MIN_SIDE} to {MAX_SIDE} pixels that are multiples of "
        f"{_MULTIPLE}",
        hint=f"the nearest {'is' if len(nearest) == 1 else 'are'} {' and '.join(nearest)}",
    )


def shown(value: object) -> str:
    """A value for messages, not too long."""
    text = repr(value) if isinstance(value, str | int | float | bool) else f"a {type(value).__name__}"
    text = {"a dict": "an object", "a list": "a list", "a File": "a file"}.get(text, text)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _side(side: int, up: int) -> int:
    """The nearest side that can be drawn, the next larger one with `up` one less than the multiple."""
    return min(max((side + up) // _MULTIPLE * _MULTIPLE, MIN_SIDE), MAX_SIDE)


def _from_text(kind: type, text: str) -> Any:
    """The value of a text in a form; the text itself where it is none."""
    if kind is int and _NUMBER.fullmatch(text.strip()):
        return int(text)
    if kind is bool:
        return _BOOLEANS.get(text.strip().lower(), text)
    return text
