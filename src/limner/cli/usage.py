"""Usage errors, reported like all others: one `error:` line and one `hint:` line."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import typer
from typer.exceptions import TyperException

from . import terminal

_GROUPS = (
    ["train"],
    ["models"],
    ["accounts"],
    ["webhooks"],
    ["keys"],
    ["jobs"],
    ["audit"],
    ["moderation"],
)  # commands with subcommands


def usage_error(error: TyperException, arguments: Sequence[str]) -> None:
    """Print an error in the arguments of a command, or its help where there are no arguments."""
    context: Any = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message(), nl=False)
        return
    names = [name for name in arguments[:2] if name.isalpha()]  # some errors carry no context
    command = " ".join(["limner", *names[: 1 + (names[:1] in _GROUPS)]])
    if context is not None:
        command = context.command_path
    message, hint = _described(error, context, command, arguments)
    terminal.error(message, hint or f"`{command} --help` lists the arguments and options")


def _described(error: Any, context: Any, command: str, arguments: Sequence[str]) -> tuple[str, str | None]:
    """The message, and a hint where there is a special one."""
    parameter = getattr(error, "param", None)
    if hasattr(error, "param_type"):  # a missing parameter
        usage = " ".join(context.command.collect_usage_pieces(context))
        return f"{_name(parameter)} is missing", f"usage: {command} {_METAVAR.sub(_upper, usage)}"
    if isinstance(error, typer.BadParameter):
        return _bad_value(error.message, parameter, arguments)
    if hasattr(error, "possibilities"):  # an unknown option
        known = [name for one in context.command.params for name in (*one.opts, *one.secondary_opts)]
        known = [name for name in known if name.startswith("--")]
        given = error.option_name.lower().replace("_", "-")
        return f"{command} has no option {error.option_name}", _nearest(given, known)
    if hasattr(error, "option_name"):
        if count := re.search(r"requires (\d+) arguments", error.message):
            return f"{error.option_name} takes {count[1]} values", None
        if "requires an argument" in error.message:
            return f"{error.option_name} needs a value", None
    if unknown := re.match(r"""No such command (?:'([^']*)'|"([^"]*)")""", error.message):
        name = unknown[1] or unknown[2] or ""
        return f"{command} has no command {name!r}", _nearest(name, context.command.commands)
    if extra := re.match(r"Got unexpected extra argument\S* \((.*)\)", error.message, re.DOTALL):
        return (
            f"{command} takes no further argument, but was given {extra[1]!r}",
            "put an argument with blanks, such as a prompt, in quotes",
        )
    return _lowered(error.format_message()), None


def _bad_value(message: str, parameter: Any, arguments: Sequence[str]) -> tuple[str, str | None]:
    """The message for a value that a parameter does not take."""
    name = _name(parameter)
    names = () if parameter is None else (*parameter.opts, *parameter.secondary_opts)
    given = _value_of(names, arguments)
    if choice := re.search(r"'(.*)' is not one of (.*)", message):
        choices = re.findall(r"'([^']*)'", choice[2])
        return f"{name} is {choice[1]!r}; expected {', '.join(choices)}", _nearest(choice[1], choices)
    if given is not None:
        for kind, word in (("valid integer", "a whole number"), ("valid number", "a number")):
            if kind in message:
                return f"{name} is {given!r}; expected {word}", None
    return f"{name}: {_lowered(message)}", None


def _value_of(names: Sequence[str], arguments: Sequence[str]) -> str | None:
    """The last value given to the option of one of these names; None if it cannot be determined."""
    found = None
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            found = value if equals else next(iter(arguments[index + 1 : index + 2]), None)
    return found


def _name(parameter: Any) -> str:
    if parameter is None:
        return "an argument"
    if parameter.param_type_name == "argument":
        return f"the argument {parameter.name.upper()}"
    return str(max(parameter.opts, key=len))


def _nearest(name: str, known: Iterable[str]) -> str | None:
    near = get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]}?" if near else None


def _lowered(message: str) -> str:
    return f"{message[:1].lower()}{message[1:]}".rstrip(".")


def _upper(match: re.Match[str]) -> str:
    return match[1].upper()


_METAVAR = re.compile(r"\{(\w+)\}")
