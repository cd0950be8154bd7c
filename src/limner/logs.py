"""Logging of a process: events of the loggers below "limner", to stderr, for people or for programs.

An event is a message with data: `log.info("started", extra={"fields": {"job": "7f3a", "seconds": 0.2}})`.
Events never hold prompts or other content of requests; ids lead to them in the ledger.
"""

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal

# With control characters, surrogates and reversals of direction, text from a file could rewrite the screen.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_COMMON: ContextVar[Mapping[str, Any]] = ContextVar("limner_log_fields", default=MappingProxyType({}))


def configure(
    level: Literal["debug", "info", "warning", "error"] | None,
    format: Literal["text", "json"],
    *,
    process: str | None = None,
) -> None:
    """Log events to stderr, in place of what was configured before.

    Args:
        level: Least severity of logged events. None: warnings, and the progress of training.
        process: Name of the process in each event, such as "api" or "worker cuda:0". Where there is one,
            uvicorn's events are logged in the same way.
    """
    handler = logging.StreamHandler(sys.stderr)
    formatter: logging.Formatter = JsonFormatter(process) if format == "json" else TextFormatter(process)
    handler.setFormatter(formatter)
    for name in ("limner", "uvicorn") if process else ("limner",):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel((level or "warning").upper())
        logger.propagate = False
    logging.getLogger("limner.training").setLevel("INFO" if level is None else "NOTSET")


@contextmanager
def log_fields(**fields: Any) -> Iterator[None]:
    """Add data to every event that is logged inside, by this thread or task and those that it starts."""
    token = _COMMON.set({**_COMMON.get(), **fields})
    try:
        yield
    finally:
        _COMMON.reset(token)


def printable(text: str) -> str:
    """Text from an untrusted source, safe to print: control characters are escaped."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


class TextFormatter(logging.Formatter):
    """Lines such as "12:00:01 info limner.engine: started job=7f3a seconds=0.2"."""

    def __init__(self, process: str | None = None) -> None:
        super().__init__()
        self._process = f" [{process}]" if process else ""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        data = "".join(f" {name}={_one_line(value)}" for name, value in _data(record).items())
        level = record.levelname.lower()
        text = f"{time}{self._process} {level} {record.name}: {record.getMessage()}{data}"
        if record.exc_info:
            text += f"\n{self.formatException(record.exc_info)}"
        return printable(text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the event's data, a traceback if any."""

    def __init__(self, process: str | None = None) -> None:
        super().__init__()
        self._process = {"process": process} if process else {}

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._process,
            **_data(record),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)


def _data(record: logging.LogRecord) -> dict[str, Any]:
    return {**_COMMON.get(), **getattr(record, "fields", {})}


def _one_line(value: Any) -> str:
    """A value as text that cannot pass for an event of its own."""
    return str(value).replace("\n", "\\n")
