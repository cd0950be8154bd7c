"""The image store: masters of finished images, what is delivered of them, thumbnails and steps.

A master is the PNG that a worker made, with its record. Its key holds the job and the fence of the attempt,
so that an attempt which has lost its job never writes over the image of the one that took over:

    masters/ACCOUNT/JOB/FENCE.png
    delivered/ACCOUNT/JOB/FENCE.png
    thumbnails/ACCOUNT/JOB/FENCE.webp
    blurred/ACCOUNT/JOB/FENCE.png, .webp
    steps/ACCOUNT/JOB/FENCE.webp, .json

The master has the exact pixels; what is delivered may be marked. What is delivered blurred has names of its
own, so that no file of an image is ever written over by its blurred or clear form. A store is a folder now.
Any store of obstore has this form.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore

from limner.errors import NotFound, StorageError

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,127}")
_MASTER = re.compile(r"masters/([^/]+)/([^/]+)/(\d+)\.png")
_STAGED = re.compile(r".+#\d+")  # a file that a process which has died was writing

Kind = Literal["masters", "delivered", "thumbnails", "blurred", "steps"]


@dataclass(frozen=True)
class StoredMaster:
    """A master in the store, as its key describes it.

    Attributes:
        key: Its key.
        account_id, job_id, fence: The attempt that made it.
        bytes: Its size.
        modified: When it was written.
    """

    key: str
    account_id: str
    job_id: str
    fence: int
    bytes: int
    modified: datetime


class StoredFiles(Protocol):
    """An image store without its contents: what routes may use of it. `ImageRelease` reads it for them."""

    def masters(self, account_id: str | None = None) -> Iterator[StoredMaster]:
        """As `ImageStore.masters`."""

    def delete(self, keys: Sequence[str]) -> None:
        """As `ImageStore.delete`."""

    def remove_unfinished(self, before: datetime) -> int:
        """As `ImageStore.remove_unfinished`."""

    def check(self) -> None:
        """As `ImageStore.check`."""


class ImageStore:
    """Keeps masters and thumbnails by key. Safe to use from any thread and process.

    Args:
        store: Where they are.
        folder: Folder of a local store, whose files are written through to the disk; None for others.
    """

    def __init__(self, store: ObjectStore, folder: Path | None = None) -> None:
        self._store, self._folder = store, folder

    @classmethod
    def in_folder(cls, folder: Path) -> Self:
        """A store in a folder, which is created.

        Raises:
            StorageError: The folder cannot be created.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{folder} cannot be created: {error.strerror}") from error
        return cls(LocalStore(folder), folder)

    def put_master(self, account_id: str, job_id: str, fence: int, data: bytes) -> str:
        """Store the PNG of an attempt and return its key. When this returns, it outlasts a power failure.

        Storing the same bytes again has no effect, so that a worker may repeat it after an error.

        Raises:
            StorageError: The store cannot be written, or the attempt has stored other bytes already.
        """
        key = f"masters/{_part(account_id)}/{_part(job_id)}/{fence:d}.png"
        try:
            with _telling("write", key):
                obstore.put(self._store, key, data, mode="create")
        except AlreadyExistsError:
            if self.get(key) != data:
                raise StorageError(f"{key} is stored already, with other bytes") from None
        self._sync(key)
        return key

    def put_delivered(self, key: str, data: bytes, *, blurred: bool = False, lasting: bool = False) -> None:
        """Store the PNG that is delivered of the master with this key, in clear or blurred. Raises
        StorageError as `put_master`.

        Args:
            lasting: Whether it is written through to the disk, as the same bytes cannot be made again.
        """
        self._put(_delivered(key, blurred), data)
        if lasting:
            self._sync(_delivered(key, blurred))

    def get_delivered(self, key: str, *, blurred: bool = False) -> bytes:
        """What is delivered of the master with this key, in clear or blurred. Raises as `get`."""
        return self.get(_delivered(key, blurred))

    def put_thumbnail(self, key: str, data: bytes, *, blurred: bool = False) -> str:
        """Store the thumbnail, a WebP, of what is delivered of the master with this key, and return its own
        key. It can be made again, so it is not written through to the disk. Raises StorageError as
        `put_master`."""
        name = _thumbnail(key, blurred)
        self._put(name, data)
        return name

    def get_thumbnail(self, key: str, *, blurred: bool = False) -> bytes | None:
        """The thumbnail of what is delivered of the master with this key; None if it is not stored."""
        try:
            return self.get(_thumbnail(key, blurred))
        except NotFound:
            return None

    def put_strip(self, key: str, sprite: bytes, layout: Mapping[str, Any]) -> None:
        """Store the steps of the image with this master: a WebP, and where each step is in it. They are not
        written through to the disk. Raises StorageError as `put_master`."""
        for name, data in zip(_strip(key), (sprite, json.dumps(layout).encode()), strict=True):
            self._put(name, data)

    def get_strip_layout(self, key: str) -> dict[str, Any] | None:
        """Where each step of the image with this master is in its sprite; None if no steps are stored."""
        try:
            layout: dict[str, Any] = json.loads(self.get(_strip(key)[1]))
        except NotFound:
            return None
        return layout

    def get_strip(self, key: str) -> bytes:
        """The sprite of the steps of the image with this master. Raises as `get`."""
        return self.get(_strip(key)[0])

    def get(self, key: str) -> bytes:
        """The bytes under a key.

        Raises:
            NotFound: There is nothing under it.
            StorageError: The store cannot be read.
        """
        with _telling("read", key):
            return bytes(obstore.get(self._store, key).bytes())

    def delete(self, keys: Sequence[str]) -> None:
        """Delete masters with all that belongs to them, or single keys. What is not there is no error.

        Raises:
            StorageError: The store cannot be written.
        """
        for key in keys:
            every = _all_of(key) if _MASTER.fullmatch(key) else (key,)
            for one in every:
                with suppress(NotFound), _telling("delete", one):
                    obstore.delete(self._store, one)
            self._drop_folders(every)

    def masters(self, account_id: str | None = None) -> Iterator[StoredMaster]:
        """The masters of an account, or of all: for the collection of what no job refers to.

        Raises:
            StorageError: The store cannot be read.
        """
        prefix = "masters/" if account_id is None else f"masters/{_part(account_id)}/"
        with _telling("list", prefix):
            for batch in obstore.list(self._store, prefix=prefix):
                for meta in batch:
                    if match := _MASTER.fullmatch(meta["path"]):
                        yield StoredMaster(
                            meta["path"],
                            match[1],
                            match[2],
                            int(match[3]),
                            meta["size"],
                            meta["last_modified"],
                        )

    def check(self) -> None:
        """Write, read and delete a small object.

        Raises:
            StorageError: The store does not take it, as when the disk is full.
        """
        key = f"check-{os.getpid()}"
        with _telling("write", key):
            obstore.put(self._store, key, bytes(4096))
        self._sync(key)
        self.delete([key])

    def remove_unfinished(self, before: datetime) -> int:
        """Remove the unfinished files of processes that have died, and return their number.

        Args:
            before: Only files that were last written before this: no process is still writing them.

        Raises:
            StorageError: One cannot be removed.
        """
        removed = 0
        for path in () if self._folder is None else self._folder.rglob("*#*"):
            if not _STAGED.fullmatch(path.name):
                continue
            with _telling("remove", path.name), suppress(FileNotFoundError):  # finished in the meantime
                if path.stat().st_mtime < before.timestamp():
                    path.unlink()
                    removed += 1
        return removed

    def _put(self, name: str, data: bytes) -> None:
        with _telling("write", name):
            obstore.put(self._store, name, data)

    def _sync(self, key: str) -> None:
        """Write a file, and the names in its folder, through to the disk."""
        if self._folder is None:
            return
        path = self._folder / key
        with _telling("write", key):
            for one in (path, path.parent, path.parent.parent):
                descriptor = os.open(one, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def _drop_folders(self, keys: Sequence[str]) -> None:
        """Remove the folders of deleted files of a local store, where they are empty."""
        if self._folder is None:
            return
        for folder in {(self._folder / key).parent for key in keys}:
            if folder != self._folder:
                with suppress(OSError):  # not empty, or gone
                    folder.rmdir()


def _part(text: str) -> str:
    """A part of a key. Raises ValueError for what could mean another place."""
    if not _PART.fullmatch(text):
        raise ValueError(f"{text!r} cannot be a part of a key")
    return text


def _thumbnail(key: str, blurred: bool) -> str:
    return _beside(key, "blurred" if blurred else "thumbnails", "webp")


def _delivered(key: str, blurred: bool) -> str:
    return _beside(key, "blurred" if blurred else "delivered", "png")


def _all_of(key: str) -> tuple[str, ...]:
    """Keys of a master and of all that belongs to it."""
    forms = [name(key, blurred) for name in (_delivered, _thumbnail) for blurred in (False, True)]
    return (key, *forms, *_strip(key))


def _strip(key: str) -> tuple[str, str]:
    """Keys of the sprite and of its layout."""
    return _beside(key, "steps", "webp"), _beside(key, "steps", "json")


def _beside(key: str, kind: Kind, suffix: str) -> str:
    """Key of what belongs to a master."""
    match = _MASTER.fullmatch(key)
    if match is None:
        raise ValueError(f"{key!r} is no key of a master")
    return f"{kind}/{match[1]}/{match[2]}/{match[3]}.{suffix}"


@contextmanager
def _telling(what: str, key: str) -> Iterator[None]:
    """Turn obstore's errors into those of Limner. `AlreadyExistsError` passes."""
    try:
        yield
    except AlreadyExistsError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"there is nothing under {key} in the image store") from error
    except (BaseError, OSError) as error:
        reason = str(error).partition("\n")[0]
        full = "No space left" in reason or "quota exceeded" in reason.lower()
        raise StorageError(
            f"the image store cannot {what} {key}: {reason}",
            hint="free some space on its disk" if full else "check the disk, and the rights of the folder",
        ) from error
