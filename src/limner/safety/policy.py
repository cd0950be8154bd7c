"""A policy: rules about words in prompts and about scores of images. It is a TOML file.

    schema = 1
    base = "standard"          # rules to begin with: "standard", "strict" or "none"
    lists_dir = "lists"        # files here take the place of Limner's lists of the same name

    [lists.violence]
    add = ["chainsaw"]

    [[rules]]
    name = "violence"
    action = "block"
    lists = ["violence"]

    [[image_rules]]
    name = "nudity"
    action = "blur"
    checker = "opennsfw"
    category = "nsfw"
    min_score = 0.5

`load_policy` reads one. The rules of `rules/always.toml` are part of every policy: a file can neither change
them nor shorten their lists.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from limner.errors import InvalidRequest

from .checker_config import CheckerConfig, OpenNSFWConfig

RULES = Path(__file__).with_name("rules")
LEVELS = ("off", "standard", "strict")
BENIGN = "benign"  # list of phrases whose words do not count


class Action(StrEnum):
    """What is done with a prompt or an image, from the mildest on. Prompts are not blurred."""

    ALLOW = "allow"
    FLAG = "flag"
    BLUR = "blur"
    BLOCK = "block"

    @property
    def severity(self) -> int:
        """Its place in the order."""
        return list(Action).index(self)


def _not_blurred(action: Action) -> Action:
    if action is Action.BLUR:
        raise ValueError("a prompt cannot be blurred; use allow, flag or block")
    return action


PromptAction = Annotated[Action, AfterValidator(_not_blurred)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]*$")]
ListName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Term = Annotated[str, Field(min_length=2, max_length=80)]


class Rule(BaseModel):
    """One rule: it applies to a prompt that has words of its lists."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: Name = Field(
        description="Name, which decisions carry. A rule replaces the rule of the base that has its name."
    )
    action: PromptAction = Field(
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
    negative_prompt: PromptAction = Field(
        default=Action.ALLOW,
        description="The action where the words are in the negative prompt, which steers away from them.",
    )
    min_score: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.65,
        description="Least score at which the rule applies. Words as they are written have 1; words that are "
        "written in a hidden way have less.",
    )


class ImageRule(BaseModel):
    """One rule about images: it applies to an image that a checker gives a score."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(
        description="Name, which decisions carry. A rule replaces the image rule of the base with its name."
    )
    action: Action = Field(
        description="`allow`, `flag` (delivered, with a warning, for human review), `blur` (delivered as a "
        "few blurred colours) or `block` (withheld). A checker whose rules all allow is not loaded."
    )
    reason: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        description="What the rule is about, for whoever asked for the image."
    )
    checker: Name = Field(
        default="opennsfw", description="Name of an image checker: one of `checkers`, or `opennsfw`."
    )
    category: str = Field(description="The checker's category.")
    min_score: Annotated[float, Field(allow_inf_nan=False)] = Field(
        description="Least score in that category at which the rule applies."
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
    rules: tuple[Rule, ...] = Field(default=(), description="Rules about prompts.")
    checkers: dict[Name, CheckerConfig] = Field(
        default={}, description="By name: image checkers, each with its `kind`."
    )
    image_rules: tuple[ImageRule, ...] = Field(default=(), description="Rules about images.")


_NO_RULES = PolicyFile.model_validate({"schema": 1, "base": "none"})


@dataclass(frozen=True)
class Policy:
    """Rules with their lists and image checkers.

    Attributes:
        name: "off", "standard", "strict", or the path of its file.
        always_rules: Rules of the tier that no policy can change.
        rules: Other rules, in order.
        lists: Name -> terms.
        always_lists: Name -> terms as the rules of that tier read them.
        image_rules: Rules about images that ask for something, in order.
        checkers: Name -> config of each image checker that these rules name.
        folder: Folder that the paths of checkers are relative to.
    """

    name: str
    always_rules: tuple[Rule, ...]
    rules: tuple[Rule, ...]
    lists: Mapping[str, tuple[str, ...]]
    always_lists: Mapping[str, tuple[str, ...]]
    image_rules: tuple[ImageRule, ...] = ()
    checkers: Mapping[str, CheckerConfig] = field(default_factory=dict)
    folder: Path = Path()

    @cached_property
    def version(self) -> str:
        """The name, and a hash of all rules, lists and configs: equal versions decide equally about prompts,
        and about images with the same scores."""
        rules = [[rule.model_dump(mode="json") for rule in some] for some in (self.always_rules, self.rules)]
        content: list[Any] = [*rules, dict(self.lists), dict(self.always_lists)]
        content.append([rule.model_dump(mode="json") for rule in self.image_rules])
        content.append({name: config.model_dump(mode="json") for name, config in self.checkers.items()})
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
    path, own = Path(level), shipped_lists()
    always = _read_file(RULES / "always.toml").rules
    if str(level) in LEVELS:
        file = PolicyFile.model_validate({"schema": 1, "base": "none" if str(level) == "off" else level})
    else:
        file = _read_file(path)
    lists = _lists(path, file, own)
    base = _NO_RULES if file.base == "none" else _read_file(RULES / f"{file.base}.toml")
    if reserved := {rule.name for rule in always} & {rule.name for rule in file.rules}:
        raise _fault(path, f"the rule {min(reserved)} is always active and cannot be replaced")
    rules = _over(path, base.rules, file.rules)
    for rule in rules:
        for name in (*rule.lists, *rule.with_lists, *rule.unless, *rule.steered_from):
            if name not in lists:
                raise _fault(
                    path, f"the rule {rule.name} names the list {name}; lists are {', '.join(lists)}"
                )
    image_rules = _over(path, base.image_rules, file.image_rules)
    try:
        checkers = _named_checkers(image_rules, file.checkers)
    except ValueError as error:
        raise _fault(path, str(error)) from None
    grown = {
        name: terms if name == BENIGN else tuple(dict.fromkeys((*terms, *lists[name])))
        for name, terms in own.items()
    }
    effective = tuple(rule for rule in image_rules if rule.action is not Action.ALLOW)
    return Policy(str(level), always, rules, lists, grown, effective, checkers, path.parent)


R = TypeVar("R", bound=Rule | ImageRule)


def _over(path: Path, base: tuple[R, ...], own: tuple[R, ...]) -> tuple[R, ...]:
    """The rules of a base that the file does not replace, and those of the file."""
    names = [rule.name for rule in own]
    if len({*names}) < len(names):
        raise _fault(path, "two rules have the same name")
    return (*(rule for rule in base if rule.name not in names), *own)


def _lists(path: Path, file: PolicyFile, own: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Limner's own lists with the changes of a file."""
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
    return lists


def _named_checkers(
    rules: tuple[ImageRule, ...], given: Mapping[str, CheckerConfig]
) -> dict[str, CheckerConfig]:
    """The configs of the checkers that rules name. Raises ValueError where one, or a category, is unknown."""
    known = {"opennsfw": OpenNSFWConfig(), **given}
    named: dict[str, CheckerConfig] = {}
    for rule in rules:
        config = known.get(rule.checker)
        if config is None:
            raise ValueError(
                f"the image rule {rule.name} names the checker {rule.checker}; "
                f"checkers are {', '.join(known)}"
            )
        if rule.category not in config.categories:
            raise ValueError(
                f"the image rule {rule.name} names the category {rule.category!r}; "
                f"{rule.checker} has {', '.join(config.categories)}"
            )
        if rule.action is not Action.ALLOW:
            named[rule.checker] = config
    return named


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
