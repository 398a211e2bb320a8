"""The worker's log: one JSON object a line on stderr, with the action and the ids."""

from __future__ import annotations

import json
import logging
import sys
from typing import TextIO

from gridx.clock import now_us, to_datetime

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
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def start_logging(stream: TextIO = sys.stderr, *, level: int = logging.INFO) -> None:
    """Send the log of this process to ``stream``."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("urllib3", "docker", "tornado.general"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
