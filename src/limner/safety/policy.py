"""A policy: rules about lists of words, and what is done where one applies. It is a TOML file.

    schema = 1
    base = "standard"          # rules to begin with: "standard", "strict" or "none"
    lists_dir = "lists"        # files here take the place of Limner's lists of the same name

    [lists.violence]
    add = ["chainsaw"]

    [[rules]]
    name = "violence"
    action = "block"
    lists = ["violence"]

`load_policy` reads one. The rules of `rules/always.toml` are part of every policy: a file can neither change
them nor shorten their lists.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from limner.errors import InvalidRequest

RULES = Path(__file__).with_name("rules")
LEVELS = ("off", "standard", "strict")
BENIGN = "benign"  # list of phrases whose words do not count


class Action(StrEnum):
    """What is done with a prompt, from the mildest on."""

    ALLOW = "allow"
    FLAG = "flag"
    BLOCK = "block"

    @property
    def severity(self) -> int:
        """Its place in the order."""
        return list(Action).index(self)


ListName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Term = Annotated[str, Field(min_length=2, max_length=80)]


class RuleFile(BaseModel):
    """One rule: it applies to a prompt that has words of its lists."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]*$")] = Field(
        description="Name, which decisions carry. A rule replaces the rule of the base that has its name."
    )
    action: Action = Field(
        description="`allow`, `flag` (drawn, with a warning, for human review) or `block` (refused)."
    )
    reason: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        description="What the rule is about, for whoever is refused."
    )
    lists: Annotated[tuple[ListName, ...], Field(min_length=1)] = Field(
        description="Names of lists; a word of one of them must be in the prompt."
    )
    with_lists: tuple[ListName, ...] = Field(
        default=(),
        alias="with",
        description="Names of further lists; where given, the prompt must have a word of one of them too.",
    )
    unless: tuple[ListName, ...] = Field(
        default=(), description="Names of lists; the rule does not apply to a prompt with a word of them."
    )
    steered_from: tuple[ListName, ...] = Field(
        default=(),
        description="Names of lists; where given, the negative prompt must have a word of one of them.",
    )
    negative_prompt: Action = Field(
        default=Action.ALLOW,
        description="The action where the words are in the negative prompt, which steers away from them.",
    )
    min_score: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.65,
        description="Least score at which the rule applies. Words as they are written have 1; words that are "
        "written in a hidden way have less.",
    )


class ListChange(BaseModel):
    """Changes of one of Limner's lists."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    add: tuple[Term, ...] = Field(default=(), description="Terms to add.")
    remove: tuple[Term, ...] = Field(default=(), description="Terms to leave out.")


class PolicyFile(BaseModel):
    """A file of a policy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = Field(alias="schema", description="Version of this schema: 1.")
    base: Literal["none", "standard", "strict"] = Field(
        default="standard", description="The policy whose rules hold unless the file replaces them."
    )
    lists_dir: str | None = Field(
        default=None,
        description="Folder, relative to the file. `NAME.toml` in it takes the place of Limner's list NAME, "
        "or is a new list; its keys are languages, its values lists of terms.",
    )
    lists: dict[ListName, ListChange] = Field(
        default={}, description="By name of a list: terms to `add` and to `remove`."
    )
    rules: tuple[RuleFile, ...] = Field(default=(), description="Rules.")


@dataclass(frozen=True)
class Rule:
    """A rule of a policy. Attributes are those of `RuleFile`, and:

    Attributes:
        always: Whether it belongs to the tier that no policy can change.
    """

    name: str
    action: Action
    reason: str
    lists: tuple[str, ...]
    with_lists: tuple[str, ...]
    unless: tuple[str, ...]
    steered_from: tuple[str, ...]
    negative_prompt: Action
    min_score: float
    always: bool


@dataclass(frozen=True)
class Policy:
    """Rules with their lists.

    Attributes:
        name: "off", "standard", "strict", or the path of its file.
        rules: In order; those of the tier that is always active first.
        lists: Name -> terms.
        always_lists: Name -> terms as the rules of that tier read them.
    """

    name: str
    rules: tuple[Rule, ...]
    lists: Mapping[str, tuple[str, ...]]
    always_lists: Mapping[str, tuple[str, ...]]

    @cached_property
    def version(self) -> str:
        """The name, and a hash of all rules and lists: equal versions decide equally."""
        content = [[asdict(rule) for rule in self.rules], dict(self.lists), dict(self.always_lists)]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{Path(self.name).name} {digest[:12]}"


@cache
def shipped_lists() -> Mapping[str, tuple[str, ...]]:
    """Limner's own lists: name -> terms of all languages."""
    return {path.stem: _read_list(path) for path in sorted((RULES / "lists").glob("*.toml"))}


def load_policy(level: str | Path) -> Policy:
    """The policy of a level or of a file. Each has the tier that is always active; "off" has nothing else.

    Args:
        level: "off", "standard", "strict", or the path of a file.

    Raises:
        InvalidRequest: There is no such file, or it is no policy.
    """
    level = str(level)
    own = shipped_lists()
    always = _rules(_read_file(RULES / "always.toml"), always=True)
    if level in LEVELS:
        rules = () if level == "off" else _rules(_read_file(RULES / f"{level}.toml"))
        return Policy(level, always + rules, own, own)
    path = Path(level)
    file = _read_file(path)
    lists = dict(own)
    if file.lists_dir is not None:
        folder = path.parent / file.lists_dir
        if not folder.is_dir():
            raise _fault(path, f"lists_dir is {file.lists_dir!r}, which is no folder")
        lists |= {one.stem: _read_list(one) for one in sorted(folder.glob("*.toml"))}
    for name, change in file.lists.items():
        present = lists.get(name, ())
        if missing := [term for term in change.remove if term not in present]:
            raise _fault(path, f"the list {name} has no term {missing[0]!r} to remove")
        kept = tuple(term for term in present if term not in change.remove)
        lists[name] = tuple(dict.fromkeys((*kept, *change.add)))
    base = () if file.base == "none" else _rules(_read_file(RULES / f"{file.base}.toml"))
    added = _rules(file)
    names = [rule.name for rule in added]
    if reserved := {rule.name for rule in always} & {*names}:
        raise _fault(path, f"the rule {min(reserved)} is always active and cannot be replaced")
    if len({*names}) < len(names):
        raise _fault(path, "two rules have the same name")
    rules = (*(rule for rule in base if rule.name not in names), *added)
    for rule in rules:
        for name in (*rule.lists, *rule.with_lists, *rule.unless, *rule.steered_from):
            if name not in lists:
                raise _fault(
                    path, f"the rule {rule.name} names the list {name}; lists are {', '.join(lists)}"
                )
    grown = {
        name: terms if name == BENIGN else tuple(dict.fromkeys((*terms, *lists[name])))
        for name, terms in own.items()
    }
    return Policy(level, always + rules, lists, grown)


def policy_of(level: str | Path) -> Policy | None:
    """The policy of a process that serves nobody else: None for "off". Raises as `load_policy`."""
    return None if str(level) == "off" else load_policy(level)


def _rules(file: PolicyFile, *, always: bool = False) -> tuple[Rule, ...]:
    return tuple(Rule(**dict(rule), always=always) for rule in file.rules)


def _read_file(path: Path) -> PolicyFile:
    try:
        return PolicyFile.model_validate(_read_toml(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _fault(path, f"{where} is wrong: {first['msg']}") from None


def _read_list(path: Path) -> tuple[str, ...]:
    """The terms of all languages in the file of a list."""
    languages = _read_toml(path)
    for language, terms in languages.items():
        if not isinstance(terms, list) or not all(isinstance(term, str) and len(term) > 1 for term in terms):
            raise _fault(
                path, f"{language} is {terms!r:.60}; expected a list of terms of two characters or more"
            )
    return tuple(dict.fromkeys(term for terms in languages.values() for term in terms))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise InvalidRequest(
            f"there is no safety policy {path}",
            hint=f"`safety` is {', '.join(LEVELS)}, or the path of a TOML file",
            fields=("safety",),
        ) from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _fault(path, f"it cannot be read: {error}") from None


def _fault(path: Path, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"the safety policy {path} cannot be used: {what}",
        hint="docs/guides/safety.md describes the file",
        fields=("safety",),
    )
