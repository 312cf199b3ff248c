"""The map's log as JSON lines on stderr, for systems that collect logs: one for each request and each error."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

NAME = "callipper_db.web"  # of the map's logger


class JsonLine(logging.Formatter):
    """A record as one line: at (UTC), level, logger, message, what a request adds, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "request", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def json_lines() -> dict[str, Any]:
    """Settings for logging.config: uvicorn's warnings and all of the map's."""
    handlers = {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": JsonLine}},
        "handlers": handlers,
        "loggers": {
            "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
            NAME: {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        },
    }
