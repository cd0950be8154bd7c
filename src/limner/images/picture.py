"""Images that keep their record in the file they are written to.

A PNG has two text chunks: `parameters`, in the grammar of AUTOMATIC1111 that viewers read, and `limner`, the
whole `Record` as JSON. JPEG, WebP, AVIF and TIFF have both in EXIF, as UserComment and MakerNote. EXIF in a
JPEG ends at 64 KB: a longer record goes into segments of its own (APP9), which Limner reads.
"""

import hashlib
import io
import os
import struct
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from limner.errors import OutputError
from limner.files import whole_file, write_first_free

from .exif import build_exif, encode_comment
from .record import Record

EXIF_FORMATS = ("JPEG", "MPO", "WEBP", "AVIF", "TIFF")
RECORD_FORMATS = ("PNG", *EXIF_FORMATS)
SEGMENT, SEGMENT_MARK = "APP9", b"limner\0"  # of a record that does not fit into a JPEG's EXIF
_SEGMENT_BYTES = 65_533  # the most that a segment of a JPEG holds
_NUMBERS = struct.Struct(">HH")  # number of a segment, and how many there are
_ASCII = b"ASCII\0\0\0"
_CUT = "… "
XMP_KEY = "XML:com.adobe.xmp"
_MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}


class RecordWarning(UserWarning):
    """A file format that cannot keep all of an image's record."""


class Picture(Image.Image):
    """A PIL image that keeps its record when it is saved as PNG, JPEG, WebP, AVIF or TIFF.

    Copies and pickles keep it too; images that Pillow makes of it (crops, resized ones) have none.
    """

    record: Record

    def __init__(self, image: Image.Image, record: Record) -> None:
        super().__init__()
        self.im, self._mode, self._size = image.im, image.mode, image.size
        self.record = record

    @property
    def seed(self) -> int:
        assert self.record.request.seed is not None
        return self.record.request.seed

    def copy(self) -> "Picture":
        return Picture(super().copy(), self.record)

    def __getstate__(self) -> list[Any]:
        return [*super().__getstate__(), self.record]

    def __setstate__(self, state: list[Any]) -> None:
        super().__setstate__(state[:-1])
        self.record = state[-1]

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Save as `PIL.Image.Image.save` does, with the record, unless `pnginfo` or `exif` is given for it.

        A format that cannot keep the record, or only a part of it, gives a RecordWarning.
        """
        kind = _format(fp, format)
        own = "pnginfo" if kind == "PNG" else "exif"
        if own not in params:
            carried = _carry(self.record, kind)
            params |= carried.params
            for loss in carried.losses:
                warnings.warn(loss, RecordWarning, stacklevel=2)
        super().save(fp, kind or format, **params)


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 of an image's pixels, row by row, in hexadecimal."""
    return hashlib.sha256(image.tobytes()).hexdigest()


@dataclass(frozen=True)
class _Carried:
    """Parameters with which Pillow writes a record, and what the file does not keep."""

    params: dict[str, Any] = field(default_factory=dict)
    losses: tuple[str, ...] = ()


def losses(image: Image.Image, format: str) -> tuple[str, ...]:
    """What a file format does not keep of an image's record; empty for an image without one.

    Args:
        format: A name ("PNG", "jpg") or a suffix (".webp").
    """
    return _carry(image.record, _format("", format)).losses if isinstance(image, Picture) else ()


def fits(size: tuple[int, int], format: str) -> bool:
    """Whether a file format holds images of this size, in pixels. The format is given as in `losses`."""
    longest = max(size)
    return longest <= _MAX_SIDE.get(_format("", format) or "", longest)


def encode(image: Image.Image, format: str, **params: Any) -> bytes:
    """The bytes of an image file, with the record that a `Picture` has. See `losses`.

    Args:
        format: A name ("PNG", "jpg") or a suffix (".webp").
        **params: For Pillow, such as `quality`. `xmp`, a packet as bytes, is written into PNG too.

    Raises:
        OutputError: an unknown format, or one that cannot hold such an image.
    """
    kind = _format("", format)
    if kind is None:
        raise OutputError(f"{format} is no known image format", hint="use png, jpeg or webp")
    if not fits(image.size, kind):
        raise OutputError(
            f"the image is {image.width} x {image.height}; {kind} holds {_MAX_SIDE[kind]} pixels a side",
            hint="use png",
        )
    if isinstance(image, Picture):
        params = {**_carry(image.record, kind).params, **params}
    if kind == "PNG" and "xmp" in params:
        chunks = params.setdefault("pnginfo", PngImagePlugin.PngInfo())
        chunks.add_itxt(XMP_KEY, params.pop("xmp").decode())
    encoded = io.BytesIO()
    try:
        Image.Image.save(image, encoded, kind, **params)
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"the image cannot be written as {kind}: {error}", hint="use png") from error
    return encoded.getvalue()


Encode = Callable[[Image.Image, str], bytes]
"""Makes the bytes of a file of an image and a format, as `encode` does."""


def write_picture(image: Image.Image, path: Path, encode: Encode = encode) -> None:
    """Write an image, whole or not at all, over what the path has.

    Args:
        encode: Makes the bytes of the file.

    Raises:
        OutputError: the suffix names no image format, or the file cannot be written.
    """
    encoded = encode(image, _suffix(path))
    with whole_file(path) as temporary:
        temporary.write_bytes(encoded)


def write_new_picture(image: Image.Image, paths: Iterable[Path], encode: Encode = encode) -> Path:
    """Write an image to the first of several paths that does not exist, as `write_first_free` does.

    Args:
        paths: Names with one suffix, in one folder.
        encode: Makes the bytes of the file.

    Raises:
        OutputError: as `write_picture`.
    """
    first = next(paths := iter(paths))
    return write_first_free(chain([first], paths), encode(image, _suffix(first)))


def _suffix(path: Path) -> str:
    if _format(path, None) is None:
        raise OutputError(f"{path} has no known image suffix", hint="use .png, .jpg or .webp")
    return path.suffix


def _format(fp: Any, format: str | None) -> str | None:
    """The format that Pillow would write, in its spelling; None for one that it does not know."""
    if format:
        Image.init()
        known = Image.registered_extensions().get(f".{format.lower().removeprefix('.')}")
        return format.upper() if format.upper() in Image.SAVE else known
    name = fp if isinstance(fp, str | bytes | os.PathLike) else getattr(fp, "name", "")
    if not isinstance(name, str | bytes | os.PathLike):  # a file by its descriptor
        return None
    return Image.registered_extensions().get(os.path.splitext(os.fsdecode(name))[1].lower())


def _carry(record: Record, format: str | None) -> _Carried:
    """How a format carries a record."""
    text, whole = record.infotext(), record.model_dump_json()
    if format == "PNG":
        chunks = PngImagePlugin.PngInfo()
        for key, value in (("parameters", text), ("limner", whole)):
            chunks.add_itxt(key, value)
        return _Carried({"pnginfo": chunks})
    if format not in EXIF_FORMATS:
        kept = ", ".join(RECORD_FORMATS)
        return _Carried(losses=(f"{format} cannot keep the request; {kept} can",))
    exif = build_exif(encode_comment(text), whole.encode())
    if format not in ("JPEG", "MPO") or len(exif) <= _SEGMENT_BYTES:
        return _Carried({"exif": exif})
    comment, cut = _short_comment(text)
    params = {"exif": build_exif(comment) if comment else b"", "extra": _segments(whole.encode())}
    loss = (
        f"the parameters text is too long for {format}, which keeps 64 KB: other programs find shortened "
        "prompts or none. Limner reads the whole record; PNG and WebP keep the text whole."
    )
    return _Carried(params, (loss,) if cut else ())


def _short_comment(text: str) -> tuple[bytes, bool]:
    """A UserComment that fits into one segment, and whether its prompts are cut for that."""
    room = _SEGMENT_BYTES - len(build_exif(b"", b"")) - 16
    for comment in (encode_comment(text), _ASCII + text.encode() if text.isascii() else None):
        if comment is not None and len(comment) <= room:
            return comment, False
    prompts, _, parameters = text.rpartition("\n")
    left = room - len(encode_comment(f"{_CUT}\n{parameters}"))
    if left < 0:
        return b"", True
    kept = prompts.encode("utf-16-be", "surrogatepass")[: left // 2 * 2].decode("utf-16-be", "ignore")
    return encode_comment(f"{kept}{_CUT}\n{parameters}"), True


def _segments(data: bytes) -> bytes:
    """The segments of a JPEG that hold a long record."""
    size = _SEGMENT_BYTES - len(SEGMENT_MARK) - _NUMBERS.size
    parts = [data[begin : begin + size] for begin in range(0, len(data), size)]
    segments = b""
    for number, part in enumerate(parts):
        content = SEGMENT_MARK + _NUMBERS.pack(number, len(parts)) + part
        segments += struct.pack(">BBH", 0xFF, 0xE9, len(content) + 2) + content
    return segments


def join_segments(segments: Iterable[bytes]) -> bytes | None:
    """The long record in the APP9 segments of a JPEG; None where there is none, or not all of it."""
    parts: dict[int, bytes] = {}
    count = 0
    for segment in segments:
        content = segment.removeprefix(SEGMENT_MARK)
        if content != segment and len(content) >= _NUMBERS.size:
            number, count = _NUMBERS.unpack_from(content)
            parts[number] = content[_NUMBERS.size :]
    if not count or parts.keys() != set(range(count)):
        return None
    return b"".join(parts[number] for number in range(count))
