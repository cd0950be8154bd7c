"""Where images are written: checked before anything is generated, made when there is something to write."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from limner.errors import InvalidRequest, OutputError
from limner.files import numbered

from . import terminal

if TYPE_CHECKING:
    from limner.images.picture import Encode, Picture

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # the formats that carry a record
_OTHER_SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".pdf", ".ppm", ".tga", ".tif", ".tiff")


@dataclass
class Destination:
    """A path for images: a file if it has the suffix of an image format, else a folder."""

    path: Path
    written: int = 0

    @property
    def is_file(self) -> bool:
        return self.path.suffix.lower() in _SUFFIXES and not self.path.is_dir()

    @property
    def folder(self) -> Path:
        return self.path.parent if self.is_file else self.path

    @property
    def kept(self) -> str:
        if not self.written:
            return "no image was finished"
        return f"{self.written} finished image{'s' * (self.written > 1)} kept in {self.path}"

    def check(self, number: int) -> None:
        """Try whether images can be written here, without leaving a trace.

        Raises:
            OutputError: they cannot.
            InvalidRequest: several images for one file.
        """
        if self.is_file and number > 1:
            raise InvalidRequest(
                f"--out names one file, {self.path}, for {number} images", hint="name a folder"
            )
        if self.path.suffix.lower() in _OTHER_SUFFIXES and not self.path.is_dir():
            raise OutputError(
                f"{self.path} cannot keep the request", hint=f"use {', '.join(_SUFFIXES)}, or a folder"
            )
        check_folder(self.folder)

    def write(self, picture: "Picture", encode: "Encode") -> Path:
        """Raises OutputError."""
        from limner.images.picture import losses, write_picture
        from limner.images.result import save_new

        if self.is_file:
            make_folder(self.folder)
            write_picture(picture, self.path, encode)
            path = self.path
            for loss in losses(picture, path.suffix):
                terminal.warning(f"{path}: {loss}")
        else:
            path = save_new(picture, self.path, encode)
        self.written += 1
        return path

    def sheet(self, seed: int) -> Iterator[Path]:
        """Names for a sheet of images, in the order to try them."""
        return numbered(self.folder / f"grid-{seed}.png")


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
