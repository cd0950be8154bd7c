"""The grammar of AUTOMATIC1111's parameters text ("infotext"), the field's common record of a generation.

    a cat
    Negative prompt: dog
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 3, Size: 512x512, Lora hashes: "a: 12ab, b: 34cd"

It cannot carry everything: white space at the ends of the prompt's lines is lost, and a value such as
`512x768` is read back as two.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from limner.diffusion.sampler_table import SAMPLER_TABLE
from limner.diffusion.schedule import SIGMA_SCHEDULES
from limner.request.names import own_sampler, own_sigma_schedule

# webui's order of fields; others stand between these and the last two.
_FIRST_KEYS = (
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Image CFG scale",
    "Seed",
    "Face restoration",
    "Size",
    "Model hash",
    "Model",
    "FP8 weight",
    "VAE hash",
    "VAE",
    "Variation seed",
    "Variation seed strength",
    "Seed resize from",
    "Denoising strength",
    "Conditional mask weight",
    "Clip skip",
    "ENSD",
    "Token merging ratio",
    "Init image hash",
    "RNG",
    "NGMS",
    "Tiling",
)
_LAST_KEYS = ("Version", "User")

_FEWEST_FIELDS = 3  # a last line with fewer is part of the prompt
_NEGATIVE = "Negative prompt:"
_KEY = re.compile(r"\w[\w \-/]+")
_KEY_RUN = re.compile(r"[\w \-/]+")
_VALUE = re.compile(r'\s*("(?:\\.|[^\\"])+"(?=,|$)|[^,]*)')
_SIZE = re.compile(r"^(\d+)x(\d+)$")


def sampler_to_a1111(sampler: str, sigma_schedule: str) -> tuple[str, str]:
    """webui's `Sampler` and `Schedule type` for Limner's names, such as "DPM++ 2M" and "Karras".

    Raises:
        KeyError: A sampler or schedule that is not Limner's.
    """
    return SAMPLER_TABLE[sampler].label, SIGMA_SCHEDULES[sigma_schedule].label


def sampler_from_a1111(name: str, schedule_type: str | None = None) -> tuple[str, str]:
    """Limner's sampler and sigma schedule for webui's names.

    A schedule at the end of the sampler's name ("DPM++ 2M Karras") takes precedence. No schedule type, or
    "Automatic", means the schedule that webui uses with that sampler.

    Raises:
        InvalidRequest: a sampler or schedule that Limner does not have.
    """
    sampler, schedule = own_sampler(name)
    if schedule is None and schedule_type and schedule_type.strip().lower() != "automatic":
        schedule = own_sigma_schedule(schedule_type)
    return sampler, schedule or SAMPLER_TABLE[sampler].automatic


def parse_infotext(text: str) -> dict[str, str]:
    """The fields of a parameters text, with `Prompt` and `Negative prompt` (empty if there is none).

    Values are text. A size becomes two fields, `Size-1` and `Size-2`. Empty values are left out, as in webui.
    Any text is accepted: one without parameters is a prompt. Takes time linear in the length.
    """
    *lines, last = text.strip().split("\n")
    pairs = _pairs(last)
    if len(pairs) < _FEWEST_FIELDS:
        lines.append(last)
        pairs = []

    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in map(str.strip, lines):
        if line.startswith(_NEGATIVE):
            part = negative
            line = line.removeprefix(_NEGATIVE).strip()
        if line or part:  # blank lines before the text are dropped
            part.append(line)

    fields: dict[str, str] = {}
    for key, value in ((key, unquote(value)) for key, value in pairs if value):
        if size := _SIZE.match(value):
            fields[f"{key}-1"], fields[f"{key}-2"] = size.groups()
        else:
            fields[key] = value
    return fields | {"Prompt": "\n".join(prompt), "Negative prompt": "\n".join(negative)}


def write_infotext(prompt: str, negative_prompt: str, fields: Mapping[str, object]) -> str:
    """A parameters text, with its fields in webui's order.

    Args:
        prompt, negative_prompt: Written unchanged; an empty negative prompt is left out.
        fields: At least three with a value, or readers would take them for part of the prompt. None and
            empty values are left out.

    Raises:
        ValueError: Fewer than three fields, or a key that no reader would recognise.
    """
    order = {key: rank for rank, key in enumerate([*_FIRST_KEYS, None, *_LAST_KEYS])}
    given = {key: value for key, value in fields.items() if value not in (None, "")}
    if len(given) < _FEWEST_FIELDS:
        raise ValueError(f"{len(given)} fields given, at least {_FEWEST_FIELDS} are needed: {sorted(given)}")
    for key in given:
        if not _KEY.fullmatch(key) or key != key.strip():
            raise ValueError(f"{key!r} cannot be a key: expected two or more letters, digits, spaces, - or /")
    ordered = sorted(given.items(), key=lambda field: order.get(field[0], order[None]))
    parameters = ", ".join(f"{key}: {_written(value)}" for key, value in ordered)
    negative = f"\n{_NEGATIVE} {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{parameters}".strip()


def quote(value: Any) -> Any:
    """A value as webui writes it: unchanged, or as JSON if it holds a comma, a colon or a line break."""
    if any(sign in str(value) for sign in ",:\n"):
        return json.dumps(value, ensure_ascii=False)
    return value


def unquote(text: str) -> str:
    """A value as webui reads it: a JSON string is decoded, any other text is returned unchanged."""
    if not (text.startswith('"') and text.endswith('"')):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def _pairs(line: str) -> list[tuple[str, str]]:
    """All `key: value` pairs of a line, empty values included."""
    pairs = []
    position = 0
    while run := _KEY_RUN.search(line, position):
        position = run.end()
        key = run.group().lstrip(" -/")
        if len(key) < 2 or line[position : position + 1] != ":":
            continue
        value = _VALUE.match(line, position + 1)
        assert value  # matches anything
        pairs.append((key, value[1]))
        position = value.end() + 1  # past the comma
    return pairs


def _written(value: object) -> str:
    """A value as `quote` writes it, also quoted if the bare text would be read back differently."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 7, not 7.0
    text = str(value)
    if text.startswith('"') or text != text.strip():
        return json.dumps(text, ensure_ascii=False)
    return str(quote(text))
