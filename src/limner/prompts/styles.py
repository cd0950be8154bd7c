"""Styles: named phrases that are added to prompts.

Files are AUTOMATIC1111's `styles.csv`, with the columns name, prompt and negative_prompt, or a JSON list of
objects with these keys, as in Fooocus. If a style's prompt contains `{prompt}`, the prompt takes its place;
otherwise the style is appended after a comma. The same holds for negative prompts.
"""

import csv
import difflib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.errors import InvalidRequest

_PLACE = "{prompt}"


@dataclass(frozen=True)
class Style:
    """A name, and what is added to the prompt and the negative prompt."""

    name: str
    prompt: str = ""
    negative_prompt: str = ""

    def around(self, prompt: str, negative_prompt: str | None) -> tuple[str, str | None]:
        """A prompt and a negative prompt in this style; the latter stays None if nothing is added to it."""
        negative = _around(self.negative_prompt, negative_prompt or "")
        return _around(self.prompt, prompt), negative if negative or negative_prompt is not None else None


def _around(style: str, words: str) -> str:
    if _PLACE in style:
        return style.replace(_PLACE, words)
    return ", ".join(filter(None, (words.strip(), style.strip())))


def find_styles(names: Sequence[str], files: Sequence[Path]) -> list[Style]:
    """The styles of these names. Of two styles of one name, that of the last file is used.

    Raises:
        InvalidRequest: A name that no file has, or a file that cannot be read.
    """
    if not names:
        return []
    known = {style.name: style for file in files for style in read_styles(file)}
    for name in names:
        if name not in known:
            folded = {one.lower(): one for one in known}
            near = [folded[one] for one in difflib.get_close_matches(name.lower(), folded)]
            like = f"; much like it: {', '.join(near)}" if near else ""
            where = ", ".join(map(str, files)) or "no file of them was given"
            raise InvalidRequest(
                f"there is no style {name!r} ({where}){like}",
                hint="name one of these, or give another file as `styles_files`"
                if near
                else "give the file that has it as `styles_files`",
                fields=("styles",),
            )
    return [known[name] for name in names]


def read_styles(file: Path) -> list[Style]:
    """The styles of a file. Raises InvalidRequest."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"it is not UTF-8: {error.reason}"
        raise InvalidRequest(
            f"the styles in {file} cannot be read: {why}", hint="give another file as `styles_files`"
        ) from None
    rows = _json_rows(text, file) if file.suffix.lower() == ".json" else _csv_rows(text, file)
    return [
        Style(row["name"], row.get("prompt") or row.get("text") or "", row.get("negative_prompt") or "")
        for row in rows
        if row.get("name") and not row["name"].startswith("#")
    ]


def _csv_rows(text: str, file: Path) -> Iterable[Mapping[str, str]]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        columns = rows.fieldnames or []
        if "name" not in columns or not {"prompt", "text"} & set(columns):  # "text" is of old versions
            raise InvalidRequest(
                f"{file} has the columns {', '.join(columns) or 'none'}; expected name, prompt and "
                "negative_prompt",
                hint="a file of styles begins with the line: name,prompt,negative_prompt",
            )
        return list(rows)
    except csv.Error as error:
        raise InvalidRequest(f"{file}:{rows.line_num} is not valid CSV: {error}") from None


def _json_rows(text: str, file: Path) -> Iterable[Mapping[str, str]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{file} is not valid JSON: {error}") from None
    keys = ("name", "prompt", "negative_prompt")
    fine = isinstance(rows, list) and all(
        isinstance(row, dict)
        and isinstance(row.get("name"), str)
        and all(isinstance(row.get(key, ""), str) for key in keys)
        for row in rows
    )
    if not fine:
        raise InvalidRequest(
            f"{file} holds no styles",
            hint='expected a list: [{"name": …, "prompt": …, "negative_prompt": …}, …]',
        )
    return list(rows)
