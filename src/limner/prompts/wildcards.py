"""Prompt templates with random choices, which depend on the seed of the image: sd-dynamic-prompts' grammar.

    {red|green|blue}             one of these; in {3::red|green} red is three times as likely
    {2$$red|green|blue}          two different ones, joined by ", "; {2$$ and $$red|green} joins by " and "
    {1-2$$red|green}             one or two; {-2$$…} is one to two, {1-$$…} one to all
    __animal__                   a line of animal.txt; __folder/name__; * ? ** match several files
    {2$$__animal__}              two lines of it
    ${coat=!{red|blue}} ${coat}  a value chosen once and used; without the ! it is chosen at each use
    ${coat:red}  ${coat?=red}    a default for one use; a default for all uses
    __outfit(coat=red)__         a line in which ${coat} is red
    \\{ \\} \\| \\$ \\_              the character itself

All forms can be nested. Each line of a file is a template, optionally with a weight (`3::red`); blank lines
and lines that begin with # are ignored. A | in square brackets separates no options: {[red|blue] house|tree}
has two options.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

from limner.errors import PromptError
from limner.files import walk_folder

from .attention import check_length

_MAX_DEPTH = 32  # braces within braces, and wildcards that name wildcards
_MAX_DRAWS = 10_000  # choices for one prompt, as wildcards that name each other can multiply to millions

_VARIABLE = r"\$\{\s*\w+\s*\}"
_SIGN = re.compile(
    rf"\\.|__(?![_ ])(?P<wildcard>(?:[\w*?./ -]|{_VARIABLE}){{1,200}}?)(?<! )"
    r"(?:\((?P<arguments>[^()]{0,2000})\))?__"
    r"|\$\{\s*(?P<variable>\w+)\s*(?P<sign>\?=!?|=!?|:|(?=\}))|[{}|\[]",
    re.DOTALL,
)
_BOUNDS = re.compile(r"\s*(?:(\d+)|(\d*)-(\d*))\$\$(?:([^$|{}]*)\$\$)?")
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)::")
_SQUARE = re.compile(r"[^\[\]{}]*\]")
_CYCLE = re.compile(r"\s*[@~]")
_ESCAPED = frozenset("{}|$_")


@dataclass(frozen=True)
class _Choice:
    options: tuple["_Option", ...]
    least: int = 1
    most: int | None = 1  # None: all
    separator: str = ", "


@dataclass(frozen=True)
class _Wildcard:
    name: str
    arguments: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Variable:
    name: str
    default: "_Template | None"


@dataclass(frozen=True)
class _Assignment:
    name: str
    value: "_Template"
    at_once: bool
    keeps: bool  # whether an existing value is kept


_Template = tuple["str | _Choice | _Wildcard | _Variable | _Assignment", ...]
_Option = tuple[float, _Template]
_Values = Mapping[str, "str | _Template"]


class Wildcards:
    """Files whose lines are options.

    Args:
        folders: Folders of files. Of two files of one name, that of the first folder is used.
    """

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self._folders = tuple(folders)

    def draw(self, template: str, random: Random) -> str:
        """A prompt made from a template, without white space at its ends.

        Args:
            random: Source of the choices.

        Raises:
            PromptError: A template that cannot be parsed, an unknown wildcard or variable, or one that
                contains itself without end.
        """
        try:
            prompt = _Drawing(self, random).text(_parse(template), {}, ()).strip()
        except RecursionError:  # each of braces, wildcards and variables is within its limit
            raise PromptError(
                "the prompt is nested too deeply", hint="use fewer wildcards and variables within others"
            ) from None
        check_length(prompt)
        return prompt

    def names(self) -> list[str]:
        """The names of all files, in order. The folders are searched."""
        return list(self._files())

    def options(self, name: str) -> tuple[_Option, ...]:
        """The lines of the files that a name matches, with their weights. Raises PromptError."""
        files = self._matching(name) if re.search(r"[*?]", name) else self._named(name)
        if not files:
            raise self._unknown(name)
        options = tuple(option for file in files for option in _options(file, file.stat().st_mtime_ns))
        if not options:
            raise PromptError(
                f"{', '.join(map(str, files))} have no options", hint="write one option per line"
            )
        return options

    def _named(self, name: str) -> list[Path]:
        if name.startswith("/") or ".." in name.split("/"):
            return []
        found = (folder / f"{name}.txt" for folder in self._folders)
        return [file for file in found if file.is_file()][:1]

    def _matching(self, name: str) -> list[Path]:
        signs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        parts = re.split(r"(\*\*/|\*\*|\*|\?)", name)
        pattern = re.compile("".join(signs.get(part) or re.escape(part) for part in parts))
        return [file for known, file in self._files().items() if pattern.fullmatch(known)]

    def _files(self) -> dict[str, Path]:
        found = {}
        for folder in reversed(self._folders):
            for _, files in walk_folder(folder):
                for file in files:
                    if file.suffix == ".txt":
                        found[file.relative_to(folder).with_suffix("").as_posix()] = file
        return dict(sorted(found.items()))

    def _unknown(self, name: str) -> PromptError:
        known = self._files()
        near = [known_name for known_name in known if known_name.split("/")[-1] == name]
        near += difflib.get_close_matches(name, known)
        like = f"; there is {', '.join(dict.fromkeys(near))}" if near else ""
        where = ", ".join(map(str, self._folders)) or "no folder of wildcards was given"
        return PromptError(
            f"there is no wildcard __{name}__ ({where}){like}",
            hint=f"write its options to {name}.txt, one per line, or give another folder as `wildcards_dirs`",
        )


@dataclass
class _Drawing:
    """The choices made for one prompt."""

    wildcards: Wildcards
    random: Random
    draws: int = 0

    def text(self, template: _Template, values: _Values, within: tuple[str, ...]) -> str:
        """The text made from a template.

        Args:
            values: Values of variables.
            within: Names of the wildcards that contain the template.
        """
        known = dict(values)
        pieces = []
        for part in template:
            match part:
                case str():
                    pieces.append(part)
                case _Choice():
                    pieces.append(self._chosen(part, known, within))
                case _Wildcard():
                    pieces.append(self._line(part, known, within))
                case _Variable():
                    pieces.append(self._value(part, known, within))
                case _Assignment() if not (part.keeps and part.name in known):
                    known[part.name] = self.text(part.value, known, within) if part.at_once else part.value
        return "".join(pieces)

    def _chosen(self, choice: _Choice, values: _Values, within: tuple[str, ...]) -> str:
        options = choice.options
        only = [part for part in options[0][1] if not (isinstance(part, str) and not part.strip())]
        if len(options) == 1 and len(only) == 1 and isinstance(only[0], _Wildcard):
            options, values, within = self._opened(only[0], values, within)
        most = len(options) if choice.most is None else min(choice.most, len(options))
        least = min(choice.least, most)
        count = least + int(self.random.random() * (most - least + 1)) if most > least else most
        left, taken = list(options), []
        for _ in range(count):
            if not any(weight for weight, _ in left):
                break
            taken.append(left.pop(self._pick(left)))
        drawn = [self.text(template, values, within) for _, template in taken]
        return drawn[0] if len(drawn) == 1 else choice.separator.join(map(str.strip, drawn))

    def _line(self, wildcard: _Wildcard, values: _Values, within: tuple[str, ...]) -> str:
        options, values, within = self._opened(wildcard, values, within)
        return self.text(options[self._pick(options)][1], values, within)

    def _opened(
        self, wildcard: _Wildcard, values: _Values, within: tuple[str, ...]
    ) -> tuple[tuple[_Option, ...], _Values, tuple[str, ...]]:
        """The options of a wildcard, and the values of variables within them."""
        name = re.sub(
            _VARIABLE,
            lambda match: self._value(_Variable(match[0][2:-1].strip(), None), values, within),
            wildcard.name,
        )
        if len(within) == _MAX_DEPTH:
            raise PromptError(
                f"wildcards name each other more than {_MAX_DEPTH} deep: {' > '.join([*within[-4:], name])}",
                hint="a file needs a line that does not lead back to it",
            )
        return self.wildcards.options(name), {**values, **dict(wildcard.arguments)}, (*within, name)

    def _value(self, variable: _Variable, values: _Values, within: tuple[str, ...]) -> str:
        value = values.get(variable.name, variable.default)
        if value is None:
            raise PromptError(
                f"${{{variable.name}}} has no value",
                hint=f"give it one before: ${{{variable.name}=…}}, or here: ${{{variable.name}:…}}",
            )
        if isinstance(value, str):
            return value
        self._count()
        # Without the variable itself, so that ${a=${a}} ends.
        return self.text(
            value, {name: kept for name, kept in values.items() if name != variable.name}, within
        )

    def _pick(self, options: Sequence[_Option]) -> int:
        """The index of an option, chosen with a probability in proportion to its weight."""
        self._count()
        at = self.random.random() * sum(weight for weight, _ in options)
        for index, (weight, _) in enumerate(options):
            at -= weight
            if at < 0:
                return index
        return max(index for index, (weight, _) in enumerate(options) if weight or index == 0)

    def _count(self) -> None:
        self.draws += 1
        if self.draws > _MAX_DRAWS:
            raise PromptError(
                f"the prompt takes more than {_MAX_DRAWS:,} choices",
                hint="use fewer wildcards within wildcards",
            )


@lru_cache(maxsize=1024)
def _options(file: Path, changed: int) -> tuple[_Option, ...]:
    """The lines of a file, with their weights. `changed` is the time of its last change."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"the wildcard file {file} cannot be read: {error}") from None
    options = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            weight = _WEIGHT.match(line)
            try:
                template = _parse(line[weight.end() :] if weight else line)
            except PromptError as error:
                raise PromptError(f"{file}:{number}: {error.message}", hint=error.hint) from None
            options.append((float(weight[1]) if weight else 1.0, template))
    return tuple(options)


@lru_cache(maxsize=1024)
def _parse(text: str) -> _Template:
    check_length(text)
    template, _ = _read(text, 0, "", 0)
    return template


def _read(text: str, at: int, ends: str, depth: int) -> tuple[_Template, int]:
    """A template up to one of the characters that end it or the end of the text, and its end."""
    if depth > _MAX_DEPTH:
        raise PromptError(
            f"braces are more than {_MAX_DEPTH} deep", hint="put some of it into wildcard files"
        )
    parts: list[str | _Choice | _Wildcard | _Variable | _Assignment] = []
    square = 0  # position at which open square brackets are closed
    while sign := _SIGN.search(text, at):
        parts.append(text[at : sign.start()])
        at = sign.end()
        found = sign[0]
        if sign["wildcard"] is not None:
            parts.append(_Wildcard(sign["wildcard"], _arguments(sign["arguments"] or "")))
        elif sign["variable"] is not None:
            value, end = _read(text, at, "}", depth + 1)
            at = _closed(text, end, sign.start())
            name, how = sign["variable"], sign["sign"]
            if "=" in how:
                parts.append(_Assignment(name, value, how.endswith("!"), how.startswith("?")))
            else:
                parts.append(_Variable(name, value if how else None))
        elif found == "{":
            choice, end = _read_choice(text, at, depth + 1)
            at = _closed(text, end, sign.start())
            parts.append(choice)
        elif found in ends and not (found == "|" and at <= square):
            return tuple(part for part in parts if part), sign.start()
        elif found == "[":
            closing = _SQUARE.match(text, at)
            square = closing.end() if closing else square
            parts.append(found)
        elif found == "}":
            raise PromptError(
                f"a brace is closed at character {at} that was not opened",
                hint=r"write \} for the character itself",
            )
        else:
            parts.append(found[1:] if found[0] == "\\" and found[1] in _ESCAPED else found)
    parts.append(text[at:])
    return tuple(part for part in parts if part), len(text)


def _read_choice(text: str, at: int, depth: int) -> tuple[_Choice, int]:
    """The content of braces, and its end."""
    if _CYCLE.match(text, at):
        raise PromptError(
            f"{text[at - 1 : at + 20]!r} is a cyclic choice, but choices depend on the seed here",
            hint=r"leave out the @ or ~; a grid generates every option with `x=replace=…`",
        )
    least, separator = 1, ", "
    most: int | None = 1
    if bounds := _BOUNDS.match(text, at):
        exactly, low, high, own = bounds.groups()
        least = int(exactly or low or 1)
        most = None if exactly is None and not high else int(exactly or high)
        separator = separator if own is None else own
        at = bounds.end()
        if most is not None and most < least:
            raise PromptError(f"{bounds[0]!r} asks for at least {least} and at most {most}")
    options = []
    while True:
        weight = _WEIGHT.match(text, at)
        option, end = _read(text, weight.end() if weight else at, "|}", depth)
        options.append((float(weight[1]) if weight else 1.0, option))
        at = end + 1
        if text[end : end + 1] != "|":
            return _Choice(tuple(options), least, most, separator), end


def _closed(text: str, end: int, start: int) -> int:
    """The position after the brace that closes the one at `start`."""
    if text[end : end + 1] != "}":
        raise PromptError(
            f"the brace at character {start + 1} is not closed: {text[start : start + 20]!r}",
            hint=r"close it, or write \{ for the character itself",
        )
    return end + 1


def _arguments(text: str) -> tuple[tuple[str, str], ...]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    for name, equals, _ in pairs:
        if not equals or not name.strip().isidentifier():
            raise PromptError(
                f"({text}) are no values for variables", hint="expected (name=value, name=value)"
            )
    return tuple((name.strip(), value.strip()) for name, _, value in pairs)
