"""The service's data folder: its layout, and the lock by which one server at a time uses it.

ledger.sqlite3   the ledger, unless it is elsewhere
pictures/        masters, thumbnails and steps
uploads/         input images by their content
run/             the lock, and the socket between the processes
keys/            the signing key, and the key of the audit log
search/          what images are searched by, for each account; a cache
models/          single files that `limner models pull` has fetched, by kind
"""

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from limner.catalogue.contents import KINDS
from limner.errors import OutputError, StorageError

FOLDERS = ("pictures", "uploads", "run", "keys", "search", "models", *(f"models/{kind}" for kind in KINDS))
_SECRET = ("run", "keys", "search")  # which only the owner may open


@contextmanager
def claimed(data: Path) -> Iterator[None]:
    """Create the folder and hold its lock while the block lasts. The lock ends with the process.

    Raises:
        OutputError: Another server uses the folder, or it cannot be written: its disk is read-only or full.
    """
    prepare(data)
    path = data / "run" / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _refused(data, error) from error
    with os.fdopen(descriptor, "r+") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = file.read(32).strip()
                by = f" (pid {owner})" if owner.isdigit() else ""
                raise OutputError(
                    f"another server{by} uses {data}", hint="stop it, or give another folder as `data`"
                ) from None
            except OSError as error:
                raise OutputError(
                    f"{data} is on a file system without locks: {error.strerror}",
                    hint="give a folder on a local disk as `data`",
                ) from error
        try:
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise _refused(data, error) from error
        yield


def prepare(data: Path) -> None:
    """Create the folder and those in it. Raises OutputError as `claimed`."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)  # other users must not read prompts and images
        for name in FOLDERS:
            (data / name).mkdir(exist_ok=True, mode=0o700 if name in _SECRET else 0o777)
        for name in _SECRET:
            (data / name).chmod(0o700)
    except OSError as error:
        raise _refused(data, error) from error


def erase_index(folder: Path, account_id: str) -> None:
    """Delete the search index of an account. Raises StorageError.

    Args:
        folder: Folder of all search indexes.
    """
    try:
        shutil.rmtree(folder / account_id)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StorageError(f"the search index of {account_id} cannot be deleted: {error.strerror}") from error


def _refused(data: Path, error: OSError) -> OutputError:
    hint = {
        errno.ENOSPC: "free some space on its disk",
        errno.EDQUOT: "free some space: the quota of this user is used up",
        errno.EROFS: "its disk is read-only: give another folder as `data`",
        errno.EACCES: "give a folder that this user may write as `data`",
        errno.EPERM: "give a folder that this user may write as `data`",
    }.get(error.errno or 0, "give another folder as `data`")
    where = error.filename or data
    return OutputError(f"{where} cannot be written: {error.strerror or error}", hint=hint)
