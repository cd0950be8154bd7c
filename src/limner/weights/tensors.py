"""Tensors of safetensors files: memory-mapped or read one by one, and written.

Headers are not written by the `safetensors` library, whose output differs from run to run with two or more
entries of metadata.
"""

import ctypes
import json
import math
import mmap
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.catalogue.headers import TensorInfo, files_of, read_header
from limner.files import whole_file

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


def open_tensors(path: Path) -> dict[str, Tensor]:
    """Memory-map the tensors of a safetensors file, or of all shards in an index (`.json`).

    Data is read when it is first used. The tensors can be written to: changes stay in memory.

    Raises:
        InvalidCheckpoint: As `read_header`; for an index also if a shard is missing, has a path instead of a
            plain file name, or does not hold exactly its keys.
    """
    return {name: tensor for file in files_of(path) for name, tensor in _map_file(file).items()}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read when needed, so that files larger than memory can be converted."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> "LazyTensor":
        """Wrap a tensor that is in memory already."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor)

    def to(self, dtype: torch.dtype | None) -> "LazyTensor":
        """Return the tensor in another floating dtype. Integers, and all tensors with None, keep theirs."""
        if dtype is None or dtype == self.dtype or not self.dtype.is_floating_point:
            return self
        return LazyTensor(dtype, self.shape, lambda: self.read().to(dtype))


def lazy_tensors(path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of `open_tensors`, read one by one instead of memory-mapped."""

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


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor | LazyTensor],
    metadata: Mapping[str, str] | None = None,
    *,
    overwrite: bool = True,
) -> None:
    """Write a safetensors file, whole or not at all. The same tensors and metadata give the same bytes.

    Args:
        tensors: On any device, with any strides; tensors that share memory are written separately. Lazy
            tensors are read one at a time.

    Raises:
        OutputError: The file cannot be written, or exists and `overwrite` is false.
        ValueError: The format has no name for a dtype.
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
    with whole_file(path, overwrite=overwrite) as temporary, temporary.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _, lazy in ordered:
            tensor = lazy.read() if isinstance(lazy, LazyTensor) else lazy
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())  # or a power cut after the rename could leave an empty file


def release_pages(mapped: Tensor) -> None:
    """Release the memory of a mapped tensor; it is read again when it is used again.

    Otherwise a copy in another dtype and the original would both stay in memory until the file is closed. The
    tensor must come from `open_tensors` and must not have been written to.
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
