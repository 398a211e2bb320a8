"""Ids of jobs and workers, and the names that people choose.

A job id is made by the client and is the idempotency key of its submission: the same id sent
twice is the same job. Source: RFC 9562, section 5.7 (UUID version 7, time-ordered).
"""

from __future__ import annotations

import os
import re
import time
from typing import NewType

from .errors import InvalidRequest

JobId = NewType("JobId", str)
WorkerId = NewType("WorkerId", str)
UserName = NewType("UserName", str)

_JOB = re.compile(r"job_[0-9a-f]{32}\Z")
_WORKER = re.compile(r"wrk_[0-9a-f]{32}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}\Z")


def _uuid7_hex() -> str:
    value = (time.time_ns() // 1_000_000 & (1 << 48) - 1) << 80
    value |= int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76  # version 7
    value = value & ~(0x3 << 62) | 0x2 << 62  # RFC 9562 variant
    return f"{value:032x}"


def new_job_id() -> JobId:
    """Return ``job_`` and the 32 hex digits of a fresh UUIDv7."""
    return JobId(f"job_{_uuid7_hex()}")


def new_worker_id() -> WorkerId:
    """Return ``wrk_`` and the 32 hex digits of a fresh UUIDv7."""
    return WorkerId(f"wrk_{_uuid7_hex()}")


def parse_job_id(text: str) -> JobId:
    """Return ``text`` as a job id, or raise InvalidRequest."""
    if not _JOB.match(text):
        raise InvalidRequest(
            f"{text[:80]!r} is not a job id.",
            hint="A job id is 'job_' and 32 hexadecimal digits, as `gridx jobs` prints it.",
        )
    return JobId(text)


def parse_worker_id(text: str) -> WorkerId:
    """Return ``text`` as a worker id, or raise InvalidRequest."""
    if not _WORKER.match(text):
        raise InvalidRequest(
            f"{text[:80]!r} is not a worker id.",
            hint="A worker id is 'wrk_' and 32 hexadecimal digits, as `gridx workers` prints it.",
        )
    return WorkerId(text)


def parse_user_name(text: str) -> UserName:
    """Return ``text`` as a user name, or raise InvalidRequest."""
    if not _NAME.match(text):
        raise InvalidRequest(
            f"{text[:80]!r} is not a user name.",
            hint="Use 1 to 64 letters, digits, '_', '.', '@' or '-', beginning with a letter"
            " or a digit.",
        )
    return UserName(text)
