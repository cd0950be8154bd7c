"""What a batch has done so far: a JSON line for each of its lines that is finished or has failed.

The journal stands beside the pictures. Its first line holds a number that seeds are made from for lines which
give none, so that a batch that was broken off goes on with the seeds that it would have had.
"""

import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from limner.cli.lines import Line
from limner.cli.output import make_folder
from limner.errors import OutputError
from limner.request import MAX_SEED, NEW_SEEDS

NAME = "batch.jsonl"


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    journal: Literal[1]  # its version
    seeds: int


class Entry(BaseModel):
    """What became of a line.

    Attributes:
        line: its number when it was drawn.
        seed: of its first picture.
        pictures: file names in the journal's folder, all of them whole.
        error: why it failed, if it did.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    line: int
    fingerprint: str
    seed: int
    pictures: tuple[Annotated[str, Field(pattern=r"^[^/\\]+$")], ...] = ()
    error: str | None = None


class Journal:
    """The journal in a folder, read. Nothing is written before `open`.

    Raises:
        OutputError: it cannot be read, or is no journal.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / NAME
        self._file: BinaryIO | None = None
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            raw = b""
        except OSError as error:
            raise OutputError(f"{self.path} cannot be read: {error.strerror}") from error
        # A process that was killed may leave a last line that is not ended, which does not count.
        written = raw.split(b"\n")[:-1]
        self._seeds, self._is_new = secrets.randbelow(MAX_SEED), not written
        self._pictures: dict[str, tuple[str, ...]] = {}  # of finished lines, by fingerprint
        for number, line in enumerate(written, 1):
            try:
                if number == 1:
                    self._seeds = _Header.model_validate_json(line).seeds
                    continue
                entry = Entry.model_validate_json(line)
            except ValidationError:
                raise OutputError(
                    f"{self.path}:{number} is not from the journal of a batch",
                    hint="move the file away, or choose another folder with --out",
                ) from None
            if entry.error is None:
                self._pictures[entry.fingerprint] = entry.pictures

    def has(self, line: Line) -> bool:
        """Whether all pictures of a line are drawn, and still there."""
        names = self.names(line)
        return bool(names) and all((self.folder / name).is_file() for name in names)

    def names(self, line: Line) -> tuple[str, ...]:
        """The files of a line that was finished once; none of one that was not."""
        return self._pictures.get(line.fingerprint, ())

    def seed(self, line: Line) -> int:
        """Of the line's first picture: its own, or one that is the same in every run."""
        if line.request.seed is not None:
            return line.request.seed
        digest = sha256(f"{self._seeds} {line.fingerprint}".encode()).digest()
        return int.from_bytes(digest[:8]) % NEW_SEEDS

    def all_names(self) -> set[str]:
        """The files of all lines that were finished once."""
        return {name for names in self._pictures.values() for name in names}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Make the folder, and let `note` write while the block lasts.

        Raises:
            OutputError: it cannot be written, or another process is writing.
        """
        make_folder(self.folder)
        try:
            file = self.path.open("ab")
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}") from error
        with file:
            _lock(file, self.path)
            file.truncate(self.path.read_bytes().rfind(b"\n") + 1)
            self._file = file
            if self._is_new:
                self._write(_Header(journal=1, seeds=self._seeds))
            yield

    def note(self, entry: Entry) -> None:
        """Write what became of a line."""
        self._write(entry)

    def _write(self, value: BaseModel) -> None:
        assert self._file is not None
        said = json.dumps(value.model_dump(exclude_defaults=True))
        try:
            self._file.write(said.encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}") from error


def _lock(file: BinaryIO, path: Path) -> None:
    """For as long as the file is open; two runs in one folder would draw everything twice."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(
            f"another batch is writing to {path}", hint="wait for it, or choose another folder with --out"
        ) from None
