"""Folders that pictures go to: tried before anything is drawn, made when there is something to write."""

import tempfile
from pathlib import Path

from limner.errors import OutputError


def check_folder(folder: Path) -> None:
    """Try whether a folder can be written, or made, without leaving a trace.

    Raises:
        OutputError: it cannot.
    """
    there = folder
    try:
        while not _exists(there):
            there = there.parent
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error.strerror}", hint="choose another place with --out"
        ) from error


def make_folder(folder: Path) -> None:
    """Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}") from error


def _exists(path: Path) -> bool:
    """Unlike Path.exists, true for a broken link, and raising OSError for what can be no path."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True
