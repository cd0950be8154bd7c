"""Safetensors files, checked before they are trusted, then memory-mapped.

A file is eight bytes with the header's length, the header (JSON: name -> dtype, shape, offsets) and the
tensors' bytes (https://huggingface.co/docs/safetensors). The header is read here and not by the
`safetensors` library, because that accepts a key given twice and spends some 25 bytes of memory on each
byte of a hostile header; and written here because the library's output differs from run to run once
there are two entries of metadata.
"""

import ctypes
import json
import math
import mmap
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from limner.errors import InvalidCheckpoint, PickleRefused

from .files import read_json, whole_file

# The largest headers in the field are those of LoRA files that carry the tags of their training data: a few
# megabytes. The library's own limit is 100 MB.
MAX_HEADER_BYTES = 16 << 20
# SDXL has 2,514 tensors, and about 8,000 in the most fragmented LoRA files.
MAX_ENTRIES = 65_536

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

PICKLE_HINT = (
    "opening a pickle can run any code. Ask its author for safetensors files; or take the tensors out of it, "
    "and run nothing of it, with `limner convert FILE TARGET --allow-pickle`"
)
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


def open_tensors(path: Path) -> dict[str, Tensor]:
    """Memory-map the tensors of a safetensors file, or of all shards that an index (`.json`) names.

    Nothing is read until it is used. The tensors may be written to: changes stay in memory.

    Raises:
        InvalidCheckpoint: as `read_header`; for an index also when a shard is missing, is named by
            anything but a plain file name, or does not hold exactly the keys it should.
    """
    return {name: tensor for file in files_of(path) for name, tensor in _map_file(file).items()}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read when it is needed, into memory of its own: files that are larger than the memory
    can be written from others."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def to(self, dtype: torch.dtype | None) -> "LazyTensor":
        """The same in another floating dtype; None, or integers, stay as they are."""
        if dtype is None or dtype == self.dtype or not self.dtype.is_floating_point:
            return self
        return LazyTensor(dtype, self.shape, lambda: self.read().to(dtype))


def lazy_tensors(path: Path) -> dict[str, LazyTensor]:
    """What `open_tensors` would give, as tensors that are not mapped but read one by one."""

    def lazy(file: Path, start: int, info: TensorInfo) -> LazyTensor:
        dtype = DTYPES[info.dtype]

        def read() -> Tensor:
            with file.open("rb") as stream:
                stream.seek(start + info.begin)
                data = bytearray(stream.read(info.end - info.begin))
            if not data:
                return torch.empty(info.shape, dtype=dtype)
            return torch.frombuffer(data, dtype=dtype).view(info.shape)

        return LazyTensor(dtype, info.shape, read)

    found: dict[str, LazyTensor] = {}
    for file in files_of(path):
        header = read_header(file)
        found |= {name: lazy(file, header.data_start, info) for name, info in header.tensors.items()}
    return found


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


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor | LazyTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all. The same tensors and metadata give the same bytes.

    Args:
        tensors: on any device, of any strides; tensors that share memory are written apart. Of lazy ones
            only one is in memory at a time.

    Raises:
        OutputError: the file cannot be written.
        ValueError: a dtype that the format has no name for.
    """
    # Wide types first, as the format asks, so that every tensor is aligned to its element size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, tensor in ordered:
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{name} is {tensor.dtype}, which safetensors files cannot hold")
        begin, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with whole_file(path) as temporary, temporary.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _, lazy in ordered:
            tensor = lazy.read() if isinstance(lazy, LazyTensor) else lazy
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())  # or a power cut after the rename could leave an empty file


def let_go(mapped: Tensor) -> None:
    """Take the pages of a mapped tensor out of this process's memory; it is read again if it is used again.

    A copy in another dtype would otherwise stand beside the original until the whole file is let go. The
    tensor must be one that `open_tensors` gave and that nothing was written to.
    """
    begin = -(-mapped.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (mapped.data_ptr() + mapped.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > begin and sys.platform.startswith("linux") and mapped.is_contiguous():
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def _map_file(path: Path) -> dict[str, Tensor]:
    header = read_header(path)
    size = header.data_start + max((info.end for info in header.tensors.values()), default=0)
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[header.data_start :]
    return {name: _view(data, info) for name, info in header.tensors.items()}


def _view(data: Tensor, info: TensorInfo) -> Tensor:
    dtype, flat = DTYPES[info.dtype], data[info.begin : info.end]
    if flat.storage_offset() % dtype.itemsize:
        flat = flat.clone()  # the format permits odd offsets, torch does not
    return flat.view(dtype).view(info.shape)


class _Defect(Exception):
    """Why a header is refused; `read_header` adds the file's name."""

    def __init__(self, message: str, *, hint: str = _DOWNLOAD_AGAIN, pickled: bool = False) -> None:
        super().__init__(message)
        self.hint = hint
        self.pickled = pickled


def _read_header(file: BinaryIO) -> Header:
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise _not_a_header(start, length, size)
    text = _decode(file.read(length))
    header, at = _object(text, 0, lambda name, at: (_strings if name == "__metadata__" else _entry)(text, at))
    if text[at:].strip(" "):
        raise _Defect(f"the header goes on after its end, at character {at}")
    metadata = header.pop("__metadata__", {})
    for name, info in header.items():
        _check_entry(name, info)
    _check_cover(header, size - 8 - length)
    return Header(header, metadata, 8 + length)


def _not_a_header(start: bytes, length: int, size: int) -> _Defect:
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        return _Defect("is a pickle under the name of a safetensors file", hint=PICKLE_HINT, pickled=True)
    if start == b"version ":
        return _Defect(
            "is a Git LFS pointer, not the file itself", hint="run `git lfs pull` where it was cloned"
        )
    if size < 8:
        return _Defect(f"is {size} bytes long, too short for a safetensors file")
    if length > size - 8:
        return _Defect(f"says that its header is {length} bytes long, but only {size - 8} follow")
    return _Defect(
        f"says that its header is {length} bytes long, expected at most {MAX_HEADER_BYTES}",
        hint="no known checkpoint has a header like this: do not trust the file",
    )


def _check_entry(name: str, info: TensorInfo) -> None:
    if info.dtype not in DTYPES:
        raise _Defect(f"{_show(name)} has dtype {_show(info.dtype)}, expected one of {', '.join(DTYPES)}")
    expected = info.elements * DTYPES[info.dtype].itemsize
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
