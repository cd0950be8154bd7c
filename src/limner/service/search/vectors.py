"""Vectors of an index in memory, and which of them are nearest to another.

Up to `EXACT` of them are compared one by one with numpy, which takes milliseconds. Where there are more, and
`usearch` is installed (`pip install 'limner[memory]'`), a graph finds candidates, which are then compared
exactly; without, all are compared all the same.

The graph is a file beside the index, and a cache of it. It is written under another name, then renamed, and
never changed: what has been stored since is compared one by one, what was removed is passed over, and when
either is much, it is built again.
"""

import logging
import os
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import StorageError

from .index import AccountIndex, Numbers, Vector, VectorsOf

_LOG = logging.getLogger("limner.search")

EXACT = 50_000
"""Number of vectors that are compared one by one."""

_STALE = 0.1  # share of vectors that a graph may lack, or have too many
_SAMPLE = 4096  # vectors that stand for all
_CHUNK = 20_000  # vectors that are copied at once
_SUFFIX = ".usearch"
_WIDER = 4  # times as many candidates are asked for as are wanted, and again while too few of them are


class Vectors:
    """The vectors of images or prompts of an index. For one thread at a time.

    Args:
        index: The index.
        kind: Whose vectors.
        exact: Number of vectors up to which all are compared.

    Attributes:
        kind: Whose they are.
        owners: The images or prompts that have one.
    """

    def __init__(self, index: AccountIndex, kind: VectorsOf, *, exact: int = EXACT) -> None:
        self._index, self.kind, self._exact = index, kind, exact
        self._drop()

    def _drop(self) -> None:
        self._removals: int | None = None
        self._places, self.owners = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._matrix: NDArray[Any] = np.zeros((0, 0), np.float32)  # f16 where there is a graph
        self._graph: Any = None
        self._built = 0  # last place that the graph has

    def refresh(self) -> None:
        """Read what has been stored and removed since the last time."""
        after = int(self._places[-1]) if len(self._places) else 0
        new = self._index.new_vectors(self.kind, after)
        if self._removals not in (None, new.removals):
            self._drop()
            new = self._index.new_vectors(self.kind, 0)
        self._removals = new.removals
        if len(new.places):
            self._places = np.concatenate((self._places, new.places))
            self.owners = np.concatenate((self.owners, new.owners))
            matrix = new.matrix.astype(self._matrix.dtype, copy=False)
            self._matrix = np.concatenate((self._matrix, matrix)) if len(self._matrix) else matrix
        if len(self.owners) > self._exact:
            self._follow_graph()

    def having(self, owners: Numbers) -> Numbers:
        """Those of the owners that have a vector, in their order."""
        return owners[np.isin(owners, self.owners)]

    def sample_of(self, owners: Numbers) -> Numbers:
        """Some of the owners that have a vector, evenly spread: at most `_SAMPLE`, which stand for all."""
        having = self.having(owners)
        return having[:: 1 + len(having) // _SAMPLE]

    def of(self, owners: Numbers) -> tuple[Numbers, NDArray[np.float32]]:
        """Those of the owners that have a vector, and their vectors, [count, width]."""
        rows = self._rows(owners)
        return self.owners[rows], self._matrix[rows].astype(np.float32, copy=False)

    def likeness(self, vector: Vector, owners: Numbers) -> tuple[Numbers, Vector]:
        """Those of the owners that have a vector, and their cosines with another one, each computed."""
        rows = self._rows(owners)
        return self.owners[rows], self._cosines(vector, rows)

    def _rows(self, owners: Numbers) -> Numbers:
        return np.flatnonzero(np.isin(self.owners, owners))

    def _cosines(self, vector: Vector, rows: Numbers) -> Vector:
        if self._graph is None and 2 * len(rows) > len(self.owners):
            every: Vector = self._matrix @ vector  # takes less time than to copy the rows
            return every[rows]
        cosines = np.zeros(len(rows), np.float32)
        for start in range(0, len(rows), _CHUNK):
            part = self._matrix[rows[start : start + _CHUNK]]
            cosines[start : start + _CHUNK] = part.astype(np.float32, copy=False) @ vector
        return cosines

    def nearest(self, vector: Vector, owners: Numbers, count: int) -> tuple[Numbers, Vector]:
        """The owners that are nearest to a vector, the nearest first, and their cosines with it.

        Where a graph finds them, one or the other may be missed.
        """
        rows = self._rows(owners)
        if self._graph is not None and len(rows) > self._exact:
            rows = self._candidates(vector, rows, count)
        found, cosines = self.owners[rows], self._cosines(vector, rows)
        if len(found) > 2 * count:
            best = np.argpartition(-cosines, count)[:count]
            found, cosines = found[best], cosines[best]
        best = np.lexsort((-found, -cosines))[:count]  # of the same, the newest first
        return found[best], cosines[best]

    def spread(self, vector: Vector, owners: Numbers) -> tuple[float, float]:
        """Mean and standard deviation of the cosines of the owners with a vector, by a sample of many."""
        _, cosines = self.likeness(vector, self.sample_of(owners))
        return (float(cosines.mean()), float(cosines.std())) if len(cosines) else (0.0, 0.0)

    def _candidates(self, vector: Vector, rows: Numbers, count: int) -> Numbers:
        """Those of the rows that may be among the nearest: what the graph finds, and all that it lacks."""
        places = self._places[rows]
        known = int(np.searchsorted(places, self._built, side="right"))
        most, asked = len(self._graph), _WIDER * count
        while True:
            keys = self._graph.search(vector, min(asked, most)).keys.astype(np.int64)
            hits = keys[np.isin(keys, places[:known])]
            if len(hits) >= min(count, known) or asked >= most:
                break
            asked *= _WIDER
        return np.concatenate((np.searchsorted(self._places, hits), rows[known:]))

    def _follow_graph(self) -> None:
        """Use the newest graph of the index, if there is a newer one than that in use."""
        usearch, graphs = _usearch(), _graphs(self._index, self.kind)
        if usearch is None or not graphs:
            return
        place, path = max(graphs)
        if place <= self._built:
            return
        try:
            graph = usearch.Index.restore(path, view=True)
        except Exception as error:  # of the library: the file can be made again
            _LOG.warning("the graph of a search index cannot be read, and is made again: %s", error)
            path.unlink(missing_ok=True)
            return
        self._graph, self._built = graph, place
        self._matrix = self._matrix.astype(np.float16, copy=False)

    @property
    def needs_graph(self) -> bool:
        """Whether a graph is to be built: there are many vectors, and none has most of them."""
        if len(self.owners) <= self._exact or _usearch() is None:
            return False
        if self._graph is None:
            return True
        known = int(np.searchsorted(self._places, self._built, side="right"))
        off = len(self._graph) - known + len(self._places) - known
        return off > _STALE * len(self._places)


def build_graph(index: AccountIndex, kind: VectorsOf) -> None:
    """Build the graph of an index's vectors, which takes minutes for a million. Others may use the index
    meanwhile.

    Raises:
        StorageError: It cannot be written.
    """
    usearch = _usearch()
    birth = index.birth
    now = index.new_vectors(kind, 0)
    if usearch is None or not len(now.places):
        return
    graph = usearch.Index(ndim=now.matrix.shape[1], metric="ip", dtype="f16")
    graph.add(now.places.astype(np.uint64), now.matrix)
    if index.birth != birth:
        return
    last = int(now.places[-1])
    path = index.folder / f"{kind}-{birth}-{last}{_SUFFIX}"
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        graph.save(unfinished)
        os.replace(unfinished, path)
        for other in index.folder.glob(f"{kind}-*"):
            if other != path:
                other.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"the graph of a search index cannot be written: {error}") from error


def _graphs(index: AccountIndex, kind: VectorsOf) -> list[tuple[int, Path]]:
    """The graphs of an index, each with the last place that it has."""
    paths = index.folder.glob(f"{kind}-{index.birth}-*{_SUFFIX}")
    return [(int(path.stem.rpartition("-")[2]), path) for path in paths]


@cache
def _usearch() -> Any:
    """The library of graphs; None where it is not installed."""
    try:
        return import_module("usearch.index")
    except ImportError:
        return None
