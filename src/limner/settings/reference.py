"""The reference page of the service's settings, from their descriptions: `limner schema --settings`."""

from pathlib import Path
from typing import Any

from pydantic import ByteSize, SecretStr
from pydantic.fields import FieldInfo

from . import CONFIG_FILE, CONFIG_VARIABLE
from .serve import GROUPS, ServeSettings, variable

_HEAD = f"""# Settings of `limner serve`

Made by `limner schema --settings` from the descriptions of the settings.

A setting is given

- on the command line as `--name value` where `limner serve --help` lists it, else as `--set name=value`,
- in the environment as the variable below,
- or as a key of a TOML file: `{CONFIG_FILE}` in the current folder, or what `--config` or `{CONFIG_VARIABLE}`
  names.

The command line wins over the environment, which wins over the file. Unknown keys of the file are refused;
unknown `LIMNER_*` variables are logged.

In the environment and on the command line, lists are separated by commas, lists of paths as in `PATH`, and
tables are written `name=value,name=value`. In the file they are TOML's arrays and tables:

    port = 9000
    devices = ["cuda:0", "cuda:1"]

    [aliases]
    "gpt-image-1" = "picturebook"

    [prices]
    cuda = 0.0008

Secrets are never printed or logged.
"""


def settings_page() -> str:
    """The page `docs/reference/serve-settings.md`."""
    parts = [_HEAD]
    for group in GROUPS:
        parts.append(f"\n## {group}\n\n| Setting | Variable | Meaning | Default |\n|---|---|---|---|\n")
        for name, field in ServeSettings.model_fields.items():
            if _extra(field)["group"] == group:
                parts.append(f"| `{name}` | `{variable(name)}` | {field.description} | {_default(field)} |\n")
    return "".join(parts)


def _extra(field: FieldInfo) -> dict[str, Any]:
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra


def _default(field: FieldInfo) -> str:
    if shown := _extra(field)["shown"]:
        return str(shown)
    value = field.get_default(call_default_factory=True, validated_data={})
    match value:
        case None | () | {}:
            return "none"
        case bool():
            return "`true`" if value else "`false`"
        case tuple():
            return f"`{','.join(map(str, value))}`"
        case ByteSize() | SecretStr() | Path():
            raise AssertionError("such a default is shown in words")
        case float():
            return f"`{value:g}`"
    return f"`{value}`"
