"""Attempts that started, written in batches: a short attempt ends before this is worth a write."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection

from ..rules import leases
from ..settings import Settings
from ..store import attempts, calls
from ..store.attempts import Started

__all__ = ["CallStarted", "Started", "mark_calls_started", "mark_started"]


def mark_started(
    tx: Connection, now_us: int, settings: Settings, started: Sequence[Started]
) -> None:
    """Write these starts; those whose attempt has ended, or is another worker's, change nothing."""
    for each in started:
        due_us = leases.due_when_started(each.started_us, each.timeout_s, settings.overrun_s)
        attempts.mark_started(tx, each, due_us)
        if each.is_session:
            calls.set_limit(tx, each.job_id, leases.after(each.started_us, each.timeout_s))


class CallStarted(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a session that started, to be written when it suits."""

    job_id: str
    call: int
    started_us: int


def mark_calls_started(
    tx: Connection, now_us: int, settings: Settings, started: Sequence[CallStarted]
) -> None:
    """Write these starts; a call that has ended stays as it is."""
    for each in started:
        call = calls.find_queued(tx, each.job_id, each.call)
        if call is not None:
            due_us = leases.due_when_started(
                each.started_us, call.spec.timeout_s, settings.overrun_s
            )
            calls.mark_started(tx, call, each.started_us, due_us)
