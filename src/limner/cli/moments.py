"""Durations, times and amounts as people write and read them."""

import math
import re
import time
from datetime import UTC, datetime

from limner.errors import InvalidRequest

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def seconds(text: str, option: str) -> float:
    """A duration such as "30d", "12h" or "90m" in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip().lower())
    value = float(match[1]) * _UNITS[match[2]] if match else math.nan
    if not 0 < value < 100 * 365 * 86400:
        raise InvalidRequest(f"--{option} is {text!r}; expected a duration such as 30d, 12h or 90m")
    return value


def moment(text: str, option: str) -> float:
    """A day such as "2026-11-30", a time such as "2026-11-30T12:00", or a duration back from now."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        try:
            return time.time() - seconds(text, option)
        except InvalidRequest:
            raise InvalidRequest(
                f"--{option} is {text!r}; expected a day such as 2026-11-30, or a duration such as 7d"
            ) from None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def when(at: float | None) -> str:
    """A time in UTC, such as "2026-11-30 12:00:05"; "" for None."""
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def amount(value: float | None, digits: int = 2) -> str:
    """A number with some digits after the point; "" for None."""
    return "" if value is None else f"{value:.{digits}f}"
