"""Reads the request from an image: from Limner's record, or the metadata of other programs."""

import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError

from limner.errors import InvalidPicture

from .exif import EXIF_IFD, MAKER_NOTE, USER_COMMENT, decode_comment
from .picture import SEGMENT, XMP_KEY, join_segments
from .readers import READERS, ReadRequest, Texts, novelai, reader_of
from .readers.base import NamedModel, hash_digits, without_suffix
from .record import Record

OWN = "Limner"
"""`Reading.program` of an image with Limner's own record."""

_TEXT_TAGS = {"ImageDescription": 0x010E, "Make": 0x010F, "Model": 0x0110, "Software": 0x0131}
_UNRELATED_KEYS = {XMP_KEY, "date:create", "date:modify", "srgb", "jfif_unit"}

Source = str | Path | BinaryIO  # an image: its path or an open file


def read_texts(source: Source) -> dict[str, str]:
    """The texts in an image: "parameters" and "limner", as far as it has them.

    Raises:
        InvalidPicture: the file is missing or not an image.
    """
    texts, record, _ = _read(source)
    found = {"parameters": texts.parameters, "limner": record}
    return {key: text for key, text in found.items() if text}


def read_all_texts(source: Source) -> Texts:
    """All texts in an image that programs write their metadata into.

    Raises:
        InvalidPicture: the file is missing or not an image.
    """
    return _read(source)[0]


def _of_record(record: Record) -> ReadRequest:
    """The request of a record, with the hashes of its files."""
    model = record.model
    return ReadRequest(
        record.request.model_dump(exclude_none=True),
        model=NamedModel(
            without_suffix(model.get("name", "")), hash_digits(model.get("sha256")), model.get("family", "")
        ),
        hashes=record.lora_hashes,
    )


def _read(source: Source, formats: tuple[str, ...] | None = None) -> tuple[Texts, str, Image.Image]:
    """The texts in an image, Limner's record as JSON, "" if there is none, and the decoded image."""
    name = name_of(source)
    try:
        with Image.open(source, formats=formats) as image:
            image.load()  # PNG text may stand behind the pixels
            info = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
            user_comment, maker_note, exif = _exif_texts(image)
            segments = join_segments(
                data for marker, data in getattr(image, "applist", ()) if marker == SEGMENT
            )
            file_comment, xmp = image.info.get("comment", b""), image.info.get("xmp", b"")
            if not (info or user_comment):
                info = novelai.hidden_texts(image)
            size = image.size
    except FileNotFoundError:
        raise InvalidPicture(f"{name} does not exist", hint="give the path of an image") from None
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InvalidPicture(f"{name} cannot be read as an image: {error}") from error
    finally:
        if not isinstance(source, str | Path):
            source.seek(0)
    if not user_comment and isinstance(file_comment, bytes):
        user_comment = decode_comment(file_comment)  # of a GIF or a JPEG
    if segments is not None:
        maker_note = segments.decode("utf-8", "replace")
    record = info.pop("limner", "") or (maker_note if maker_note.startswith("{") else "")
    packet = info.get(XMP_KEY) or (xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else "")
    return Texts(info, user_comment, exif, packet, name, size), record, image


def name_of(source: Source) -> str:
    """Name of an image in messages: its path, or "the image"."""
    if isinstance(source, str | Path):
        return str(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "the image"


def _exif_texts(image: Image.Image) -> tuple[str, str, dict[str, str]]:
    """UserComment, MakerNote and other texts in an image's EXIF; empty where there are none."""
    try:
        exif = image.getexif()
        ifd = exif.get_ifd(EXIF_IFD)
        user_comment, maker_note = (
            ifd.get(USER_COMMENT, exif.get(USER_COMMENT, b"")),
            ifd.get(MAKER_NOTE, b""),
        )
        others = {name: exif[tag] for name, tag in _TEXT_TAGS.items() if isinstance(exif.get(tag), str)}
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, IndexError, struct.error):
        return "", "", {}
    if not isinstance(maker_note, bytes):
        maker_note = b""
    return decode_comment(user_comment, exif.endian != "<"), maker_note.decode("utf-8", "replace"), others


def read_record(source: Source) -> Record | None:
    """The record in an image; None where there is none.

    Raises:
        InvalidPicture: the file is not an image, or its record is broken or of another schema.
    """
    return read_metadata(source).own_record()


def _record(text: str, name: str) -> Record | None:
    if not text:
        return None
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the record"
        raise InvalidPicture(
            f"{name} holds a record that this version cannot read ({where}: {first['msg']})",
            hint="it may come from a newer version of Limner; `limner show` prints it as it stands",
        ) from None


def read_request(source: Source, overriding: Collection[str] = ()) -> ReadRequest:
    """The request of an image, from its record, or else from the metadata of another program.

    Args:
        overriding: Fields of the request and options of `limner.load` that replace those in it; there
            are no warnings about them.

    Raises:
        InvalidPicture: The file is not an image, or its generation metadata is missing, unknown or broken.
        InvalidRequest: The metadata names a sampler of AUTOMATIC1111 that Limner does not have.
    """
    return read_metadata(source).request(overriding)


@dataclass(frozen=True)
class Reading:
    """What an image says of how it was made.

    Attributes:
        program: The program that wrote it.
        request: Its request.
    """

    program: str
    request: ReadRequest


@dataclass(frozen=True)
class Metadata:
    """What programs have written into an image.

    Attributes:
        texts: The texts of other programs.
        record: Limner's record as JSON; "" if there is none.
    """

    texts: Texts
    record: str = ""

    def own_record(self) -> Record | None:
        """Limner's record; None where there is none.

        Raises:
            InvalidPicture: It is broken or of another schema.
        """
        return _record(self.record, self.texts.name)

    def read(self, overriding: Collection[str] = ()) -> Reading:
        """The program and its request, without raising for names that Limner does not know.

        Args:
            overriding: As of `read_request`.

        Raises:
            InvalidPicture: Generation metadata is missing, unknown or broken.
        """
        own = self.own_record()
        if own is not None:
            return Reading(OWN, _of_record(own))
        reader = reader_of(self.texts)
        if reader is not None:
            try:
                return Reading(reader.NAME, reader.read(self.texts, overriding))
            except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
                raise InvalidPicture(
                    f"{self.texts.name} has metadata of {reader.NAME} in another form than it writes",
                    hint="give the prompt and options yourself",
                ) from error
        unknown = sorted(key for key in self.texts.info if key not in _UNRELATED_KEYS)
        raise InvalidPicture(
            f"{self.texts.name} contains no known generation metadata"
            + (f"; its text keys are {', '.join(unknown[:8])}" if unknown else ""),
            hint=f"recognised: {', '.join(reader.NAME for reader in READERS)}; editors and websites often "
            "strip an image's metadata: use the original file",
        )

    def request(self, overriding: Collection[str] = ()) -> ReadRequest:
        """The request, as `read_request` returns it.

        Raises:
            InvalidPicture: Generation metadata is missing, unknown or broken.
            InvalidRequest: It names a sampler of AUTOMATIC1111 that Limner does not have.
        """
        found = self.read(overriding).request
        if found.refused is not None:
            raise found.refused
        return found

    @property
    def program(self) -> str | None:
        """The program that wrote them, whether or not they can be read; None if it is not known."""
        reader = reader_of(self.texts)
        return OWN if self.record else reader.NAME if reader is not None else None

    def raw(self) -> dict[str, str]:
        """All texts by their places in the image."""
        others = {"limner": self.record, "comment": self.texts.comment, "xmp": self.texts.xmp}
        every = {**self.texts.info, **self.texts.exif, **others}
        return {name: text for name, text in every.items() if text and name not in _UNRELATED_KEYS}


def read_metadata(source: Source, formats: tuple[str, ...] | None = None) -> Metadata:
    """What programs have written into an image.

    Args:
        formats: Formats of images, in Pillow's spelling; by default all that it knows.

    Raises:
        InvalidPicture: The file is missing or not an image.
    """
    texts, record, _ = _read(source, formats)
    return Metadata(texts, record)


@dataclass(frozen=True)
class OpenedImage:
    """An image that was decoded once, for its pixels and its metadata.

    Attributes:
        image: The image, as Pillow decodes it.
        format: Format of the file, in Pillow's spelling.
        metadata: What programs have written into it.
    """

    image: Image.Image
    format: str
    metadata: Metadata


def read_image(source: Source) -> OpenedImage:
    """An image with what programs have written into it. Raises InvalidPicture as `read_metadata`."""
    texts, record, image = _read(source)
    return OpenedImage(image, image.format or "", Metadata(texts, record))
