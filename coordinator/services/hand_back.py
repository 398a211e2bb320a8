"""A worker gives a job back that it will not run: it waits again at once, and no try is counted.

The number of attempts is bounded all the same: a job that every worker gives back would go
round for ever. One that a lender gives back who pauses is not counted towards that.
"""

from __future__ import annotations

from sqlalchemy import Connection

from gridx.errors import WorkerLost
from gridx.schemas import Reason

from ..rules import jobs as job_rules
from ..rules import sessions as session_rules
from ..rules.attempts import AttemptEvent
from ..rules.jobs import JobEvent
from ..settings import Settings
from ..store import calls
from ..store.jobs import CurrentAttempt, Found
from ..store.records import WorkerRecord
from .outcome import Ended, Report, end_attempt, find_held


def hand_back(
    tx: Connection,
    now_us: int,
    settings: Settings,
    job_id: str,
    attempt: int,
    worker: WorkerRecord,
    message: str = "",
    *,
    has_started: bool = False,
    is_polite: bool = False,
) -> Ended:
    """End the attempt and put its job back into the queue; a job that was cancelled ends.

    Nothing is charged: the worker has not run it. A session that has started is lost: nothing
    could bring its variables back. One that was to be closed is closed, and paid for.

    Args:
        has_started: the sandbox had the job, as far as that is known and not written.
        is_polite: the worker pauses, as it has said.

    Raises:
        StaleLease: the attempt is not live, or not this worker's.
    """
    found, current = find_held(tx, job_id, attempt, worker)
    reason: Reason | None
    if found.job.cancel_us is not None:
        job_event, reason = JobEvent.STOPPED, job_rules.reason_for_cancel()
    else:
        job_event = job_rules.event_for_hand_back(
            attempt,
            found.job.spared,
            is_polite=is_polite,
            max_attempts=settings.max_attempts,
            most_attempts=settings.most_attempts,
        )
        is_over = job_event is JobEvent.TRIES_EXHAUSTED
        reason = _given_up(attempt, message) if is_over else None
    opened = None if found.job.session is None else calls.find_open(tx, found.job.row_id)
    if found.job.session is not None and job_event is not JobEvent.STOPPED:
        if opened is not None and opened.end_us is not None:
            job_event = JobEvent.CLOSED
            reason = session_rules.reason_for_end(
                opened.why, found.job.session, found.job.job.limits
            )
        elif has_started or _has_begun(tx, found, current):
            job_event = JobEvent.TRIES_EXHAUSTED
            reason = session_rules.reason_for_hand_back(message, found.job.session)
        elif _was_interrupted(tx, found):
            job_event, reason = JobEvent.STOPPED, job_rules.reason_for_cancel()
    stopped = job_event in (JobEvent.STOPPED, JobEvent.CLOSED)
    return end_attempt(
        tx,
        now_us,
        settings,
        found,
        current,
        attempt_event=AttemptEvent.STOPPED if stopped else AttemptEvent.HANDED_BACK,
        job_event=job_event,
        report=Report(
            until_us=now_us,
            started_us=current.started_us if job_event is JobEvent.CLOSED else None,
            message=message[:1000] or None,
        ),
        reason=reason,
        is_spared=is_polite and job_event is JobEvent.HANDED_BACK,
    )


def _has_begun(tx: Connection, found: Found, current: CurrentAttempt) -> bool:
    if current.started_us is not None:
        return True
    newest = calls.find_newest(tx, found.job.row_id)
    return newest is not None and (newest.n > 0 or newest.is_final)


def _was_interrupted(tx: Connection, found: Found) -> bool:
    newest = calls.find_newest(tx, found.job.row_id)
    return newest is not None and newest.interrupt_us is not None


def _given_up(attempts: int, message: str) -> Reason:
    said = f" The last one said: {message[:500]}" if message else ""
    return Reason(
        code=WorkerLost.code,
        message=f"No worker would run the job; {attempts} attempts were given back.{said}",
        hint="See with `gridx workers` what is online, and ask for what they have.",
    )
