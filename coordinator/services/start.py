"""Attempts that started, written in batches: a short attempt ends before this is worth a write."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from ..rules import leases
from ..settings import Settings
from ..store import attempts
from ..store.attempts import Started

__all__ = ["Started", "mark_started"]


def mark_started(
    tx: Connection, now_us: int, settings: Settings, started: Sequence[Started]
) -> None:
    """Write these starts; those whose attempt has ended, or is another worker's, change nothing."""
    for each in started:
        due_us = leases.due_when_started(each.started_us, each.timeout_s, settings.overrun_s)
        attempts.mark_started(tx, each, due_us)
