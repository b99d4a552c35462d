"""Log lines of every process: text for people, JSON for machines."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any


class JsonFormatter(logging.Formatter):
    """One JSON object per line. JSON escapes control characters, so no line can be forged.

    A record's `fields`, a mapping given as `extra={"fields": …}`, join the line.
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "message": record.getMessage(),
            "target": record.name,
            "process": self._process,
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """`time level process: message`; control characters of the message are escaped.

    A traceback's lines are indented, so that a line break in an error's text begins no line.
    """

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {process}: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, the library's name
        record.message = _escaped(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802, the library's name
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  {_escaped(line)}" for line in lines)


def _escaped(text: str) -> str:
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def debugging() -> bool:
    """Whether LOG_LEVEL asks for debug, and so for tracebacks of refused starts."""
    return _level() <= logging.DEBUG


def configure_logging(process: str, *, json_output: bool) -> None:
    """Log to standard error, at LOG_LEVEL (`error`, `warning`, `info`, `debug`; default `info`)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if json_output else TextFormatter(process))
    logging.basicConfig(level=_level(), handlers=[handler], force=True)


def _level() -> int:
    # "info,some_target=debug" is the form that TGI's users have in their environments
    words = os.environ.get("LOG_LEVEL", "").upper().split(",")
    levels = logging.getLevelNamesMapping() | {"TRACE": logging.DEBUG, "WARN": logging.WARNING}
    return next((levels[word.strip()] for word in words if word.strip() in levels), logging.INFO)
