"""What readers share: the texts in an image, and values that are taken over or named in a warning."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from limner.errors import InvalidPicture, InvalidRequest
from limner.request.fields import MAX_SEED
from limner.request.names import own_names

_HASH = re.compile(r"(?:sha256:|0x)?([0-9a-f]{8,64})", re.IGNORECASE)
_EMPTY: tuple[object, ...] = (None, "", False, "None", "none", [], {}, ())


@dataclass(frozen=True)
class Texts:
    """The texts in an image.

    Attributes:
        info: Of PNG chunks and the like, by their keys.
        comment: EXIF's UserComment, or a comment of the file.
        exif: Texts of EXIF's ImageDescription, Make, Model and Software.
        xmp: The XMP packet.
        name: What to call the image in messages.
        size: Width and height in pixels.
    """

    info: Mapping[str, str] = field(default_factory=dict)
    comment: str = ""
    exif: Mapping[str, str] = field(default_factory=dict)
    xmp: str = ""
    name: str = "the image"
    size: tuple[int, int] = (0, 0)

    @property
    def parameters(self) -> str:
        """The text that most programs write: the chunk `parameters`, or the UserComment."""
        return self.info.get("parameters") or self.comment

    def json(self, *texts: str | None) -> dict[str, Any]:
        """The first of some texts that is a JSON object; empty if none is."""
        for text in texts:
            if text and text.lstrip().startswith("{"):
                try:
                    value = json.loads(text)
                except (ValueError, RecursionError):
                    continue
                if isinstance(value, dict):
                    return value
        return {}


@dataclass(frozen=True)
class NamedModel:
    """A checkpoint that an image names.

    Attributes:
        name: Its name, without folders and suffix; empty where only the hash is known.
        sha256: The first digits of its hash, at least 8; empty where that is not known.
        family: As of `Entry` in the catalogue; empty where that is not known.
    """

    name: str = ""
    sha256: str = ""
    family: str = ""


@dataclass(frozen=True)
class NotTaken:
    """A value in an image that its request does not have.

    Attributes:
        name: What the program calls it; empty for what concerns no single value.
        value: As the image has it.
        reason: Why it is not taken over, and what to do about it.
        idle: Whether it changes no image.
    """

    name: str
    value: Any
    reason: str
    idle: bool = False


@dataclass(frozen=True)
class ReadRequest:
    """A request read from an image.

    Attributes:
        fields: Fields of a `GenerationRequest`.
        warnings: What the image says that these do not, and what to do about it.
        not_taken: The same value by value, and those that change no image. The model and unknown names are
            not among them.
        model: The checkpoint, which no field has; None where the image names none.
        hashes: Adapter -> first digits of its hash.
        unknown_names: Field -> the program's name of a sampler or sigma schedule that Limner lacks.
        refused: Why the request cannot be generated as the image says.
    """

    fields: dict[str, Any]
    warnings: tuple[str, ...] = ()
    not_taken: tuple[NotTaken, ...] = ()
    model: NamedModel | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    unknown_names: Mapping[str, str] = field(default_factory=dict)
    refused: InvalidRequest | None = None


IDLE = "it changes no image"
NO_FIELD = "no field of a request says this, though it may have changed the image"


class Values:
    """The values of another program's metadata. What is not taken is named in a warning by `request`.

    Args:
        overriding: Fields of the request and options of `limner.load` that are given besides.
    """

    def __init__(self, values: Mapping[str, Any], texts: Texts, overriding: Collection[str]) -> None:
        self._left = dict(values)
        self._texts, self._overriding = texts, overriding
        self.fields: dict[str, Any] = {}
        self.hashes: dict[str, str] = {}  # adapter -> first digits of its hash
        self.unknown_names: dict[str, str] = {}
        self._warnings: list[str] = []
        self._not_taken: list[NotTaken] = []
        self._model: NamedModel | None = None

    def take(self, key: str, default: Any = None) -> Any:
        """A value, which thereby is accounted for."""
        return self._left.pop(key, default)

    def text(self, key: str, name: str) -> None:
        """Take a text over as the field `name`."""
        value = self.take(key)
        if isinstance(value, str):
            self.fields[name] = value
        elif value is not None:
            self._left[key] = value

    def number(self, key: str, name: str, kind: Callable[[Any], float] = float) -> None:
        """Take a number over as the field `name`.

        Raises:
            InvalidPicture: it is none.
        """
        value = self.take(key)
        if value in (None, ""):
            return
        try:
            self.fields[name] = kind(value)
        except (TypeError, ValueError):
            raise InvalidPicture(f"{self._texts.name} says {key}: {value!r}, expected a number") from None

    def seed(self, key: str) -> None:
        """Take the seed over; one of 64 bits by its lower 32, of which the noise of a CPU depends alone."""
        self.number(key, "seed", int)
        if (seed := self.fields.get("seed", 0)) > MAX_SEED:
            self.fields["seed"] = seed % 2**32
        elif seed < 0:
            del self.fields["seed"]

    def samplers(self, sampler: str | None, schedule: str | None = None) -> None:
        """Take a sampler and a sigma schedule over; one that Limner does not have is named in a warning."""
        for name, value in (("sampler", sampler), ("sigma_schedule", schedule)):
            if value and name not in self._overriding:
                try:
                    self.fields = {**own_names(**{name: value}), **self.fields}
                except InvalidRequest:
                    self.unknown_names[name] = value
                    self._warnings.append(
                        f"its {name.replace('_', ' ')} {value} is none that Limner has: give another"
                    )

    def loras(self, loras: Iterable[tuple[str, Any, Any]]) -> None:
        """Take adapters over: name, weight, and weight in the text encoder or None."""
        found = []
        for name, weight, text_weight in loras:
            lora: dict[str, Any] = {"name": without_suffix(name), "weight": float(weight)}
            if text_weight is not None and float(text_weight) != float(weight):
                lora["text_weight"] = float(text_weight)
            found.append(lora)
        if found:
            self.fields["loras"] = found

    def model(self, name: object, sha256: object = "", family: str = "") -> None:
        """Take note of the model, and say that it is to be named.

        Args:
            sha256: The first digits of its hash; what is no such text counts as not known.
            family: Its family, where the image says it.
        """
        if name or sha256:
            called = without_suffix(name) if isinstance(name, str) else ""
            self._model = NamedModel(called, hash_digits(sha256), family)
        if "model" not in self._overriding:
            called = f", {shortened(name)}," if name else ""
            self._warnings.append(f"its model{called} is not looked for: give `model`")

    def warn(self, warning: str, said: Mapping[str, Any] | None = None) -> None:
        """Say that something is not taken over.

        Args:
            said: The values that this is about, by the program's names.
        """
        self._warnings.append(warning)
        self._not_taken += [NotTaken(name, value, warning) for name, value in (said or {"": None}).items()]

    def needs(self, fields: str, why: str, said: Mapping[str, Any] | None = None) -> None:
        """Say that images are to be given, unless they are. The values that this is about as in `warn`."""
        if not set(fields.replace("`", "").split(", ")) <= set(self._overriding):
            self.warn(f"{why}: give {fields}", said)

    def join(self, other: "Values", prefix: str = "") -> None:
        """Take over what other values say of names that are not known.

        Args:
            prefix: Of the fields of those names.
        """
        self._warnings += other._warnings
        self.unknown_names |= {prefix + name: value for name, value in other.unknown_names.items()}

    def request(self, idle: Collection[str] = ()) -> ReadRequest:
        """The request, with a warning for all values that were not taken and are not idle.

        Args:
            idle: Keys that change no image.
        """
        left = [(key, value) for key, value in self._left.items() if value not in _EMPTY]
        rest = [(key, value) for key, value in left if key not in idle]
        if rest:
            self._warnings.append(f"not taken over, though it may have changed the image: {grouped(rest)}")
        not_taken = [NotTaken(key, value, NO_FIELD) for key, value in rest]
        not_taken += [NotTaken(key, value, IDLE, idle=True) for key, value in left if key in idle]
        warnings = (f"{self._texts.name}: {warning}" for warning in dict.fromkeys(self._warnings))
        return ReadRequest(
            self.fields,
            tuple(warnings),
            (*self._not_taken, *not_taken),
            self._model,
            self.hashes,
            self.unknown_names,
        )


def hash_digits(value: object) -> str:
    """The digits of a SHA-256 or of its beginning in any usual spelling; empty for anything else."""
    match = _HASH.fullmatch(value.strip()) if isinstance(value, str) else None
    return match[1].lower() if match else ""


def without_suffix(name: str) -> str:
    """The name of a model file without folders, of either system, and without its suffix."""
    from ..a1111_write import file_stem

    return file_stem(name.replace("\\", "/"))


def shortened(value: object) -> str:
    """A value for messages, at most 60 characters long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def grouped(values: Iterable[tuple[str, Any]]) -> str:
    """Values as a short list; of many whose keys begin with one word, their number and the first two."""
    parts = []
    for word, group in groupby(sorted(values, key=lambda pair: pair[0]), lambda pair: pair[0].split()[0]):
        own = list(group)
        if len(own) > 3:
            parts.append(f"{word} ({len(own)} fields: {', '.join(key for key, _ in own[:2])} …)")
        else:
            parts += [f"{key}: {shortened(value)}" for key, value in own]
    return ", ".join(parts)
