"""A batch file: requests as JSON (lines, a list or objects) or as a table (CSV), or one prompt per line.

`read_prompt` takes the prompt of other commands, which must not be such JSON.
"""

import csv
import io
import json
import re
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from limner.errors import InvalidRequest, LimnerError

if TYPE_CHECKING:
    from limner.request import GenerationRequest

    Read = Iterator[tuple[int, dict[str, Any] | InvalidRequest]]


class Format(StrEnum):
    auto = "auto"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    lines = "lines"


_SUFFIXES = {
    ".json": Format.json,
    ".jsonl": Format.jsonl,
    ".ndjson": Format.jsonl,
    ".json-lines": Format.jsonl,
    ".csv": Format.csv,
    ".tsv": Format.csv,
}
_OTHERS = {".toml", ".xml", ".yaml", ".yml"}  # of structured text that is no list of prompts
_JSON = re.compile(r'\s*(?:\{\s*["}]|\[\s*(?:"|\]|\{\s*["}]))')  # how JSON begins, and no prompt
_DELIMITERS = ",;\t"
_MAX_STDIN = 1 << 20  # characters; a request takes far fewer


@dataclass(frozen=True)
class Line:
    """A request of a batch file.

    Attributes:
        number: Where it begins in its file, counted from 1. Several requests may begin in one line.
        fingerprint: Hash of its request and of how many lines before it ask for the same. A line that moves
            keeps it.
    """

    number: int
    request: "GenerationRequest"
    fingerprint: str


@dataclass(frozen=True)
class Fault:
    """The error in a line without a valid request."""

    number: int
    why: str

    @classmethod
    def of(cls, number: int, error: LimnerError) -> "Fault":
        """The fault of a line that an error is about."""
        near = error.hint is not None and error.hint.startswith("did you mean")
        return cls(number, f"{error.message}; {error.hint}" if near else error.message)


def read_lines(
    raw: bytes, name: str, format: Format, defaults: Mapping[str, Any]
) -> tuple[list[Line], list[Fault]]:
    """The requests of a batch file, and the faults of the lines that hold none.

    Args:
        raw: The file, in UTF-8.
        name: Name of the file. Its suffix decides the format if that is `auto`.
        defaults: Fields of requests that do not give them.

    Raises:
        InvalidRequest: The format is `auto`, and the suffix that of another format.
    """
    from limner.request import GenerationRequest

    lines, faults = [], []
    seen: Counter[str] = Counter()
    try:
        text = raw.decode("utf-8-sig")  # spreadsheets begin their CSV with a byte order mark
    except UnicodeDecodeError as error:
        return [], [Fault(raw.count(b"\n", 0, error.start) + 1, f"the line is not UTF-8: {error.reason}")]
    found = _format_of(name, text) if format is Format.auto else format
    read = _read_prompts if found is Format.lines is not format else _READERS[found]
    for number, fields in read(text):
        if isinstance(fields, InvalidRequest):
            faults.append(Fault.of(number, fields))
            continue
        others = {"revision", "variant"} if "model" in fields else set()  # they belong to the other model
        kept = {key: value for key, value in defaults.items() if key not in others}
        try:
            request = GenerationRequest.of({**kept, **fields})
        except InvalidRequest as error:
            faults.append(Fault.of(number, error))
            continue
        # Without defaults, so that fields which later versions add change no fingerprint.
        asked = json.dumps(request.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        lines.append(Line(number, request, sha256(f"{asked} {seen[asked]}".encode()).hexdigest()[:16]))
        seen[asked] += 1
    return lines, faults


def read_prompt(prompt: str | None) -> str | None:
    """The prompt, from standard input where it is "-".

    Raises:
        InvalidRequest: The prompt is a request in JSON.
    """
    if prompt == "-":
        prompt = sys.stdin.read(_MAX_STDIN).rstrip("\n")
    if prompt is not None and looks_like_json(prompt):
        raise InvalidRequest(
            "the prompt is JSON",
            hint="`limner batch` takes requests in JSON, from a file or, with -, from standard input",
        )
    return prompt


def _format_of(name: str, text: str) -> Format:
    """The format by the file's suffix; without a known one, by how its text begins.

    Raises:
        InvalidRequest: The suffix is that of a format that is not read.
    """
    if (suffix := PurePath(name).suffix.lower()) in _OTHERS:
        raise InvalidRequest(
            f"{name} is a {suffix} file; expected JSON, CSV or prompts, one a line",
            hint="--format lines takes each of its lines for a prompt",
        )
    if format := _SUFFIXES.get(PurePath(name).suffix.lower()):
        return format
    first = next((line for _, line in _filled(text)), "")
    if looks_like_json(text) or first in ("{", "["):
        return Format.json
    return Format.csv if _delimiter(first) else Format.lines


def looks_like_json(text: str) -> bool:
    """Whether a text begins as JSON objects and lists do. Brackets of prompts and templates do not."""
    return _JSON.match(text) is not None


def _delimiter(heading: str) -> str | None:
    """What separates the names of fields in the heading of a table; None if there are not two of them."""
    from limner.request import GenerationRequest

    for delimiter in _DELIMITERS:
        names = [name.strip().strip('"') for name in heading.split(delimiter)]
        if len(names) > 1 and {*names} <= {*GenerationRequest.model_fields}:
            return delimiter
    return None


def _filled(text: str) -> Iterator[tuple[int, str]]:
    # Not splitlines, which takes signs inside JSON strings for line ends too.
    for number, line in enumerate(text.split("\n"), 1):
        if stripped := line.strip():
            yield number, stripped


def _read_prompts(text: str) -> "Read":
    for number, line in _filled(text):
        if line.startswith("#"):
            continue
        if looks_like_json(line):
            yield number, InvalidRequest("the line is JSON, in a file that begins with a prompt")
        else:
            yield number, {"prompt": line}


def _read_prompts_as_they_are(text: str) -> "Read":
    for number, line in _filled(text):
        if not line.startswith("#"):
            yield number, {"prompt": line}


def _read_json(text: str) -> "Read":
    """Requests in JSON: objects, or lists of them, one a line or over several lines."""
    from limner.files import STRICT_JSON

    lines: list[tuple[int, Any]] = []
    for number, line in _filled(text):
        try:
            lines.append((number, STRICT_JSON.decode(line)))
        except (ValueError, RecursionError) as error:
            lines.append((number, InvalidRequest(f"the line is not valid JSON: {error}")))
    broken = sum(isinstance(value, InvalidRequest) for _, value in lines)
    if broken:
        try:
            lines = list(_json_values(text))
        except json.JSONDecodeError as error:
            opens = text.split(maxsplit=1)[0] in ("[", "{")
            if opens or 2 * broken > len(lines):  # it is no file of lines, so their errors mean nothing
                fault = f"the JSON is broken at column {error.colno}: {error.msg}"
                lines = [(error.lineno, InvalidRequest(fault))]
        except RecursionError:
            lines = [(1, InvalidRequest("the JSON is nested too deeply"))]
    for number, value in lines:
        items = value if isinstance(value, list) else [value]
        for index, item in enumerate(items, 1):
            of_list = f"item {index} of the list" if isinstance(value, list) else "the line"
            yield number, _fields_in(item, of_list)


def _json_values(text: str) -> Iterator[tuple[int, Any]]:
    """The values of a text, those of a list one by one, each with its line.

    Raises:
        json.JSONDecodeError: The text is not JSON.
    """
    from limner.files import STRICT_JSON

    starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def skip(at: int) -> int:
        while text[at : at + 1] in (" ", "\t", "\r", "\n"):
            at += 1
        return at

    def value(at: int) -> tuple[int, Any, int]:
        try:
            found, end = STRICT_JSON.raw_decode(text, at)
        except json.JSONDecodeError:
            raise
        except ValueError as error:  # of a hook, which knows no position
            raise json.JSONDecodeError(str(error), text, at) from None
        return bisect_right(starts, at), found, skip(end)

    at = skip(0)
    while at < len(text):
        if text[at] != "[":
            number, found, at = value(at)
            yield number, found
            continue
        at = skip(at + 1)
        while text[at : at + 1] != "]":
            number, found, at = value(at)
            yield number, found
            if text[at : at + 1] == ",":
                at = skip(at + 1)
                if text[at : at + 1] == "]":
                    raise json.JSONDecodeError("Illegal trailing comma", text, at)
            elif text[at : at + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = skip(at + 1)


def _fields_in(value: Any, what: str) -> dict[str, Any] | InvalidRequest:
    """The fields of a request that a JSON value gives; a string is a prompt."""
    if isinstance(value, dict | InvalidRequest):
        return value
    if isinstance(value, str):
        return {"prompt": value}
    shown = json.dumps(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}…"
    return InvalidRequest(f"{what} is {shown}; expected an object with fields of a request")


def _read_csv(text: str) -> "Read":
    from limner.request import GenerationRequest

    first = next((line for _, line in _filled(text)), "")
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_delimiter(first) or ",")
    header: list[str] = []
    while True:
        number = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:  # the beginning of the next row cannot be found
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


_READERS = {
    Format.json: _read_json,
    Format.jsonl: _read_json,
    Format.csv: _read_csv,
    Format.lines: _read_prompts_as_they_are,
}
