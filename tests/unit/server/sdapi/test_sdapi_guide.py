"""The guide lists how every field and option is handled, in agreement with the code."""

import json
from pathlib import Path

import pytest

from limner.server.sdapi.bodies import HANDLINGS, GenerationBody, Img2ImgBody, Txt2ImgBody
from limner.server.sdapi.options import OPTIONS

ROOT = Path(__file__).parents[4]
GUIDE = (ROOT / "docs/guides/webui-api.md").read_text(encoding="utf-8")
FACTS = json.loads((ROOT / "tests/golden/sdapi/facts.json").read_text(encoding="utf-8"))
EFFECTS = {"honoured": "honoured", "named": "without effect, named in `info`", "none": "changes no image"}


def fields_table():
    """The table of fields, one row each; those of both routes first."""
    lines = ["| Field | Route | Handling | Here |", "|---|---|---|---|"]
    for kind, route, others in (
        (GenerationBody, "both", {}),
        (Txt2ImgBody, "txt2img", GenerationBody.model_fields),
        (Img2ImgBody, "img2img", GenerationBody.model_fields),
    ):
        for name, (handling, note) in kind.handling().items():
            if name not in others:
                lines.append(f"| `{name}` | {route} | {handling} | {note} |")
    return "\n".join(lines)


def options_table():
    """The table of options."""
    lines = ["| Option | Default | Handling | Here |", "|---|---|---|---|"]
    for name, option in OPTIONS.items():
        default = json.dumps(option.default)
        lines.append(f"| `{name}` | `{default}` | {EFFECTS[option.effect]} | {option.note} |")
    return "\n".join(lines)


@pytest.mark.parametrize("table", [fields_table, options_table])
def test_the_guide_has_the_tables(table):
    assert table() in GUIDE, f"put this into docs/guides/webui-api.md:\n\n{table()}"


def test_every_field_of_the_api_has_a_row():
    for route in ("txt2img", "img2img"):
        assert all(f"| `{name}` |" in GUIDE for name in FACTS[route])
    assert all(f"| {handling} |" in GUIDE for handling in HANDLINGS)


def test_every_route_of_the_api_is_named():
    for _, path, _ in FACTS["routes"]:
        short = path.removeprefix("/sdapi/v1/")
        assert f"`{short}`" in GUIDE, path
