"""Compares an image with the one that its record draws again, and says what may explain a difference.

An image is identified by its pixels as they were drawn: the record has their hash. A watermark and a lossy
format change the pixels of a file afterwards, in ways that can be repeated: the watermark with its id and
key, the format with the quality that Limner writes by default. So the file too is compared bit for bit.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limner.errors import LimnerError
from limner.images.inputs import inputs_of, map_inputs
from limner.images.picture import Picture, encode, pixel_hash
from limner.images.record import Record

from .watermark import embed

File = Literal["drawn", "watermarked", "compressed", "other"]

_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF")
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Comparison:
    """A file and the image drawn again from its record.

    Attributes:
        same: Whether the new image has the pixels that the record names; None if the record names none.
        file: What the pixels of the file equal, bit for bit: the new image ("drawn"), that with the watermark
            of the record ("watermarked"), either after compression in the file's format ("compressed"), or
            none of these ("other").
        difference: Difference of each colour between the file and the nearest of these, [H, W, 3] in
            [0, 255]; None if the sizes differ.
    """

    same: bool | None
    file: File
    difference: NDArray[np.uint8] | None = field(repr=False, compare=False)

    @property
    def holds(self) -> bool:
        """Whether the file is what its record draws."""
        return self.same is not False and self.file != "other"

    @property
    def most(self) -> int | None:
        """Greatest difference of colours, of 255; None if the sizes differ."""
        return None if self.difference is None else int(self.difference.max())

    @property
    def mean(self) -> float | None:
        """Mean difference of colours, of 255; None if the sizes differ."""
        return None if self.difference is None else float(self.difference.mean())

    @property
    def differing(self) -> float | None:
        """Share of pixels that differ, in [0, 1]; None if the sizes differ."""
        return None if self.difference is None else float(self.difference.any(axis=2).mean())

    def map(self) -> Image.Image | None:
        """A picture of the differences, the greatest as white; None if the sizes differ."""
        if self.difference is None:
            return None
        scale = 255.0 / max(int(self.difference.max()), 1)
        return Image.fromarray((self.difference * scale).round().astype(np.uint8))


@dataclass(frozen=True)
class Difference:
    """Something that bits depend on and that differs.

    Attributes:
        name: What: "weights", "input images", "request steps", or a key of the record's model or environment,
            such as "torch", "device", "precision" or "lora NAME".
        was, now: Its value then and now; for files the beginnings of their hashes.
    """

    name: str
    was: str
    now: str

    def __str__(self) -> str:
        return f"{self.name} was {self.was}, is {self.now}"


def compare(
    pixels: Image.Image, format: str, record: Record, again: Picture, keys: Sequence[bytes] = ()
) -> Comparison:
    """Compare the pixels of a file with the image drawn again from its record.

    Args:
        pixels: The pixels of the file.
        format: Its format, in Pillow's spelling.
        record: The record in the file.
        again: The new image, without a watermark.
        keys: Keys with which the watermark may have been made.
    """
    same = pixel_hash(again) == record.pixels if record.pixels else None
    seen = np.asarray(pixels.convert("RGB"))
    nearest: tuple[float, NDArray[np.uint8]] | None = None
    for file, image in _candidates(again, record, format, keys):
        candidate = np.asarray(image.convert("RGB"))
        if candidate.shape != seen.shape:
            return Comparison(same, "other", None)
        difference = np.abs(candidate.astype(np.int16) - seen).astype(np.uint8)
        if not difference.any():
            return Comparison(same, file, difference)
        mean = float(difference.mean())
        if nearest is None or mean < nearest[0]:
            nearest = mean, difference
    assert nearest is not None
    return Comparison(same, "other", nearest[1])


def _candidates(
    again: Picture, record: Record, format: str, keys: Sequence[bytes]
) -> Iterator[tuple[File, Image.Image]]:
    """What a file may hold of an image, in the order in which it is compared."""
    forms: list[tuple[File, Image.Image]] = []
    if record.watermark is None:
        forms.append(("drawn", again))
    else:
        forms += (("watermarked", embed(again, int(record.watermark.id, 16), key)) for key in keys)
        forms.append(("drawn", again))  # of a file whose mark was taken out
    yield from forms
    if format in _LOSSY:
        for _, image in forms:
            try:
                with Image.open(io.BytesIO(encode(image, "JPEG" if format == "MPO" else format))) as coded:
                    yield "compressed", coded.convert("RGB")
            except LimnerError:  # a size that this Pillow does not write
                continue


def differences(was: Record, now: Record) -> tuple[Difference, ...]:
    """What differs between two records of one image, of all that its bits depend on.

    The request comes first, then the files, then the environment.
    """
    found: list[Difference] = []
    before, after = (map_inputs(one.request, lambda *_: "").model_dump() for one in (was, now))
    named = (
        "model",
        "revision",
        "variant",
        "num_images",
        "schema_version",
    )  # the model is compared by its hash
    found += _of(before, after, lambda name: "" if name in named else f"request {name}")
    found += _of(_files(was), _files(now), lambda name: "weights" if name == "sha256" else name)
    inputs = [", ".join(_inputs(one)) for one in (was, now)]
    found += _of({"input images": inputs[0]}, {"input images": inputs[1]}, str)
    found += _of(was.environment, now.environment, str)
    return tuple(found)


def _of(
    was: Mapping[str, object], now: Mapping[str, object], label: Callable[[str], str]
) -> Iterator[Difference]:
    for name in {**was, **now}:
        old, new = was.get(name, _UNKNOWN), now.get(name, _UNKNOWN)
        if old != new and label(name):
            yield Difference(label(name), str(old), str(new))


def _files(record: Record) -> dict[str, str]:
    """The files of a record's model, by the beginnings of their hashes."""
    names = record.model.keys() - {"name", "family"}
    return {name: record.model[name][:10] for name in sorted(names)}


def _inputs(record: Record) -> list[str]:
    """The beginnings of the hashes of a record's input images, in the order of its request."""
    sources = (source for _, source in inputs_of(record.request))
    hashes = (
        source.removeprefix("sha256:")
        if source.startswith("sha256:")
        else record.inputs.get(source, _UNKNOWN)
        for source in sources
    )
    return [one[:10] for one in hashes]
