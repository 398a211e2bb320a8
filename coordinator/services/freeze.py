"""A lender pauses: an attempt stands still, and so do its cost and its limits, until it goes on."""

from __future__ import annotations

from sqlalchemy import Connection

from gridx.states import AttemptState

from ..rules import freezing
from ..settings import Settings
from ..store import attempts, calls, jobs
from ..store.jobs import CurrentAttempt, Found
from ..store.records import JobRecord, WorkerRecord
from .outcome import find_held


def note_frozen(
    tx: Connection,
    now_us: int,
    settings: Settings,
    job_id: str,
    attempt: int,
    worker: WorkerRecord,
    *,
    is_frozen: bool,
) -> JobRecord:
    """Write that an attempt stands still from now on, or goes on. Said twice it is the same.

    What has not started cannot stand still: its limit of starting goes on.

    Raises:
        StaleLease: the attempt is not live, or not this worker's.
    """
    found, current = find_held(tx, job_id, attempt, worker)
    if not is_frozen:
        thaw(tx, now_us, found, current)
    elif current.state is AttemptState.RUNNING and current.frozen.since_us is None:
        until_us = freezing.given_up_at(current.frozen, now_us, settings.max_frozen_s)
        attempts.freeze(tx, current.row_id, now_us, until_us)
    after = jobs.find_record(tx, job_id)
    assert after is not None
    return after


def thaw(tx: Connection, now_us: int, found: Found, current: CurrentAttempt) -> None:
    """Let the clocks of an attempt go on, and those of its session and its open call.

    A wish to stop it has set a limit that has not stood still.
    """
    frozen, job = current.frozen, found.job
    if frozen.since_us is None:
        return
    stood_us = freezing.stands_us(frozen, now_us)
    opened = None if job.session is None else calls.find_open(tx, job.row_id)
    is_stopping = job.cancel_us is not None or (opened is not None and opened.end_us is not None)
    attempts.thaw(tx, current.row_id, stood_us, 0 if is_stopping else stood_us)
    if opened is None:
        return
    calls.shift_session(tx, job.row_id, stood_us)
    call = calls.find_newest(tx, job.row_id)
    if call is not None and not call.is_final:
        begun_us = call.created_us if call.started_us is None else call.started_us
        later_us = freezing.stands_us(frozen, now_us, begun_us=begun_us)
        calls.shift(tx, call, later_us, 0 if call.started_us is None else later_us)
