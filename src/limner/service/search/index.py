"""The search index of one account: a SQLite file with its prompts' words, its images' settings, and vectors.

It is a cache of the ledger. Each change is one transaction with everything that belongs to it, so that a
process may be killed at any moment; a file that is broken, or of another format, is made again. Any number of
processes may use it: SQLite lets one of them write at a time.

Words are those of the distinct prompts, stemmed as English; scripts that are written without spaces are taken
apart into characters.
"""

import hashlib
import re
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limner.errors import StorageError

from .query import Query

_FORMAT = "1"  # of the file; one of another format is made again
_BUSY_SECONDS = 30.0
_UNSPACED = re.compile("([\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")

VectorsOf = Literal["image_vectors", "prompt_vectors"]
"""Vectors of images by their numbers, or of prompts by their ids in the index."""

_OWNERS: Mapping[VectorsOf, tuple[str, str]] = {
    "image_vectors": ("images", "number"),
    "prompt_vectors": ("prompts", "id"),
}
"""Tables of vectors -> the table and the column of what they are of."""

_META = {"encoder": "", "changes": "0", "removals": "0", "unmerged": "0"}
_TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE prompts (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, prompt TEXT NOT NULL,"
    " negative TEXT NOT NULL)",
    "CREATE TABLE images (number INTEGER PRIMARY KEY, prompt_id INTEGER NOT NULL, model TEXT NOT NULL,"
    " hash TEXT NOT NULL, loras TEXT NOT NULL, seed TEXT NOT NULL, steps INTEGER, width INTEGER NOT NULL,"
    " height INTEGER NOT NULL, created_at REAL NOT NULL)",
    "CREATE INDEX ix_images_prompt ON images (prompt_id)",
    # Places only grow, so that what has been added since can be asked for.
    *(
        f"CREATE TABLE {kind} (place INTEGER PRIMARY KEY AUTOINCREMENT, owner INTEGER NOT NULL UNIQUE,"
        " vector BLOB)"
        for kind in _OWNERS
    ),
    "CREATE VIRTUAL TABLE words USING fts5 (prompt, content = '',"
    " tokenize = 'porter unicode61 remove_diacritics 2')",
)
_MATCHING = "SELECT rowid FROM words WHERE words MATCH ?"
_MODEL = "instr(model, ?) OR (length(?) >= 6 AND instr(hash, ?) = 1)"

Numbers = NDArray[np.int64]
Vector = NDArray[np.float32]


@dataclass(frozen=True)
class IndexedImage:
    """What is indexed of an image.

    Attributes:
        number: Its number in the ledger.
        record: Its record, as JSON.
        created_at: Seconds since the epoch.
    """

    number: int
    record: Any
    width: int
    height: int
    created_at: float


@dataclass(frozen=True)
class Matches:
    """Prompts that have words.

    Attributes:
        prompts: Ids of all that match.
        ranked: Ids of the best of them, the best first, by words that not too many prompts have.
        every: Whether all the words are in them; else some are, as none has all.
    """

    prompts: Numbers
    ranked: tuple[int, ...] = ()
    every: bool = True


@dataclass(frozen=True)
class NewVectors:
    """Vectors that have been stored since another time.

    Attributes:
        removals: Number of removals so far: what was read before another one is to be read again.
        places: Numbers in the order of storing, which are never used again.
        owners: Their images or prompts.
        matrix: The vectors, [count, width].
    """

    removals: int
    places: Numbers
    owners: Numbers
    matrix: NDArray[np.float32]


class IndexBroken(StorageError):
    """The file of an index is damaged: it is to be erased and made again."""


class AccountIndex:
    """An index. Any thread may use it; they take turns.

    Args:
        folder: Folder of the index, which is made, and holds nothing else.

    Raises:
        StorageError: The folder or its disk cannot be written.
        IndexBroken: The file is damaged.
    """

    RANKED = 2000
    """Prompts are ranked by a word if at most so many, or one in a hundred, have it: to rank by other words
    takes long and says little. And so many are ranked at most."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "index.sqlite3"
        self._turn = threading.RLock()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _translated():
                self._connection = self._open()
            self._inode = self._path.stat().st_ino
        except OSError as error:
            raise StorageError(f"the search index cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        with self._turn:
            self._connection.close()

    @property
    def is_there(self) -> bool:
        """Whether its file is still in the folder: another process may have erased it."""
        with suppress(OSError):
            return self._path.stat().st_ino == self._inode
        return False

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            # What is deleted is overwritten. Power may take the last transactions, whole.
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"):
                connection.execute(f"PRAGMA {pragma}")
            with _transaction(connection):
                if not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                    for statement in _TABLES:
                        connection.execute(statement)
                    meta = {**_META, "format": _FORMAT, "birth": secrets.token_hex(8)}
                    connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            if _meta(connection, "format") != _FORMAT:
                raise IndexBroken("the search index has the format of another version")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One state of the index."""
        with self._turn, _translated():
            if self._connection.in_transaction:
                yield self._connection
                return
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._connection.execute("ROLLBACK")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._turn, _translated(), _transaction(self._connection):
            yield self._connection

    # -- images --

    @property
    def changes(self) -> int:
        """Number of times that images were added or removed."""
        with self._reading() as connection:
            return int(_meta(connection, "changes"))

    def images(self) -> tuple[Numbers, Numbers]:
        """The numbers of all images, in order, and the ids of their prompts."""
        with self._reading() as connection:
            rows = connection.execute("SELECT number, prompt_id FROM images ORDER BY number").fetchall()
        table = np.array(rows, np.int64).reshape(-1, 2)
        return table[:, 0].copy(), table[:, 1].copy()

    def add(self, images: Sequence[IndexedImage]) -> tuple[Numbers, Numbers]:
        """Add images, in one transaction. Those that are there already stay as they are.

        Returns:
            Numbers of those that were added, and the ids of their prompts.
        """
        added = []
        with self._writing() as connection:
            _count(connection, "changes")
            for image in images:
                row = _row(image)
                known = "SELECT 1 FROM images WHERE number = ?"
                if connection.execute(known, (image.number,)).fetchone():
                    continue
                row["prompt_id"] = _prompt_id(connection, row.pop("prompt"), row.pop("negative"))
                names = ", ".join(row)
                marks = ", ".join(f":{name}" for name in row)
                connection.execute(f"INSERT INTO images ({names}) VALUES ({marks})", row)
                added.append((image.number, row["prompt_id"]))
        return _ids(added), _ids([one[1:] for one in added])

    def remove(self, numbers: Iterable[int]) -> None:
        """Remove images, with what nothing else needs of their prompts, in one transaction."""
        with self._writing() as connection:
            one = [(int(number),) for number in numbers]
            _temporary(connection, "gone", (number for (number,) in one))
            its = "SELECT DISTINCT prompt_id FROM images WHERE number IN (SELECT id FROM temp.gone)"
            prompt_ids = [row[0] for row in connection.execute(its)]
            connection.executemany("DELETE FROM image_vectors WHERE owner = ?", one)
            connection.executemany("DELETE FROM images WHERE number = ?", one)
            _count(connection, "changes")
            _count(connection, "removals")
            for prompt_id in prompt_ids:
                _forget_unused(connection, prompt_id)

    def clean(self) -> None:
        """Take the words of removed prompts out of the file, which it keeps until its parts are merged."""
        with self._reading() as connection:
            if _meta(connection, "unmerged") == "0":
                return
        with self._writing() as connection:
            connection.execute("INSERT INTO words (words) VALUES ('optimize')")
            connection.execute("UPDATE meta SET value = '0' WHERE name = 'unmerged'")
        with self._turn, _translated():  # the log holds what was overwritten in the file
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # -- words and settings --

    def match(self, words: Sequence[str]) -> Matches:
        """The prompts that have all of the words and phrases; where none has, those that have some of them.

        Args:
            words: A word that ends in `*` stands for all that begin so.
        """
        phrases = [_phrase(word) for word in words]
        with self._reading() as connection:
            count = connection.execute("SELECT count(*) FROM prompts").fetchone()[0]
            most = max(self.RANKED, count // 100)
            rare = [phrase for phrase in phrases if _at_most(connection, phrase, most)]
            found = connection.execute(_MATCHING, (" AND ".join(phrases),)).fetchall()
            if found or len(phrases) == 1:
                ranked = self._ranked(connection, " AND ".join(rare))
                return Matches(_ids(found), ranked)
            ranked = self._ranked(connection, " OR ".join(rare))
            return Matches(np.array(ranked, np.int64), ranked, every=False)

    def _ranked(self, connection: sqlite3.Connection, expression: str) -> tuple[int, ...]:
        if not expression:
            return ()
        ranked = f"{_MATCHING} ORDER BY bm25(words), rowid DESC LIMIT ?"
        return tuple(row[0] for row in connection.execute(ranked, (expression, self.RANKED)))

    def fitting(self, query: Query) -> Numbers | None:
        """The images that fit a query's settings and dates; None where it has none of these: all."""
        clauses: list[tuple[str, list[Any]]] = [
            _any_of(_MODEL, [[name.casefold()] * 3 for name in query.models]),
            _any_of("instr(loras, ?)", [[name.casefold()] for name in query.loras]),
            _any_of("seed = ?", [[str(seed)] for seed in query.seeds]),
            _any_of("width = ? AND height = ?", [list(size) for size in query.sizes]),
            *(_any_of("steps >= ? AND steps < ?", [list(one) for one in each]) for each in query.steps),
            *(
                _any_of("created_at >= ? AND created_at < ?", [list(one) for one in each])
                for each in query.dates
            ),
        ]
        clauses = [clause for clause in clauses if clause[0]]
        if not clauses:
            return None
        where = " AND ".join(condition for condition, _ in clauses)
        values = [value for _, its in clauses for value in its]
        with self._reading() as connection:
            return _ids(connection.execute(f"SELECT number FROM images WHERE {where}", values).fetchall())

    def prompts(self, ids: Iterable[int]) -> dict[int, tuple[str, str]]:
        """Prompts and negative prompts by their ids."""
        with self._reading() as connection:
            _temporary(connection, "wanted", ids)
            its = "SELECT id, prompt, negative FROM prompts WHERE id IN (SELECT id FROM temp.wanted)"
            return {row[0]: (row[1], row[2]) for row in connection.execute(its)}

    # -- vectors --

    @property
    def encoder(self) -> str:
        """Hash of the encoder that the vectors are of; "" before the first."""
        with self._reading() as connection:
            return _meta(connection, "encoder")

    @property
    def birth(self) -> str:
        """A random name, new with each file and encoder: places of vectors mean nothing elsewhere."""
        with self._reading() as connection:
            return _meta(connection, "birth")

    def missing(self, kind: VectorsOf, limit: int) -> list[int]:
        """Images or prompts without a vector, the newest first."""
        table, owner = _OWNERS[kind]
        query = f"SELECT {owner} FROM {table} WHERE {owner} NOT IN (SELECT owner FROM {kind})"
        with self._reading() as connection:
            rows = connection.execute(f"{query} ORDER BY {owner} DESC LIMIT ?", (limit,)).fetchall()
        return [row[0] for row in rows]

    def put_vectors(self, kind: VectorsOf, encoder: str, vectors: Mapping[int, Vector | None]) -> None:
        """Store vectors, in one transaction. Those of another encoder are dropped: they mean nothing beside
        them.

        Args:
            encoder: Hash of the encoder.
            vectors: By image or prompt; None for one that cannot be encoded. What is removed by now is
                left out.
        """
        table, owner = _OWNERS[kind]
        with self._writing() as connection:
            if _meta(connection, "encoder") != encoder:
                for one in _OWNERS:
                    connection.execute(f"DELETE FROM {one}")
                now = [(encoder, "encoder"), (secrets.token_hex(8), "birth")]
                connection.executemany("UPDATE meta SET value = ? WHERE name = ?", now)
                _count(connection, "removals")
            for number, vector in vectors.items():
                blob = None if vector is None else vector.astype("<f2").tobytes()
                connection.execute(
                    f"INSERT OR REPLACE INTO {kind} (owner, vector) "
                    f"SELECT ?, ? WHERE EXISTS (SELECT 1 FROM {table} WHERE {owner} = ?)",
                    (number, blob, number),
                )

    def new_vectors(self, kind: VectorsOf, after: int) -> NewVectors:
        """Vectors that were stored at places after one; after 0: all."""
        query = (
            f"SELECT place, owner, vector FROM {kind} WHERE vector IS NOT NULL AND place > ? ORDER BY place"
        )
        with self._reading() as connection:
            removals = int(_meta(connection, "removals"))
            rows = connection.execute(query, (after,)).fetchall()
        owners, matrix = _ids([row[1:] for row in rows]), _matrix([row[2] for row in rows])
        return NewVectors(removals, _ids(rows), owners, matrix)

    def vectors(self, kind: VectorsOf, owners: Iterable[int]) -> tuple[Numbers, NDArray[np.float32]]:
        """Those of the owners that have a vector, and their vectors, [count, width]."""
        with self._reading() as connection:
            _temporary(connection, "wanted", owners)
            rows = connection.execute(
                f"SELECT owner, vector FROM {kind} JOIN temp.wanted ON owner = id WHERE vector IS NOT NULL"
            ).fetchall()
        return _ids(rows), _matrix([row[1] for row in rows])


def _row(image: IndexedImage) -> dict[str, Any]:
    """The columns of an image, with its prompts. What its record lacks is empty."""
    request, model = image.record.get("request") or {}, image.record.get("model") or {}
    steps = request.get("steps")
    adapters = {str(one.get("name", "")) for one in request.get("loras") or ()}
    adapters |= {name.removeprefix("lora ") for name in model if name.startswith("lora ")}
    return {
        "number": image.number,
        "prompt": str(request.get("prompt") or ""),
        "negative": str(request.get("negative_prompt") or ""),
        "model": str(model.get("name") or "").casefold(),
        "hash": str(model.get("sha256") or "").casefold(),
        "loras": "\n".join(sorted(name.casefold() for name in adapters)),
        "seed": str(request.get("seed", "")),
        "steps": steps if isinstance(steps, int) else None,
        "width": image.width,
        "height": image.height,
        "created_at": image.created_at,
    }


def _prompt_id(connection: sqlite3.Connection, prompt: str, negative: str) -> int:
    """Id of a prompt, which is added if it is new."""
    digest = hashlib.sha256(f"{prompt}\0{negative}".encode("utf-8", "surrogatepass")).digest()[:16]
    row = connection.execute("SELECT id FROM prompts WHERE digest = ?", (digest,)).fetchone()
    if row is not None:
        return int(row[0])
    values = (digest, prompt, negative)
    added = connection.execute("INSERT INTO prompts (digest, prompt, negative) VALUES (?, ?, ?)", values)
    connection.execute("INSERT INTO words (rowid, prompt) VALUES (?, ?)", (added.lastrowid, _spaced(prompt)))
    assert added.lastrowid is not None
    return added.lastrowid


def _forget_unused(connection: sqlite3.Connection, prompt_id: int) -> None:
    """Remove a prompt that no image has."""
    if connection.execute("SELECT 1 FROM images WHERE prompt_id = ? LIMIT 1", (prompt_id,)).fetchone():
        return
    (prompt,) = connection.execute("SELECT prompt FROM prompts WHERE id = ?", (prompt_id,)).fetchone()
    remove = "INSERT INTO words (words, rowid, prompt) VALUES ('delete', ?, ?)"
    connection.execute(remove, (prompt_id, _spaced(prompt)))
    connection.execute("DELETE FROM prompt_vectors WHERE owner = ?", (prompt_id,))
    connection.execute("DELETE FROM prompts WHERE id = ?", (prompt_id,))
    connection.execute("UPDATE meta SET value = '1' WHERE name = 'unmerged'")


def _spaced(text: str) -> str:
    """A text whose words are apart, as far as characters show it."""
    return _UNSPACED.sub(r" \1 ", text)


def _phrase(word: str) -> str:
    """A word or phrase as FTS5 takes it."""
    text = _spaced(word).replace('"', " ").replace("\0", " ")
    return f'"{text}"' + (" *" if word.endswith("*") else "")


def _at_most(connection: sqlite3.Connection, phrase: str, count: int) -> bool:
    """Whether at most so many prompts have a phrase."""
    counted = f"SELECT count(*) FROM ({_MATCHING} LIMIT ?)"
    return bool(connection.execute(counted, (phrase, count + 1)).fetchone()[0] <= count)


def _any_of(condition: str, alternatives: Sequence[list[Any]]) -> tuple[str, list[Any]]:
    """A condition that one of several lists of values meets, and all the values; "" without any."""
    either = " OR ".join([f"({condition})"] * len(alternatives))
    return either and f"({either})", [value for values in alternatives for value in values]


def _temporary(connection: sqlite3.Connection, name: str, ids: Iterable[int]) -> None:
    """A temporary table of ids."""
    connection.execute(f"CREATE TEMP TABLE IF NOT EXISTS {name} (id INTEGER PRIMARY KEY)")
    connection.execute(f"DELETE FROM temp.{name}")
    connection.executemany(f"INSERT OR IGNORE INTO temp.{name} VALUES (?)", ((int(one),) for one in ids))


def _meta(connection: sqlite3.Connection, name: str) -> str:
    return str(connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0])


def _count(connection: sqlite3.Connection, name: str) -> None:
    connection.execute("UPDATE meta SET value = value + 1 WHERE name = ?", (name,))


def _ids(rows: Sequence[tuple[Any, ...]]) -> Numbers:
    """The first column of rows."""
    return np.array([row[0] for row in rows], np.int64)


def _matrix(blobs: Sequence[bytes]) -> NDArray[np.float32]:
    """Vectors of f16 as rows of f32."""
    if not blobs:
        return np.zeros((0, 0), np.float32)
    return np.frombuffer(b"".join(blobs), "<f2").reshape(len(blobs), -1).astype(np.float32)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def _translated() -> Iterator[None]:
    """Errors of SQLite in this program's words."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or "no such table" in str(error):
            raise IndexBroken(f"the search index is damaged: {error}") from error
        raise StorageError(
            f"the search index cannot be read or written: {error}", hint="check the disk of the data folder"
        ) from error
