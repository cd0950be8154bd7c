"""A batch file: requests as JSON lines, as a CSV table, or as prompts, one a line."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from limner.errors import InvalidRequest

if TYPE_CHECKING:
    from limner.request import GenerationRequest

    Read = Iterator[tuple[int, dict[str, Any] | InvalidRequest]]


class Format(StrEnum):
    auto = "auto"
    jsonl = "jsonl"
    csv = "csv"
    lines = "lines"


_SUFFIXES = {
    ".jsonl": Format.jsonl,
    ".ndjson": Format.jsonl,
    ".json-lines": Format.jsonl,
    ".csv": Format.csv,
}


@dataclass(frozen=True)
class Line:
    """A line that can be drawn.

    Attributes:
        number: in its file, from 1.
        fingerprint: of its request and of how many lines before it ask for the same. Lines that move keep it.
    """

    number: int
    request: "GenerationRequest"
    fingerprint: str


@dataclass(frozen=True)
class Fault:
    """A line that cannot be drawn, and why."""

    number: int
    why: str


def read_lines(
    raw: bytes, name: str, format: Format, defaults: Mapping[str, Any]
) -> tuple[list[Line], list[Fault]]:
    """Read a batch file whole: what can be drawn of it, and what cannot.

    Args:
        raw: its bytes, in UTF-8.
        name: whose suffix tells the format, where that is `auto`.
        defaults: fields of a request, for lines that do not give them.
    """
    from limner.request import GenerationRequest

    lines, faults = [], []
    seen: Counter[str] = Counter()
    try:
        text = raw.decode("utf-8-sig")  # spreadsheets begin their CSV with a byte order mark
    except UnicodeDecodeError as error:
        return [], [Fault(raw.count(b"\n", 0, error.start) + 1, f"the line is not UTF-8: {error.reason}")]
    for number, fields in _READERS[_format_of(name, text) if format is Format.auto else format](text):
        if isinstance(fields, InvalidRequest):
            faults.append(Fault(number, fields.message))
            continue
        others = {"revision", "variant"} if "model" in fields else set()  # they are of the other model
        kept = {key: value for key, value in defaults.items() if key not in others}
        try:
            request = GenerationRequest.of({**kept, **fields})
        except InvalidRequest as error:
            faults.append(Fault(number, error.message))
            continue
        # Without defaults, so that fields which later versions add change no fingerprint.
        asked = json.dumps(request.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        lines.append(Line(number, request, sha256(f"{asked} {seen[asked]}".encode()).hexdigest()[:16]))
        seen[asked] += 1
    return lines, faults


def _format_of(name: str, text: str) -> Format:
    """By the suffix; failing that, JSON objects are told from prompts by the first of them."""
    if format := _SUFFIXES.get(PurePath(name).suffix.lower()):
        return format
    first = next((line for _, line in _filled(text)), "")
    try:
        return Format.jsonl if isinstance(json.loads(first), dict) else Format.lines
    except (ValueError, RecursionError):
        return Format.lines


def _filled(text: str) -> Iterator[tuple[int, str]]:
    # Not splitlines, which takes signs inside JSON strings for line ends too.
    for number, line in enumerate(text.split("\n"), 1):
        if stripped := line.strip():
            yield number, stripped


def _read_prompts(text: str) -> "Read":
    for number, line in _filled(text):
        if not line.startswith("#"):
            yield number, {"prompt": line}


def _read_json_lines(text: str) -> "Read":
    from limner.weights.files import parse_object

    for number, line in _filled(text):
        try:
            yield number, parse_object(line)
        except ValueError as error:
            yield number, InvalidRequest(f"the line {error}")


def _read_csv(text: str) -> "Read":
    from limner.request import GenerationRequest

    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    while True:
        number = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:  # where the next row begins cannot be told
            yield number, InvalidRequest(f"the row is not valid CSV: {error}")
            return
        if row is None:
            return
        if not row:
            continue  # a blank line
        if not header:
            header = [name.strip() for name in row]
            if wrong := [name for name in header if name not in GenerationRequest.model_fields]:
                yield (
                    number,
                    InvalidRequest(
                        "; ".join(
                            f"{name or 'an empty heading'} is not a field of a request" for name in wrong
                        )
                    ),
                )
                return
            if len(set(header)) < len(header):
                yield number, InvalidRequest("a heading is given twice")
                return
        elif len(row) != len(header):
            yield number, InvalidRequest(f"the row has {len(row)} cells, the header {len(header)}")
        else:
            try:
                yield (
                    number,
                    GenerationRequest.read_texts(
                        {name: cell for name, cell in zip(header, row, strict=True) if cell}
                    ),
                )
            except InvalidRequest as error:
                yield number, error


_READERS = {Format.jsonl: _read_json_lines, Format.csv: _read_csv, Format.lines: _read_prompts}
