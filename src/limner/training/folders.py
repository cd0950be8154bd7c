"""Captioned images of a folder, their control images, and the part that is held out for validation."""

import hashlib
import json
import logging
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limner.errors import InvalidDataset, InvalidRequest
from limner.images.opening import open_image, to_rgb

from .data import digest

_LOG = logging.getLogger("limner.training")

_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp"))
_HELD_OUT = 0.1  # share of the images that validation sees and training does not


@dataclass(frozen=True)
class Picture:
    """An image file with its caption.

    Attributes:
        file: Path of the image.
        caption: Text that describes it.
        sha256: Digest of the file's content.
    """

    file: Path
    caption: str
    sha256: bytes


class FolderPictures:
    """A folder of captioned images: `metadata.jsonl` with `file_name` and `text`, or a text file for each.

    Images are turned as their EXIF says, put on white where they are transparent, scaled so that their
    shorter side is `size`, and cropped to the centre.

    Raises:
        InvalidDataset: No images, one without a caption, or one that cannot be read; the message names it.
    """

    def __init__(self, folder: Path, *, size: int) -> None:
        if not folder.is_dir():
            raise InvalidDataset(f"{folder} is not a folder", hint="give a folder of images with captions")
        metadata = folder / "metadata.jsonl"
        captions = _read_metadata(metadata) if metadata.exists() else _read_captions(folder)
        if not captions:
            raise InvalidDataset(
                f"{folder} holds no captioned images",
                hint="write metadata.jsonl with file_name and text on each line, or cat.txt for cat.png",
            )
        pictures = [Picture(file, captions[file], _content(file)) for file in sorted(captions)]
        self._set(folder, size, pictures)

    def _set(self, folder: Path, size: int, pictures: list[Picture]) -> None:
        self.folder, self.size, self.pictures = folder, size, pictures
        content = digest([[picture.sha256, picture.caption] for picture in pictures]).hex()
        self.identity = {"content": content[:16], "count": len(pictures), "size": size}

    def _part(self, pictures: Iterable[Picture]) -> Self:
        part = type(self).__new__(type(self))
        part._set(self.folder, self.size, list(pictures))
        return part

    def split(self) -> tuple[Self, Self]:
        """The images to train on and those to validate on, a tenth, but at least one.

        The content of an image decides its side, so copies stay together, and an image keeps its side when
        others are added. A folder with one distinct image cannot be split: it is both, with a warning.
        """
        largest = int(_HELD_OUT * 2**64)

        def place(picture: Picture) -> int:
            return int.from_bytes(picture.sha256[:8], "big")

        limit = max(largest, min(map(place, self.pictures)) + 1)
        train = [picture for picture in self.pictures if place(picture) >= limit]
        if not train:
            _LOG.warning(
                "%s has too few images to hold any out, so validation uses those of training; name others "
                "by `validation`",
                self.folder,
            )
            return self, self
        return self._part(train), self._part(p for p in self.pictures if place(p) < limit)

    def __len__(self) -> int:
        return len(self.pictures)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        return np.asarray(_square(_opened(self.pictures[index].file), self.size))

    def key(self, index: int) -> bytes:
        return digest(_PREPARATION, self.size, self.pictures[index].sha256)

    def caption(self, index: int, rng: random.Random) -> str:
        return self.pictures[index].caption

    def false_captions(self, index: int, rng: random.Random) -> list[str]:
        return []


class FolderControls:
    """A control image for each image of a folder: in another folder, of the same name but for its suffix.

    Raises:
        InvalidDataset: An image without one; or one in other proportions, or that cannot be read.
    """

    def __init__(self, folder: Path, pictures: FolderPictures) -> None:
        self.size, self.pictures = pictures.size, pictures.pictures
        self.files = [_control_of(picture.file, pictures.folder, folder) for picture in self.pictures]
        self.contents = [_content(file) for file in self.files]
        self.identity = {"content": digest(self.contents).hex()[:16]}

    def __len__(self) -> int:
        return len(self.files)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        control, picture = _opened(self.files[index]), _opened(self.pictures[index].file)
        # A pixel more or less is rounding of whoever scaled them.
        if abs(control.width * picture.height - control.height * picture.width) > max(
            *control.size, *picture.size
        ):
            raise InvalidDataset(
                f"{self.files[index]} is {control.width} x {control.height}, in other proportions than its "
                f"image, which is {picture.width} x {picture.height}"
            )
        return np.asarray(_square(control, self.size))

    def key(self, index: int) -> bytes:
        return digest(_PREPARATION, self.size, self.contents[index])


_PREPARATION = "upright, on white, shorter side scaled, centre"
"""Names how a file becomes pixels, for keys: cached pixels that were made otherwise are not used."""


def _control_of(file: Path, pictures: Path, controls: Path) -> Path:
    name = controls / os.path.relpath(file, pictures)
    for suffix in (file.suffix, *sorted(_SUFFIXES)):
        if (found := name.with_suffix(suffix)).is_file():
            return found
    raise InvalidDataset(f"{file} has no control image: there is no {name.with_suffix('.png')}")


def _content(file: Path) -> bytes:
    """SHA-256 of a file."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError as error:
        raise InvalidDataset(f"{file} cannot be read: {error.strerror}") from None


def _opened(file: Path) -> Image.Image:
    """An image in RGB, upright and on white."""
    try:
        return to_rgb(open_image(file.absolute()))
    except InvalidRequest as error:
        raise InvalidDataset(error.message) from None


def _square(picture: Image.Image, size: int) -> Image.Image:
    """Scaled so that the shorter side is `size`, and cropped to the centre."""
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = picture.resize((width, height), Image.Resampling.LANCZOS)
    return resized.crop((left, top, left + size, top + size))


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDataset(f"{file} cannot be read as UTF-8 text: {error}") from None


def _read_captions(folder: Path) -> dict[Path, str]:
    captions = {}
    for file in sorted(f for f in folder.rglob("*") if f.suffix.lower() in _SUFFIXES):
        text = file.with_suffix(".txt")
        if not text.exists():
            raise InvalidDataset(f"{file} has no caption: {text.name} is missing")
        captions[file] = _read_text(text).strip()
    return captions


def _read_metadata(file: Path) -> dict[Path, str]:
    captions = {}
    for number, line in enumerate(_read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            picture, text = file.parent / str(entry["file_name"]), entry["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidDataset(
                f"{file}, line {number}: expected an object with file_name and text ({error!r})"
            ) from error
        if not isinstance(text, str):
            raise InvalidDataset(f"{file}, line {number}: text is {text!r}, expected a string")
        if not picture.is_file():
            raise InvalidDataset(f"{file}, line {number}: {picture} does not exist")
        captions[picture] = text
    return captions
