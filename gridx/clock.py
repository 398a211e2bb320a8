"""The one source of time: whole microseconds UTC for records, monotonic seconds for waiting."""

from __future__ import annotations

import time
from datetime import UTC, datetime

monotonic_s = time.monotonic


def now_us() -> int:
    """Return the time as whole microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000


def to_datetime(us: int) -> datetime:
    """Return ``us`` (microseconds since 1970-01-01 UTC) as an aware datetime."""
    return datetime.fromtimestamp(us / 1_000_000, UTC)
