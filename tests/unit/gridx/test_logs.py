"""The log of a daemon: one JSON object a line, with the action and the ids."""

from __future__ import annotations

import json
import logging

from gridx.logs import JsonLines


def line(**extra: object) -> dict[str, object]:
    record = logging.makeLogRecord(
        {"name": "worker.daemon", "levelname": "INFO", "msg": "went %s", "args": ("well",), **extra}
    )
    found: dict[str, object] = json.loads(JsonLines().format(record))
    return found


def test_a_record_is_one_line_with_its_fields() -> None:
    found = line(action="stop", job_id="job_1", count=3)
    assert found["message"] == "went well"
    assert found["level"] == "info"
    assert found["logger"] == "worker.daemon"
    assert (found["action"], found["job_id"], found["count"]) == ("stop", "job_1", 3)
    assert str(found["time"]).endswith("+00:00")


def test_what_json_does_not_know_is_written_as_text() -> None:
    assert line(error=ValueError("bad"))["error"] == "bad"


def test_a_traceback_stays_on_the_line() -> None:
    try:
        raise ValueError("bad")
    except ValueError as error:
        found = line(exc_info=(ValueError, error, error.__traceback__))
    assert "ValueError: bad" in str(found["traceback"])
