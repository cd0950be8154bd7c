"""Headers of safetensors files, checked before they are trusted. No torch.

A file is eight bytes with the header's length, the header (JSON: name -> dtype, shape, offsets) and the
tensors' bytes (https://huggingface.co/docs/safetensors). The header is read here and not by the
`safetensors` library, because that accepts a key given twice and spends some 25 bytes of memory on each
byte of a hostile header.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from limner.errors import InvalidCheckpoint, PickleRefused
from limner.files import read_json

# The largest headers in the field are those of LoRA files that carry the tags of their training data: a few
# megabytes. The library's own limit is 100 MB.
MAX_HEADER_BYTES = 16 << 20
# SDXL has 2,514 tensors, and about 8,000 in the most fragmented LoRA files.
MAX_ENTRIES = 65_536

ITEM_SIZES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""dtype in the words of safetensors -> bytes of an element."""

PICKLE_HINT = (
    "opening a pickle can run any code. Ask its author for safetensors files; or take the tensors out of it, "
    "and run nothing of it, with `limner convert FILE TARGET.safetensors --allow-pickle`"
)
_HEAD_BYTES = 1024
# The first entry of what torch.save writes; or of an archive that gives no name.
_TORCH_ARCHIVE = re.compile(
    rb"PK\x03\x04.{22}(?:\0\0|.{4}[^/\0]+/(?:\.?data|byteorder|version|\.format_version))", re.DOTALL
)
_UNPACK = "unpack it, and name the file within"
_LOGIN = (
    "the server answered the download with this in place of the file: it may want a login or a token. "
    "Download it in a browser where you are logged in, or with a token"
)
_MAGIC = {
    b"PK\x03\x04": ("a zip archive", _UNPACK),
    b"\x1f\x8b": ("a gzip archive", _UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"BZh": ("a bzip2 archive", _UNPACK),
    b"\xfd7zXZ": ("an xz archive", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", _UNPACK),
    b"GGUF": ("a GGUF file", "GGUF is not read: get the model as safetensors"),
    b"\x89HDF": ("an HDF5 file (Keras)", "get the model as safetensors"),
    b"\x89PNG": ("an image (PNG)", "get the model itself: this may be its preview"),
    b"\xff\xd8\xff": ("an image (JPEG)", "get the model itself: this may be its preview"),
    b"RIFF": ("an image (WebP)", "get the model itself: this may be its preview"),
    b"%PDF": ("a PDF document", "get the model itself"),
}
_DOWNLOAD_AGAIN = "the file is damaged or incomplete: download or copy it again"


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor: dtype by its safetensors name, and where its bytes are in the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A checked header. The data, and with it every offset, starts at byte `data_start` of the file."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; cost does not depend on the size of the tensors.

    Raises:
        InvalidCheckpoint: with the file, the key, what it says and what was expected, unless the header is
            JSON of at most 16 MiB that gives each key once, each dtype is known, each shape agrees with
            its byte range, and the ranges cover the rest of the file without gap or overlap.
        PickleRefused: the file is a pickle under another name.
    """
    try:
        with path.open("rb") as file:
            return _read_header(file)
    except FileNotFoundError:
        raise InvalidCheckpoint(f"{path} is missing") from None
    except OSError as error:
        raise InvalidCheckpoint(f"{path} cannot be read: {error.strerror}") from None
    except _Defect as defect:
        error_type = PickleRefused if defect.pickled else InvalidCheckpoint
        raise error_type(f"{path}: {defect}", hint=defect.hint) from None


def read_infos(path: Path) -> dict[str, TensorInfo]:
    """What `open_tensors` would give, from the headers alone."""
    return {name: info for file in files_of(path) for name, info in read_header(file).tensors.items()}


def files_of(path: Path) -> tuple[Path, ...]:
    """The safetensors files behind a path: itself, or the checked shards of an index."""
    if path.suffix != ".json":
        return (path,)
    keys_of_shard = read_index(path)
    for shard, keys in keys_of_shard.items():
        held = read_header(path.parent / shard).tensors.keys()
        for key in sorted(keys ^ held)[:1]:
            there, other = ("index", "shard") if key in keys else ("shard", "index")
            raise InvalidCheckpoint(
                f"{path} and shard {shard} disagree: {_show(key)} is in the {there} but not in the {other}",
                hint=_DOWNLOAD_AGAIN,
            )
    return tuple(path.parent / shard for shard in sorted(keys_of_shard))


def read_index(path: Path) -> dict[str, set[str]]:
    """The shards that an index names, and the keys of each; the shards are not opened.

    Raises:
        InvalidCheckpoint: unless `weight_map` maps names to plain names of safetensors files.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidCheckpoint(f"{path}: expected an object 'weight_map' that names a file for each tensor")
    keys_of_shard: dict[str, set[str]] = {}
    for key, shard in weight_map.items():
        # No folders and no "..", so that an index cannot reach out of its own folder.
        if not isinstance(shard, str) or not re.fullmatch(
            r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\.safetensors", shard
        ):
            raise InvalidCheckpoint(
                f"{path}: {_show(key)} is in {_show(shard)}, expected the plain name of a safetensors file"
            )
        keys_of_shard.setdefault(shard, set()).add(key)
    return keys_of_shard


class _Defect(Exception):
    """Why a header is refused; `read_header` adds the file's name."""

    def __init__(self, message: str, *, hint: str = _DOWNLOAD_AGAIN, pickled: bool = False) -> None:
        super().__init__(message)
        self.hint = hint
        self.pickled = pickled


def _read_header(file: BinaryIO) -> Header:
    size = os.fstat(file.fileno()).st_size
    head = file.read(_HEAD_BYTES)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" and (other := other_content(head)):
        raise _Defect(f"is {other.what}, not a safetensors file", hint=other.hint, pickled=other.pickled)
    if len(head) < 8:
        raise _Defect(f"is {size} bytes long, too short for a safetensors file")
    if length > size - 8:
        raise _Defect(f"says that its header is {length} bytes long, but only {size - 8} follow")
    if length > MAX_HEADER_BYTES:
        raise _Defect(
            f"says that its header is {length} bytes long, expected at most {MAX_HEADER_BYTES}",
            hint="no known checkpoint has a header like this: do not trust the file",
        )
    file.seek(8)
    text = _decode(file.read(length))
    header, at = _object(text, 0, lambda name, at: (_strings if name == "__metadata__" else _entry)(text, at))
    if text[at:].strip(" "):
        raise _Defect(f"the header goes on after its end, at character {at}")
    metadata = header.pop("__metadata__", {})
    for name, info in header.items():
        _check_entry(name, info)
    _check_cover(header, size - 8 - length)
    return Header(header, metadata, 8 + length)


@dataclass(frozen=True)
class OtherContent:
    """What a file is that should hold tensors.

    Attributes:
        what: In a few words, such as "a web page (HTML)".
        hint: What to do about it.
        pickled: Whether it is a pickle.
    """

    what: str
    hint: str
    pickled: bool = False


def other_content(head: bytes) -> OtherContent | None:
    """The kind of a file by its first bytes; None if it is not recognised.

    The answer of a server that wanted a login, an archive or a preview is often saved under a model's name.
    """
    if re.match(rb"\x80[\x02-\x05]", head) or _TORCH_ARCHIVE.match(head):
        return OtherContent("a pickle", PICKLE_HINT, pickled=True)
    for start, (what, hint) in _MAGIC.items():
        if head.startswith(start):
            return OtherContent(what, hint)
    if len(head) == _HEAD_BYTES and not head.strip(b"\0"):
        return OtherContent("zeros only", "its download was never finished: download it again")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if re.match(rb"<(?:!doctype html|html|head|body)\b", text, re.IGNORECASE) or b"<html" in text.lower():
        return OtherContent("a web page (HTML)", _LOGIN)
    if text.startswith(b"<"):
        return OtherContent("an XML text or web page", _LOGIN)
    if text.startswith(b"version https://git-lfs"):
        return OtherContent("a Git LFS pointer", "run `git lfs pull` where it was cloned")
    try:
        readable = text.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(text) - error.start > 3:  # more than a letter that the end of `head` cuts
            return None
        readable = text[: error.start].decode("utf-8")
    if len(readable) < 8 or not all(letter.isprintable() or letter.isspace() for letter in readable):
        return None
    kind = "a JSON text" if readable[0] in "{[" else "a text"
    return OtherContent(f"{kind} ({_show(' '.join(readable[:100].split()))})", _LOGIN)


def _check_entry(name: str, info: TensorInfo) -> None:
    if info.dtype not in ITEM_SIZES:
        raise _Defect(f"{_show(name)} has dtype {_show(info.dtype)}, expected one of {', '.join(ITEM_SIZES)}")
    expected = info.elements * ITEM_SIZES[info.dtype]
    if info.end - info.begin != expected:
        raise _Defect(
            f"{_show(name)} is {info.dtype} of shape {list(info.shape)}, {expected} bytes, "
            f"but its data_offsets are [{info.begin}, {info.end}]"
        )


def _check_cover(tensors: Mapping[str, TensorInfo], size: int) -> None:
    at = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != at:
            fault = "overlaps the tensor before it" if info.begin < at else "leaves a gap before it"
            raise _Defect(f"{_show(name)} starts at byte {info.begin} of the data and {fault}, expected {at}")
        at = info.end
    if at != size:
        fault = "is truncated" if at > size else "has bytes that belong to no tensor"
        raise _Defect(f"{fault}: its tensors take {at} bytes, and {size} follow the header")


# The header's grammar is small and of fixed depth, so the reader knows it and nothing else: there is no list
# of a million lists to build before it can be refused. Readers take the place to begin and return the place
# after what they read.


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Defect(f"the header is not UTF-8 at its byte {error.start}") from None


def _object(text: str, at: int, read: Callable[[str, int], tuple[Any, int]]) -> tuple[dict[str, Any], int]:
    values: dict[str, Any] = {}
    at = _expect(text, at, "{")
    if text[at : at + 1] == "}":
        return values, at + 1
    while True:
        name, at = _string(text, at)
        if name in values:
            raise _Defect(f"the header gives {_show(name)} twice")
        if len(values) == MAX_ENTRIES:
            raise _Defect(f"the header has more than {MAX_ENTRIES} entries")
        values[name], at = read(name, _expect(text, at, ":"))
        at = _skip(text, at)
        if text[at : at + 1] != ",":
            return values, _expect(text, at, "}")
        at = _skip(text, at + 1)


def _entry(text: str, at: int) -> tuple[TensorInfo, int]:
    def field(name: str, at: int) -> tuple[Any, int]:
        if name == "dtype":
            return _string(text, at)
        if name in ("shape", "data_offsets"):
            return _integers(text, at)
        raise _Defect(f"unknown field {_show(name)} at character {at} of the header")

    fields, end = _object(text, at, field)
    match fields:
        case {"dtype": dtype, "shape": shape, "data_offsets": (first, last)}:
            return TensorInfo(dtype, shape, first, last), end
    raise _Defect(f"the entry at character {at} of the header lacks a dtype, a shape or two data_offsets")


def _strings(text: str, at: int) -> tuple[dict[str, Any], int]:
    return _object(text, at, lambda _, at: _string(text, at))


def _string(text: str, at: int) -> tuple[str, int]:
    if text[at : at + 1] != '"':
        raise _expected("a string", text, at)
    try:
        value, at = _JSON.raw_decode(text, at)
    except ValueError as error:
        raise _Defect(f"the header is not valid JSON: {error}") from None
    return value, at


def _integers(text: str, at: int) -> tuple[tuple[int, ...], int]:
    match = _INTEGERS.match(text, at)
    if match is None:
        raise _expected("a list of at most 8 integers, none negative,", text, at)
    return tuple(int(number) for number in _INTEGER.findall(match[0])), match.end()


def _expect(text: str, at: int, mark: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] != mark:
        raise _expected(f"'{mark}'", text, at)
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _expected(what: str, text: str, at: int) -> _Defect:
    found = _show(text[at : at + 20]) if at < len(text) else "its end"
    return _Defect(f"expected {what} at character {at} of the header, found {found}")


def _show(value: object) -> str:
    """A name from a file for a message: escaped and of bounded length."""
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


_JSON = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_INTEGER = re.compile(r"0|[1-9][0-9]{0,18}")
_ITEM = rf"[ \t\n\r]*(?:{_INTEGER.pattern})[ \t\n\r]*"
_INTEGERS = re.compile(rf"\[(?:{_ITEM}(?:,{_ITEM}){{0,7}}|[ \t\n\r]*)\]")
