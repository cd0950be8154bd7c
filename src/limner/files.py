"""Folders walked, size-limited JSON, files written whole under free names, values cached by file stamp."""

import errno
import json
import os
import re
import secrets
import shutil
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from stat import S_ISDIR
from typing import Any, Generic, TypeVar

from limner.errors import InvalidCheckpoint, OutputError
from limner.forks import renew_after_fork

# Configs are a few kilobytes, and the index of the largest sharded checkpoints a few hundred.
MAX_JSON_BYTES = 4 << 20

_NUMBER = re.compile(r"(\d{5,})-")  # begins the names of numbered files

V = TypeVar("V")


@dataclass(frozen=True, order=True)
class FileStamp:
    """Identity of a file, or of the files of a folder: a replaced or changed file has another stamp.

    Attributes:
        path: As given to `of`; a file and a link to it have stamps of their own.
        size: Bytes; of a folder, the sum over the files in it.
        mtime_ns: Time of the last change in nanoseconds; of a folder, that of its newest file.
        inode: Of the file that a link points to; of a folder, its own.
    """

    path: Path
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> "FileStamp":
        """Stamp of a file or folder. Raises OSError where there is none."""
        status = path.stat()
        if not path.is_dir():
            return cls(path, status.st_size, status.st_mtime_ns, status.st_ino)
        files = [file.stat() for file in path.iterdir() if file.is_file()]
        newest = max((file.st_mtime_ns for file in files), default=status.st_mtime_ns)
        return cls(path, sum(file.st_size for file in files), newest, status.st_ino)


class StampCache(Generic[V]):
    """Values computed from files, each kept while its file stays the same. Safe to use from any thread.

    Args:
        read: Computes the value of the file or folder at a path.
        max_entries: Number of values kept; the least recently used is dropped first. None: all.
    """

    def __init__(self, read: Callable[[Path], V], max_entries: int | None = None) -> None:
        self._read, self._max_entries = read, max_entries
        self._values: OrderedDict[FileStamp, V] = OrderedDict()
        self.renew()
        renew_after_fork(self)

    def renew(self) -> None:
        """In a forked process: make a new lock, as another thread may have held the old one."""
        self._lock = threading.Lock()

    def get(self, file: Path | FileStamp) -> V:
        """Value of a file, computed if it is not cached. Raises OSError, and whatever `read` raises."""
        stamp = file if isinstance(file, FileStamp) else FileStamp.of(file)
        with self._lock:
            if stamp in self._values:
                self._values.move_to_end(stamp)
                return self._values[stamp]
        value = self._read(stamp.path)  # outside the lock: one slow file does not hold up the others
        with self._lock:
            value = self._values.setdefault(stamp, value)  # threads that read at once share the first value
            self._values.move_to_end(stamp)
            while self._max_entries is not None and len(self._values) > self._max_entries:
                self._values.popitem(last=False)
        return value


def walk_folder(folder: Path) -> list[tuple[Path, list[Path]]]:
    """A folder and all its subfolders with their files, sorted by path.

    Links are followed, but no folder is listed twice, even where a link leads back to it; a folder that is
    also reached without a link is listed under that path. Hidden files and folders, broken links and folders
    that cannot be read are left out.
    """
    found: list[tuple[Path, list[Path]]] = []
    seen: set[tuple[int, int]] = set()
    waiting, linked = deque([folder]), deque[Path]()
    while waiting or linked:
        at = waiting.popleft() if waiting else linked.popleft()
        try:
            status = at.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            with os.scandir(at) as scanned:
                entries = sorted((e for e in scanned if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if _is(entry.is_dir):
                (linked if entry.is_symlink() else waiting).append(at / entry.name)
        found.append((at, [at / entry.name for entry in entries if _is(entry.is_file)]))
    return sorted(found)


def _is(ask: Callable[[], bool]) -> bool:
    try:
        return ask()
    except OSError:  # a link to itself, or into a folder that cannot be read
        return False


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file that nobody vouches for.

    Raises:
        InvalidCheckpoint: the file is missing, larger than 4 MiB, not UTF-8, not JSON as Python writes it
            (NaN, Infinity and -Infinity included), or not an object.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise InvalidCheckpoint(f"{path} is missing") from None
    except OSError as error:
        raise InvalidCheckpoint(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) > MAX_JSON_BYTES:
        raise InvalidCheckpoint(
            f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB, too large for a config or index"
        )
    try:
        return parse_object(raw)
    except ValueError as error:
        raise InvalidCheckpoint(f"{path} {error}") from None


def parse_object(raw: bytes | str) -> dict[str, Any]:
    """Parse a JSON object as Python's `json` does: of a key that is given twice the last one counts.

    Raises:
        ValueError: it is not one; the message goes on from the name of what holds it.
    """
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw.removeprefix("\ufeff")
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"holds a JSON {type(values).__name__}, expected an object")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"key {key!r} is given twice")
        values[key] = value
    return values


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


STRICT_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)
"""Decoder that refuses NaN, infinities and keys given twice."""


@contextmanager
def whole_file(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, and rename it to `path` if the block succeeds.

    A crash leaves the old file or the new one, never a part.

    Raises:
        OutputError: `path` exists and `overwrite` is false, or the operating system refuses.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        if overwrite:
            temporary.replace(path)
            return
        try:
            _rename_to_new(temporary, path)
        except FileExistsError:
            raise OutputError(
                f"{path} exists already", hint="choose another name, or remove it first"
            ) from None
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_first_free(paths: Iterable[Path], data: bytes) -> Path:
    """Write `data` to the first of `paths` that does not exist, and return that path.

    All paths are in one folder. Threads and processes that write at the same time never overwrite each
    other's files: each takes a path of its own.

    Raises:
        OutputError: the operating system refuses.
        ValueError: all paths exist.
    """
    candidates = iter(paths)
    path = next(candidates)
    temporary = _temporary(path)
    try:
        temporary.write_bytes(data)
        while True:
            try:
                _rename_to_new(temporary, path)
                return path
            except FileExistsError:
                following = next(candidates, None)
            if following is None:
                raise ValueError(f"every path up to {path} exists")
            path = following
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def free_numbers(folder: Path) -> Iterator[int]:
    """Numbers in ascending order, from one above the largest that begins a file name (00012-…) in a folder.

    Raises:
        OutputError: the folder cannot be read.
    """
    try:
        numbers = [int(found[1]) for name in os.listdir(folder) if (found := _NUMBER.match(name))]
    except OSError as error:
        raise OutputError(f"{folder} cannot be read: {error.strerror or error}") from error
    return count(max(numbers, default=0) + 1)


def numbered(path: Path) -> Iterator[Path]:
    """`path` itself, then the same name with -2, -3, ... before its suffix."""
    yield path
    for number in count(2):
        yield path.with_stem(f"{path.stem}-{number}")


def _rename_to_new(temporary: Path, path: Path) -> None:
    """Rename a file to a path that must not exist. Raises FileExistsError."""
    try:
        os.link(temporary, path)  # atomic, and unlike a rename never replaces
        temporary.unlink()
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: reserve the name, then replace the empty file
        path.open("xb").close()
        temporary.replace(path)


@contextmanager
def only_writer(path: Path, what: str) -> Iterator[None]:
    """Hold a lock on the file `path`, which is created, while the block lasts.

    The lock ends with the process, however that ends. On Windows nothing is locked.

    Args:
        what: The writer, for the error: "another batch is writing to ...".

    Raises:
        OutputError: another process holds the lock, or the file cannot be opened.
    """
    try:
        file = path.open("ab")
    except OSError as error:
        raise _output_error(path, error) from error
    with file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(
                    f"another {what} is writing to {path.parent}",
                    hint="wait for it, or choose another folder",
                ) from None
            except OSError:  # a file system without locks
                pass
        yield


@contextmanager
def whole_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder in the parent of `path`, and rename it to `path` if the block succeeds.

    Raises:
        OutputError: `path` is a file, or a folder that is not empty and `overwrite` is false, or
            the operating system refuses.
    """
    path = Path(os.path.abspath(path))  # "." has no name to derive a temporary one from
    temporary = _temporary(path)
    not_empty = OutputError(f"{path} is not empty", hint="choose another folder, or ask to overwrite it")
    try:
        with suppress(FileNotFoundError):
            if not S_ISDIR(path.stat().st_mode):  # one look: another process may move it away at any time
                raise OutputError(f"{path} is a file, expected a folder or nothing")
        if not overwrite and _has_entries(path):
            raise not_empty
        temporary.mkdir(parents=True)
        yield temporary
        while True:
            try:
                temporary.rename(path)
                return
            except OSError as error:  # a folder that is not empty cannot be renamed over
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if not overwrite and _has_entries(path):
                    raise not_empty from None
            old = _temporary(path)
            with suppress(FileNotFoundError):  # another process has moved it away meanwhile
                path.rename(old)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _has_entries(path: Path) -> bool:
    """Whether a folder is there and not empty."""
    with suppress(FileNotFoundError):
        return any(path.iterdir())
    return False


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _output_error(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path} cannot be written: {error.strerror or error}")
