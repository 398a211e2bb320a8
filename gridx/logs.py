"""The log of a daemon: one JSON object a line on stderr, with the action and the ids."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from typing import TextIO

from .clock import now_us, to_datetime

_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Formats a record as one line; what was passed as ``extra`` becomes fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": to_datetime(now_us()).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(
            (key, value) for key, value in vars(record).items() if key not in _OF_EVERY_RECORD
        )
        line.setdefault("action", "log")
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def start_logging(
    level: str = "info", *, quieter: Mapping[str, int], stream: TextIO = sys.stderr
) -> None:
    """Send the log of this process to ``stream``.

    Args:
        quieter: loggers of libraries, and the least level that is shown of each.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name, least in quieter.items():
        logging.getLogger(name).setLevel(least)
