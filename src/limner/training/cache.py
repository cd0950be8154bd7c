"""Arrays too large for memory, whose rows are made once and found by the content they were made from."""

import json
import logging
import math
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .data import Dataset, Images

_LOG = logging.getLogger("limner.training")

_BLOCK = 256  # rows that are made at once
_AHEAD = 8  # blocks in the queue of the rendering processes
KEY_BYTES = 32

Fill = Callable[[Sequence[Sequence[int]]], Iterable[NDArray[Any]]]
"""Makes the rows of each block of indices [len(block), ...], in order."""


class Cache:
    """Rows of one shape, in a file that is mapped into memory.

    `FILE.keys` holds the key of each row, so a row is found whatever its index is now: data may grow, shrink
    or change order, and only what is new is made. The files only grow at their ends, so making them resumes
    where it stopped. Rows that no key asks for any more stay until the cache is deleted.

    Args:
        file: File of raw values; `FILE.json` next to it describes them.
        identity: JSON of what all rows depend on besides their keys; another identity starts over.
        keys: A digest of 32 bytes for each index, of what its row is made from.
        shape: Shape of one row.
        dtype: Type of the values.
        fill: Makes the rows that are missing.
    """

    def __init__(
        self,
        file: Path,
        identity: dict[str, Any],
        keys: Sequence[bytes],
        shape: tuple[int, ...],
        dtype: type[np.generic],
        fill: Fill,
    ) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        label, known = file.with_suffix(".json"), file.with_suffix(".keys")
        what = {**identity, "row": [np.dtype(dtype).name, *shape]}
        if not (label.exists() and json.loads(label.read_text()) == what):
            for old in (file, known):
                old.unlink(missing_ok=True)
            label.write_text(json.dumps(what))
        with file.open("ab") as rows, known.open("a+b") as names:
            row_bytes = math.prod(shape) * np.dtype(dtype).itemsize
            done = min(rows.tell() // row_bytes, names.tell() // KEY_BYTES)
            rows.truncate(done * row_bytes)
            names.truncate(done * KEY_BYTES)
            names.seek(0)
            stored = names.read()
            found = {stored[i * KEY_BYTES : (i + 1) * KEY_BYTES]: i for i in range(done)}
            first_of: dict[bytes, int] = {}
            for index, key in enumerate(keys):
                if key not in found:
                    first_of.setdefault(key, index)
            missing = list(first_of.values())
            blocks = [missing[start : start + _BLOCK] for start in range(0, len(missing), _BLOCK)]
            for block, values in zip(_reported(blocks, file), fill(blocks) if blocks else (), strict=True):
                rows.write(np.ascontiguousarray(values, dtype).tobytes())
                rows.flush()  # a row is on the disk before its key says so
                names.write(b"".join(keys[i] for i in block))
                names.flush()
                for i in block:
                    found[keys[i]] = len(found)
        self._row_of = np.array([found[key] for key in keys], np.int64)
        self._rows: NDArray[Any] = np.memmap(file, dtype, "r", shape=(len(found), *shape))

    def __len__(self) -> int:
        return len(self._row_of)

    def __getitem__(self, index: int | Sequence[int]) -> NDArray[Any]:
        """The row of an index, or a new array of the rows of several."""
        rows: NDArray[Any] = self._rows[self._row_of[index]]
        return rows


def _reported(blocks: list[list[int]], file: Path) -> Iterator[list[int]]:
    """The blocks; logs how many rows are made, every ten seconds."""
    total, made = sum(map(len, blocks)), 0
    began = logged = time.monotonic()
    for block in blocks:
        yield block
        made += len(block)
        now = time.monotonic()
        if now - logged > 10 or made == total:
            logged = now
            fields = {"file": str(file), "rows": made, "total": total, "rows_per_s": made / (now - began)}
            _LOG.info("cached", extra={"fields": fields})


class CachedPictures:
    """A data set whose images are made once, into a file in `folder`, when the first is asked for."""

    def __init__(self, pictures: Dataset, folder: Path) -> None:
        self.pictures, self.folder = pictures, folder
        self.size, self.identity = pictures.size, pictures.identity
        self.key, self.caption = pictures.key, pictures.caption
        self.false_captions = pictures.false_captions

    @cached_property
    def cache(self) -> Cache:
        keys = [self.pictures.key(index) for index in range(len(self))]
        shape, fill = (self.size, self.size, 3), partial(drawn, self.pictures)
        return Cache(self.folder / "pictures.u8", {}, keys, shape, np.uint8, fill)

    def __len__(self) -> int:
        return len(self.pictures)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self.cache[index]
        return pixels


def drawn(pictures: Images, blocks: Sequence[Sequence[int]]) -> Iterator[NDArray[np.uint8]]:
    """The pixels of each block of indices [len(block), ...], made ahead of their use in other processes."""
    if len(blocks) == 1:
        yield draw_block(pictures, blocks[0])
        return
    # Processes are spawned, since a forked one may inherit a lock that a thread of the parent holds.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as processes:
        waiting = deque(processes.submit(draw_block, pictures, block) for block in blocks[:_AHEAD])
        for index in range(len(blocks)):
            yield waiting.popleft().result()
            if index + _AHEAD < len(blocks):
                waiting.append(processes.submit(draw_block, pictures, blocks[index + _AHEAD]))


def draw_block(pictures: Images, block: Sequence[int]) -> NDArray[np.uint8]:
    """The pixels of several images [len(block), ...]."""
    return np.stack([pictures.pixels(index) for index in block])
