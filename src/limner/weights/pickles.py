"""Tensors out of PyTorch's pickles (`.ckpt`, `.pt`, `.bin`), without running what a pickle may ask to run.

Such a file is a zip archive with a pickle, which describes the tensors, and files with their bytes. The
pickle is read in a process of its own that knows tensors and containers and nothing else (`unpickle.py`);
what it says is checked here before a byte is read. Files of PyTorch before 1.6 are no archives, and refused.
"""

import json
import math
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.catalogue.headers import MAX_ENTRIES, other_content
from limner.errors import InvalidCheckpoint, PickleRefused

from .tensors import DTYPES, LazyTensor
from .unpickle import MAX_SECONDS

Value = None | bool | int | float | str

MAX_PICKLE_BYTES = 64 << 20  # that of a training state of XL takes 3


@dataclass(frozen=True)
class Pickle:
    """What a pickle holds; nested keys are joined by dots.

    Attributes:
        tensors: not read yet.
        values: numbers, texts and the like.
    """

    tensors: Mapping[str, LazyTensor]
    values: Mapping[str, Value]

    def model(self) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
        """The tensors of a model, and the keys of the others: those that training would go on from.

        Checkpoints of training have the model under the key "state_dict".
        """
        first = "state_dict." if any(key.startswith("state_dict.") for key in self.tensors) else ""
        own = {key.removeprefix(first): t for key, t in self.tensors.items() if key.startswith(first)}
        return own, tuple(key for key in self.tensors if not key.startswith(first))


def read_pickle(path: Path) -> Pickle:
    """Read what a file of `torch.save` says that it holds.

    Raises:
        PickleRefused: it would call something else than what tensors and containers are made of; named.
        InvalidCheckpoint: it is damaged, or not a zip archive as PyTorch writes it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            [main] = [name for name in entries if name.endswith("data.pkl") and name.count("/") <= 1]
            root = main.removesuffix("data.pkl")
            with archive.open(main) as stream:
                data = stream.read(MAX_PICKLE_BYTES + 1)
            order = b"little"
            if f"{root}byteorder" in entries:
                with archive.open(f"{root}byteorder") as stream:
                    order = stream.read(16)
    except OSError as error:
        raise InvalidCheckpoint(f"{path} cannot be read: {error.strerror}") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise _not_an_archive(path) from error
    if len(data) > MAX_PICKLE_BYTES or len(entries) > MAX_ENTRIES or order != b"little":
        raise InvalidCheckpoint(f"{path} is not as any known checkpoint: do not trust it")
    answer = _in_own_process(path, data)
    try:
        tensors = {
            name: _tensor(path, entries, root, *described) for name, described in answer["tensors"].items()
        }
        size = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
        if size > 2 * path.stat().st_size:
            raise ValueError(f"its tensors would take {size} bytes")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InvalidCheckpoint(f"{path} does not hold what its pickle says: {error}") from error
    return Pickle(tensors, answer["values"])


def _not_an_archive(path: Path) -> InvalidCheckpoint:
    with path.open("rb") as file:
        head = file.read(1024)
    if head[8:9] == b"{" and path.suffix != ".safetensors":
        return InvalidCheckpoint(
            f"{path} is a safetensors file under another name", hint="rename it to end in .safetensors"
        )
    other = other_content(head)
    if other is not None and not other.pickled:
        return InvalidCheckpoint(f"{path} is {other.what}, not a file of torch.save", hint=other.hint)
    return InvalidCheckpoint(
        f"{path} is no archive as torch.save writes it",
        hint="the file is damaged, or was written before PyTorch 1.6: save it again with a newer one",
    )


def _in_own_process(path: Path, data: bytes) -> Any:
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("unpickle.py"))]
    try:
        done = subprocess.run(command, input=data, capture_output=True, env={}, timeout=3 * MAX_SECONDS)
    except subprocess.TimeoutExpired:
        raise InvalidCheckpoint(f"the pickle in {path} takes too long to read: do not trust it") from None
    answer = json.loads(done.stdout or "{}")
    if "refused" in answer:
        raise PickleRefused(
            f"the pickle in {path} would call {ascii(answer['refused'])[1:-1][:120]}, which no tensors need; "
            "nothing of it was run",
            hint="do not trust the file",
        )
    if "tensors" not in answer:
        reason = ascii(answer.get("error", f"its reader ended with code {done.returncode}"))[1:-1]
        raise InvalidCheckpoint(f"the pickle in {path} holds something else than tensors: {reason}")
    return answer


def _tensor(
    path: Path,
    entries: Mapping[str, zipfile.ZipInfo],
    root: str,
    dtype_name: str,
    key: str,
    elements: int,
    offset: int,
    shape: list[int],
    stride: list[int],
) -> LazyTensor:
    """Check a tensor as the pickle describes it: a window onto a storage, counted in elements."""
    dtype, entry = DTYPES[dtype_name], entries[f"{root}data/{key}"]
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != elements * dtype.itemsize:
        raise ValueError(f"storage {key} is of {entry.file_size} bytes, expected {elements} of {dtype}")
    if not all(isinstance(number, int) and number >= 0 for number in (offset, *shape, *stride)):
        raise ValueError(f"a tensor of shape {shape}, stride {stride} and offset {offset}")
    count = math.prod(shape)
    end = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1 if count else offset
    if end > elements or count > elements:
        raise ValueError(f"a tensor of shape {shape}, which storage {key} is too small for")

    def read() -> Tensor:
        with path.open("rb") as file:
            file.seek(entry.header_offset)
            local = file.read(30)  # the header before the data, and behind it a name and extra fields
            if local[:4] != b"PK\x03\x04":
                raise InvalidCheckpoint(f"{path} is damaged: storage {key} is not where it should be")
            names = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
            file.seek(names + offset * dtype.itemsize, os.SEEK_CUR)
            data = bytearray(file.read((end - offset) * dtype.itemsize))
        if not data:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).as_strided(shape, stride)

    return LazyTensor(dtype, tuple(shape), read)
