"""The journal of a batch: a JSON line for each of its lines that is finished or has failed.

It is in the folder of the images. Its first line holds a number from which the seeds of lines without one are
derived, so that a batch that was interrupted resumes with the same seeds.
"""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from limner.cli.lines import Line
from limner.cli.output import make_folder
from limner.errors import OutputError
from limner.files import only_writer
from limner.request import MAX_SEED, NEW_SEEDS

NAME = "batch.jsonl"


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    journal: Literal[1]  # its version
    seeds: int


class Entry(BaseModel):
    """The outcome of a line.

    Attributes:
        line: Its line number in that run.
        seed: of its first image.
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
            self._raw = self.path.read_bytes()
        except FileNotFoundError:
            self._raw = b""
        except OSError as error:
            raise OutputError(f"{self.path} cannot be read: {error.strerror}") from error
        # A process that was killed may leave a last line that is not ended, which does not count.
        written = self._raw.split(b"\n")[:-1]
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
        """Whether all images of a line are finished, and their files still exist."""
        names = self.names(line)
        return bool(names) and all((self.folder / name).is_file() for name in names)

    def names(self, line: Line) -> tuple[str, ...]:
        """The files of a line that was finished once; none of one that was not."""
        return self._pictures.get(line.fingerprint, ())

    def seed(self, line: Line) -> int:
        """Of the line's first image: its own, or one that is the same in every run."""
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
        with only_writer(self.path, "batch"), self.path.open("ab") as file:
            if self.path.read_bytes() != self._raw:
                raise OutputError(
                    f"another batch has written to {self.path} since this one started",
                    hint="run the same command again; it generates the rest",
                )
            file.truncate(self._raw.rfind(b"\n") + 1)
            self._file = file
            if self._is_new:
                self._write(_Header(journal=1, seeds=self._seeds))
            yield

    def note(self, entry: Entry) -> None:
        """Write the outcome of a line."""
        self._write(entry)

    def _write(self, value: BaseModel) -> None:
        assert self._file is not None
        said = json.dumps(value.model_dump(exclude_defaults=True))
        try:
            self._file.write(said.encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}") from error
