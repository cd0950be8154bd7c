"""The fields of a `GenerationRequest` as options, derived from its schema."""

import functools
import inspect
from dataclasses import dataclass, fields
from typing import Annotated, Any

from limner.errors import spelled
from limner.request import Control, ImagePrompt
from limner.request.describe import FieldDescription, describe

from .options import ModelOptions, option

_TYPES = {"text": str, "integer": int, "number": float, "flag": bool}
_SHORT = {"num_images": "-n"}
_METAVARS = {"image": "IMAGE", "mask": "IMAGE", "depth": "IMAGE", "styles": "NAME", "loras": "NAME:WEIGHT"}
_METAVARS |= {"controls": "FIELDS", "image_prompts": "FIELDS"}
_REPEATED = {field.name for field in describe() if field.kind == "list"}
_REPEATED |= {"embedding_dirs", "lora_dirs", "control_dirs", "image_prompt_dirs"}
_REPEATED |= {"styles_files", "wildcards_dirs", "assets_dirs"}
_KNOWN = {field.name for field in describe()} | {field.name for field in fields(ModelOptions)}
_KNOWN |= {"fresh", "host", "limit", "lr", "out", "port", "resume", "x", "y", "z"}  # of other commands
_KNOWN |= {"conditions", "data", "decoder_only", "embedding", "init", "preprocessor", "style", "validation"}


@dataclass(frozen=True)
class RequestOptions:
    """The fields of a request but its prompt.

    Attributes:
        values: By field; None for an option that was left out.
    """

    values: dict[str, Any]

    @staticmethod
    def parameters() -> list[inspect.Parameter]:
        """The options, for `spread`."""
        return [_parameter(field) for field in describe() if field.name != "prompt"]

    def given(self) -> dict[str, Any]:
        """The fields that were given."""
        return {name: value for name, value in self.values.items() if value not in (None, [])}


def option_of(name: str, value: str = "") -> str | None:
    """The option for a field or argument, such as "--lora ink:0.8"; None if there is none."""
    if name not in _KNOWN:
        return None
    option = f"--{name.removesuffix('s') if name in _REPEATED else name}".replace("_", "-")
    return f"{option} {value}" if value else option


def _parameter(field: FieldDescription) -> inspect.Parameter:
    kind: Any = _TYPES.get(field.kind)
    name, metavar = str(option_of(field.name)), _METAVARS.get(field.name)
    if field.kind == "list":
        kind = list[str]
    elif field.kind == "tuple":
        kind = tuple[tuple(_TYPES[field.items] for _ in field.parts)]  # type: ignore[misc]
        metavar = " ".join(field.parts).upper()
    elif field.kind == "flag":
        name, metavar = "--exact/--shared" if field.name == "exact" else name, ""
    names = [name, _SHORT[field.name]] if field.name in _SHORT else [name]
    declared = option(_help(field), field.group, *names, metavar=metavar, show_default=False)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, declared],
    )


def _help(field: FieldDescription) -> str:
    """The field's description, what it accepts and its default."""
    description, _, default = field.description.partition(" Default: ")
    if not default and field.default not in (None, [], False):
        shown = field.default if isinstance(field.default, list) else [field.default]
        default = f"{' '.join(map(str, shown))}."
    said = [description]
    if field.kind == "list":
        part = {"Control": Control, "ImagePrompt": ImagePrompt}.get(field.items)
        said += [f"Fields: {_fields_of(part)}."] if part else []
        said.append("May be repeated.")
    elif field.accepts and not field.accepts.startswith("as "):
        said.append(f"One of {field.accepts}." if field.kind == "text" else f"{_capital(field.accepts)}.")
    said += [f"Default: {default}"] if default else []
    text = spelled(" ".join(said), option_of).replace("`", "")
    return text.replace("[", "\\[")  # rich reads brackets as markup


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


@functools.cache
def _fields_of(kind: Any) -> str:
    """Such as "model=…, image=…, weight=…"; an item of a list is in the singular."""
    names = (field.name.removesuffix("s") if field.kind == "list" else field.name for field in describe(kind))
    return ", ".join(f"{name}=…" for name in names)
