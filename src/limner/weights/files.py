"""Small files read with a bound, and files and folders that appear whole or not at all."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limner.errors import InvalidCheckpoint, OutputError

# Configs are a few kilobytes, and the index of the largest sharded checkpoints a few hundred.
MAX_JSON_BYTES = 4 << 20


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file that nobody vouches for.

    Raises:
        InvalidCheckpoint: the file is missing, larger than 4 MiB, not UTF-8, not JSON (NaN and
            Infinity are not), not an object, or gives a key twice.
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
    """Parse a JSON object, as strictly as `read_json`.

    Raises:
        ValueError: it is not one; the message goes on from the name of what holds it.
    """
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        values = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
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


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it to `path` if the block succeeds.

    A crash leaves the old file or the new one, never a part. Raises OutputError where the
    operating system refuses.
    """
    temporary = _beside(path)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder beside `path`, and rename it to `path` if the block succeeds.

    Raises:
        OutputError: `path` is a file, or a folder that is not empty and `overwrite` is false, or
            the operating system refuses.
    """
    path = Path(os.path.abspath(path))  # "." has no name to put another beside
    temporary = _beside(path)
    try:
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path} is a file, expected a folder or nothing")
        if not overwrite and path.is_dir() and any(path.iterdir()):
            raise OutputError(f"{path} is not empty", hint="choose another folder, or ask to overwrite it")
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            # A folder that is not empty cannot be renamed over, so the old one steps aside first.
            old = _beside(path)
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def user_cache() -> Path:
    """Where Limner keeps what it can compute again: `$LIMNER_CACHE`, else the system's place for caches."""
    if own := os.environ.get("LIMNER_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limner"


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _output_error(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path} cannot be written: {error.strerror or error}")
