"""EXIF: the block that carries a record in JPEG, WebP, AVIF and TIFF (Exif 2.32, 4.6.5).

Pillow writes UserComment as BYTE; the standard demands UNDEFINED, and piexif, by which other programs read
it, depends on that. So the block is built here.
"""

import struct

EXIF_IFD, USER_COMMENT, MAKER_NOTE = 0x8769, 0x9286, 0x927C

_LONG, _UNDEFINED = 4, 7  # types of values
_ENTRY_BYTES = 12
_UNICODE = b"UNICODE\0"
_ENCODINGS = {  # by the eight bytes before the text; UNICODE and unmarked texts are recognised by `_guess`
    b"ASCII\0\0\0": ("utf-8", "cp1252"),
    b"JIS\0\0\0\0\0": ("iso2022_jp", "shift_jis", "euc_jp"),
}


def build_exif(comment: bytes, note: bytes = b"") -> bytes:
    """An EXIF block of a UserComment and, if it is not empty, a MakerNote, with big-endian numbers.

    Args:
        comment: As `encode_comment` returns it.
    """
    values = {tag: value for tag, value in ((MAKER_NOTE, note), (USER_COMMENT, comment)) if value}
    directory = 8 + 2 + _ENTRY_BYTES + 4  # the first directory holds one entry, which points to the second
    data_start = directory + 2 + _ENTRY_BYTES * len(values) + 4
    entries, data = b"", b""
    for tag, value in sorted(values.items()):
        entries += struct.pack(">HHII", tag, _UNDEFINED, len(value), data_start + len(data))
        data += value + b"\0" * (len(value) % 2)
    first = struct.pack(">HHHIII", 1, EXIF_IFD, _LONG, 1, directory, 0)
    second = struct.pack(">H", len(values)) + entries + struct.pack(">I", 0)
    return b"Exif\0\0" + b"MM\0*" + struct.pack(">I", 8) + first + second + data


def encode_comment(text: str) -> bytes:
    """The value of a UserComment: the marker UNICODE and big-endian UTF-16, as webui writes it."""
    return _UNICODE + text.encode("utf-16-be", "surrogatepass")


def decode_comment(value: object, big_endian: bool = True) -> str:
    """The text of a UserComment, in any encoding that programs write: UTF-16 in either order, UTF-8, JIS.

    Args:
        value: As Pillow gives it: bytes, the text of a comment of the type ASCII, or a tuple of numbers.
        big_endian: Byte order of the file, which decides where the text itself does not.
    """
    if isinstance(value, tuple):
        value = bytes(value)
    if isinstance(value, str):
        return value.strip("\0")
    if not isinstance(value, bytes):
        return ""
    marker, text = value[:8], value[8:]
    if encodings := _ENCODINGS.get(marker):
        if marker.startswith(b"ASCII") and b"\0" in text.rstrip(b"\0"):
            return _guess(text, big_endian)
        return _decode(text, *encodings).strip("\0")
    return _guess(text if marker in (_UNICODE, b"\0" * 8) else value, big_endian)


def _guess(text: bytes, big_endian: bool) -> str:
    """A text in UTF-8, or in UTF-16 of the byte order that gives more ASCII."""
    for mark, encoding in (
        (b"\xef\xbb\xbf", "utf-8"),
        (b"\xfe\xff", "utf-16-be"),
        (b"\xff\xfe", "utf-16-le"),
    ):
        if text.startswith(mark):
            return text.removeprefix(mark).decode(encoding, "replace").strip("\0")
    if b"\0" not in text.rstrip(b"\0"):
        try:
            return text.rstrip(b"\0").decode("utf-8")
        except UnicodeDecodeError:
            pass
    whole = text[: len(text) // 2 * 2]
    ascii_in = {
        "utf-16-be": sum(not high and low < 0x80 for high, low in zip(whole[::2], whole[1::2], strict=True)),
        "utf-16-le": sum(not high and low < 0x80 for low, high in zip(whole[::2], whole[1::2], strict=True)),
    }
    if not any(ascii_in.values()) and b"\0" not in text:
        return _decode(text, "cp1252")
    own = "utf-16-be" if big_endian else "utf-16-le"
    best = max(ascii_in, key=lambda encoding: (ascii_in[encoding], encoding == own))
    return whole.decode(best, "replace").strip("\0\ufeff")


def _decode(text: bytes, *encodings: str) -> str:
    """Text in the first encoding that fits; if none does, in the last, with replacement characters."""
    for encoding in encodings:
        try:
            return text.decode(encoding)
        except UnicodeDecodeError:
            continue
    return text.decode(encodings[-1], "replace")
