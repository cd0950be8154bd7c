"""Search of folders for files by name.

All finders of checkpoints, adapters, embeddings and networks use this module, so that folders are searched,
and names matched, in one way. A file's name is its path within the searched folder without the suffix:
`more/style` for `more/style.safetensors`. The last part, or the last parts, of a name name the file as well.
"""

import difflib
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from limner.errors import LimnerError, ModelNotFound, PickleRefused
from limner.files import walk_folder

from .layout import CONFIG, PICKLE_SUFFIXES

WEIGHTS = (".safetensors",)
EMBEDDINGS = (*WEIGHTS, ".pt", ".bin", ".png")
EMBEDDING_CHUNK = "sd-ti-embedding"
_MAX_PICTURE = 16 << 20  # bytes of an image that are searched for the chunk

T = TypeVar("T")


@dataclass(frozen=True)
class NamedFile:
    """A file, or the folder of a network, in a searched folder.

    Attributes:
        name: Path within the searched folder, with "/" between its parts and without the suffix.
    """

    path: Path
    name: str

    @property
    def stem(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]

    def is_named(self, name: str) -> bool:
        """Whether a name means this file: its whole name or the last parts of it, with or without suffix."""
        names = (self.name, self.name + self.path.suffix)
        return any(own == name or own.endswith(f"/{name}") for own in names)


@dataclass(frozen=True)
class Choice(Generic[T]):
    """The file that a name means, with its content.

    Attributes:
        warnings: Warnings that other files of this name fit, too.
    """

    path: Path
    value: T
    warnings: tuple[str, ...] = ()


def list_files(
    folders: Sequence[Path], suffixes: Collection[str], *, networks: bool = False
) -> list[NamedFile]:
    """The files in folders and their subfolders, in the order of the folders and then of the paths.

    Previews (`name.preview.png`) are left out. A file that several links lead to is listed once.

    Args:
        suffixes: Of the files, in lower case and with the dot.
        networks: List a folder with a `config.json` as one network, and not the files in it.
    """
    found: dict[Path, NamedFile] = {}  # by the path without links
    for folder in folders:
        for at, files in walk_folder(folder):
            if networks and at != folder and any(file.name == CONFIG for file in files):
                found.setdefault(at.resolve(), NamedFile(at, at.relative_to(folder).as_posix()))
                continue
            for file in files:
                if file.suffix.lower() in suffixes and not file.stem.endswith(".preview"):
                    name = file.relative_to(folder).with_suffix("").as_posix()
                    found.setdefault(file.resolve(), NamedFile(file, name))
    return list(found.values())


def find_named(
    name: str, folders: Sequence[Path], suffixes: Collection[str], *, networks: bool = False
) -> list[NamedFile]:
    """The files that a name means: the file at this path, or those of this name in the folders."""
    path = Path(os.path.expanduser(name))
    if path.suffix.lower() in suffixes and os.path.isfile(path):
        return [NamedFile(path.absolute(), name)]
    sought = name.replace("\\", "/")
    return [file for file in list_files(folders, suffixes, networks=networks) if file.is_named(sought)]


def not_found(
    what: str, name: str, folders: Sequence[Path], suffixes: Collection[str], *, networks: bool = False
) -> LimnerError:
    """The error for a name that means no file: that it is a pickle, or which names are similar.

    Args:
        what: Kind of file: "LoRA".
        suffixes, networks: As given to `find_named`.
    """
    pickles = find_named(name, folders, [suffix for suffix in PICKLE_SUFFIXES if suffix not in suffixes])
    if pickles:
        path = pickles[0].path
        return PickleRefused(
            f"the {what} {name!r} is a pickle ({path}), expected a .safetensors file",
            hint="opening a pickle can run code. To take its tensors out, without running anything: "
            f'limner convert "{path}" "{path.with_suffix(".safetensors")}" --to tensors --allow-pickle',
        )
    known = list_files(folders, suffixes, networks=networks)
    near = difflib.get_close_matches(name.lower(), {file.stem.lower() for file in known}, n=3)
    names = dict.fromkeys(file.name for file in known if file.stem.lower() in near)
    like = f"; similar names: {', '.join(names)}" if names else ""
    where = f"none in {', '.join(map(str, folders))}" if folders else "no folder to search was given"
    return ModelNotFound(f"there is no {what} {name!r}: no such file, and {where}{like}")


def choose_fitting(what: str, name: str, files: Sequence[NamedFile], read: Callable[[Path], T]) -> Choice[T]:
    """The first of several files of one name that fits the model.

    Args:
        what: Kind of file, for messages: "LoRA".
        files: At least one.
        read: Reads a file for the model, and raises LimnerError where it does not fit.

    Raises:
        LimnerError: None fits. For one file, the error that `read` raises.
    """
    fitting: list[tuple[NamedFile, T]] = []
    errors: list[LimnerError] = []
    for file in files:
        try:
            fitting.append((file, read(file.path)))
        except LimnerError as error:
            errors.append(error)
    if not fitting:
        if len(errors) > 1:
            reasons = "; ".join(error.message for error in errors)
            raise type(errors[0])(
                f"none of the {len(errors)} {what} files named {name!r} fits this model: {reasons}"
            )
        raise errors[0]
    (chosen, value), *others = fitting
    if not others:
        return Choice(chosen.path, value)
    warning = (
        f"{len(fitting)} {what} files named {name!r} fit this model: {chosen.path} is used, and not "
        f"{', '.join(str(other.path) for other, _ in others)}; to use another, name it with its folder "
        f"({', '.join(file.name for file, _ in fitting)}) or rename one"
    )
    return Choice(chosen.path, value, (warning,))


def holds_embedding(picture: Path) -> bool:
    """Whether a PNG has the text chunk of an embedding, as AUTOMATIC1111 writes it."""
    try:
        with picture.open("rb") as file:
            return EMBEDDING_CHUNK.encode() in file.read(_MAX_PICTURE)
    except OSError:
        return False
