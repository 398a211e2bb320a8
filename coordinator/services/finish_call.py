"""A worker reports the end of a call while its session goes on: fenced, and once."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from gridx.errors import StaleLease
from gridx.protocol import CallFinished
from gridx.schemas import BlobRef
from gridx.states import Cause

from ..rules import calls as call_rules
from ..rules import jobs as job_rules
from ..rules import leases
from ..rules.calls import CallEvent
from ..settings import Settings
from ..store import calls, jobs
from ..store.records import CallRecord, JobRecord, WorkerRecord
from .finish import LOST_RESULT, has_all, usable_exit_code
from .outcome import Outcome, held_by
from .session_end import CallReport, end_call


class FinishedCall(msgspec.Struct, frozen=True, kw_only=True):
    """What the report did: SETTLED, REPEATED or MORE."""

    outcome: Outcome
    job: JobRecord
    call: CallRecord
    result_blobs: tuple[BlobRef, ...] = ()  # that the call refers to from now on


def finish_call(
    tx: Connection,
    now_us: int,
    settings: Settings,
    report: CallFinished,
    worker: WorkerRecord,
    stored_end: int,
    started_us: int | None = None,
) -> FinishedCall:
    """Accept a report: end its call, and give the session its idle time.

    Args:
        stored_end: how much of the attempt's output is durable. The stream goes on after the
            call, so there may be more than ``report.stream_bytes``.
        started_us: when the call started, where that is not written yet.

    Raises:
        StaleLease: the session is not live, or not this worker's, or has no such call.
    """
    found = jobs.find(tx, report.job_id)
    current = held_by(found, report.attempt, worker)
    if found is None or found.job.session is None:
        raise _stale(report)
    job, session = found.job, found.job.session
    known = calls.find(tx, job.row_id, report.call)
    if known is None:
        raise _stale(report)
    call = known[0]
    if current is None:
        if calls.was_reported(tx, report.job_id, report.call):
            return FinishedCall(outcome=Outcome.REPEATED, job=job, call=call)
        raise _stale(report)
    if call.is_final:
        return FinishedCall(outcome=Outcome.REPEATED, job=job, call=call)
    if stored_end < report.stream_bytes:
        return FinishedCall(outcome=Outcome.MORE, job=job, call=call)
    opened = calls.find_open(tx, job.row_id)
    is_closing = opened is not None and opened.end_us is not None
    stop_wanted = call.interrupt_us is not None or job.cancel_us is not None
    message = report.message[: job_rules.MAX_MESSAGE_CHARS]
    exit_code = usable_exit_code(report.exit_code)
    cause, result_blobs = report.cause, report.result_blobs
    if result_blobs and not has_all(tx, job, result_blobs):
        cause, message, result_blobs = Cause.SANDBOX_FAILED, LOST_RESULT, ()
    event = call_rules.event_for_report(cause, stop_wanted=stop_wanted)
    reason = call_rules.reason_for_call(
        cause,
        message,
        exit_code,
        job.job.limits,
        timeout_s=call.spec.timeout_s,
        stop_wanted=stop_wanted,
    )
    if is_closing and cause is Cause.CANCELLED:
        event, reason = CallEvent.SESSION_CLOSED, call_rules.reason_for_close()
    ended = end_call(
        tx,
        now_us,
        job,
        call,
        event,
        reason,
        CallReport(
            started_us=started_us or max(call.created_us, current.started_us or current.claimed_us),
            end_bytes=report.stream_bytes,
            cause=cause.value,
            exit_code=exit_code,
            usage=report.usage,
            result=report.result,
            result_blobs=result_blobs,
        ),
        is_paid=True,
        is_own_worker=current.owner_id == job.user_id,
        frozen=current.frozen,
    )
    calls.set_idle(tx, job.row_id, leases.after(now_us, session.idle_s))
    return FinishedCall(outcome=Outcome.SETTLED, job=job, call=ended, result_blobs=result_blobs)


def _stale(report: CallFinished) -> StaleLease:
    return StaleLease(
        f"Call {report.call} of {report.job_id} is no longer live on this worker.",
        job_id=report.job_id,
        attempt=report.attempt,
        call=report.call,
    )
