"""Types of settings: how text of the environment and the command line becomes lists, tables and addresses."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

LIMIT_NAMES = (
    "max_side",
    "max_steps",
    "max_images",
    "max_work",
    "max_loras",
    "max_controls",
    "max_image_prompts",
    "max_styles",
    "max_prompt_length",
)
"""Names of `limner.request.policy.RequestPolicy`."""

DEFAULT_LIMITS: dict[str, int] = {
    "max_side": 4096,
    "max_steps": 250,
    "max_images": 100,
    "max_work": 2_000_000_000,  # 38 images of 1024x1024 in 50 steps, or 119 steps at 4096x4096
    "max_prompt_length": 20_000,
}
"""Limits on a request where the setting `limits` has no entry."""

QUOTA_NAMES = (
    "images_per_day",
    "device_seconds_per_day",
    "cost_per_month",
    "stored_bytes",
    "queued_jobs",
)
"""Names of `limner.service.identity.Quotas`."""

PromptLog = Literal["none", "hashed", "encrypted", "plain"]
"""What the audit log keeps of the prompts of a request."""


def split_words(value: Any) -> Any:
    """The parts of text between commas; other values as they are."""
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


def split_paths(value: Any) -> Any:
    """The paths of text, separated as those of PATH are; other values as they are."""
    return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value


def split_table(value: Any) -> Any:
    """The table of text such as "name=value,name=value"; other values as they are."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise ValueError(f"{wrong[0]!r} is not of the form name=value")
    return {name.strip(): worth.strip() for name, _, worth in pairs}


def names_of(names: tuple[str, ...]) -> AfterValidator:
    """A validator that refuses tables with other names."""

    def check(table: dict[str, Any]) -> dict[str, Any]:
        for name in table:
            if name not in names:
                raise ValueError(f"{name!r} is none of {', '.join(names)}")
        return table

    return AfterValidator(check)


def lower_case(value: Any) -> Any:
    """Text in lower case; other values as they are."""
    return value.lower() if isinstance(value, str) else value


def check_origins(values: tuple[str, ...]) -> tuple[str, ...]:
    """The values, if each is an origin or "*"."""
    for value in values:
        parts = urlsplit(value)
        if value != "*" and (parts.scheme not in ("http", "https") or not parts.netloc or parts.path):
            raise ValueError(f"{value!r} is not an origin such as https://example.org")
    return values


def check_base_url(value: str | None) -> str | None:
    """A URL without a slash at its end."""
    if value is None:
        return None
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{value!r} is not a URL such as https://example.org/limner")
    return value.rstrip("/")


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_words)]
Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(split_paths)]
Names = Annotated[dict[str, str], NoDecode, BeforeValidator(split_table)]
Prices = Annotated[dict[str, Annotated[float, Field(ge=0)]], NoDecode, BeforeValidator(split_table)]
Limits = Annotated[
    dict[str, Annotated[int, Field(gt=0)]],
    NoDecode,
    BeforeValidator(split_table),
    names_of(LIMIT_NAMES),
    AfterValidator(lambda table: {**DEFAULT_LIMITS, **table}),
]
QuotaTable = Annotated[
    dict[str, Annotated[float, Field(ge=0)]], NoDecode, BeforeValidator(split_table), names_of(QUOTA_NAMES)
]
