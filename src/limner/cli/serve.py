"""`limner serve`: the service on this machine."""

import inspect
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from limner.errors import InvalidRequest
from limner.logs import configure
from limner.service.supervisor import Supervisor
from limner.settings.serve import ServeSettings

from . import terminal
from .options import option, spread

# Options of their own; all other settings are given by --set. Setting -> option, and whether it is repeated.
_OPTIONS = {
    "data": ("--data", False),
    "host": ("--host", False),
    "port": ("--port", False),
    "models": ("--model", True),
    "devices": ("--device", True),
    "precision": ("--precision", False),
    "backend": ("--backend", False),
    "model_dirs": ("--model-dir", True),
    "lora_dirs": ("--lora-dir", True),
    "embedding_dirs": ("--embedding-dir", True),
    "control_dirs": ("--control-dir", True),
    "image_prompt_dirs": ("--image-prompt-dir", True),
    "wildcards_dirs": ("--wildcards-dir", True),
    "styles_files": ("--styles-file", True),
    "public_url": ("--public-url", False),
    "safety": ("--safety", False),
    "log_level": ("--log-level", False),
    "log_format": ("--log-format", False),
}


@dataclass(frozen=True)
class _SettingOptions:
    """Settings as options.

    Attributes:
        values: By setting; None for an option that was left out.
    """

    values: dict[str, Any]

    @staticmethod
    def parameters() -> list[inspect.Parameter]:
        """The options, for `spread`."""
        return [_parameter(name, *given) for name, given in _OPTIONS.items()]

    def given(self) -> dict[str, Any]:
        """The settings that were given, as `ServeSettings.read` takes them."""
        given: dict[str, Any] = {}
        for name, value in self.values.items():
            if isinstance(value, list) and value:
                given[name] = (os.pathsep if name.endswith(("_dirs", "_files")) else ",").join(value)
            elif value not in (None, []):
                given[name] = value
        return given


def _parameter(name: str, flag: str, repeated: bool) -> inspect.Parameter:
    field = ServeSettings.model_fields[name]
    extra: Any = field.json_schema_extra
    default = extra["shown"] or _written(field.get_default(call_default_factory=True, validated_data={}))
    more = "May be repeated. " if repeated else ""
    help = f"{field.description} {more}" + (f"Default: {default}." if default else "")
    declared = option(
        help.replace("`", "").replace("[", "\\[").strip(),
        extra["group"],
        flag,
        metavar="PATH" if "dir" in flag or "file" in flag or flag == "--data" else "VALUE",
        show_default=False,
    )
    kind: Any = list[str] if repeated else str
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, declared]
    )


def _written(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)


_SET = "Any other setting as name=value. May be repeated. docs/reference/serve-settings.md lists them."
_CONFIG = "Settings file. Default: LIMNER_CONFIG, else limner.toml in the current folder."


@spread
def serve(
    *,
    settings: _SettingOptions,
    more: Annotated[list[str] | None, typer.Option("--set", help=_SET, metavar="NAME=VALUE")] = None,
    config: Annotated[Path | None, typer.Option(help=_CONFIG, metavar="FILE")] = None,
    show_settings: Annotated[
        bool, typer.Option("--show-settings", help="Print all settings as JSON, without secrets, and exit.")
    ] = False,
) -> None:
    """Serve images over HTTP: the native API, OpenAI's Images API and AUTOMATIC1111's.

    Starts an API process and a worker for each device, and starts them again when they die. Nothing accepted
    is lost. The URL goes to standard output when the service answers; Ctrl-C or SIGTERM ends it, and images
    that have begun are finished first.
    """
    flags = settings.given()
    for pair in more or ():
        name, sign, value = pair.partition("=")
        if not sign:
            raise InvalidRequest(f"--set {pair} is not of the form name=value")
        flags[name.strip().replace("-", "_")] = value
    read = ServeSettings.read(config=config, **flags)
    if show_settings:
        typer.echo(json.dumps(read.shown(), indent=2))
        return
    configure(read.log_level, read.log_format, process="serve")

    def announce(url: str) -> None:
        typer.echo(url)
        if read.log_format == "text":  # where stderr is read by programs, the log alone is on it
            terminal.note(f"serving at {url}; Ctrl-C stops")

    Supervisor(read, announce=announce).run()
