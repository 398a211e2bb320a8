"""A worker reports the end of an attempt: fenced, metered, settled, once."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from gridx.blobs import MAX_BLOBS
from gridx.errors import BlobMismatch, BlobsMissing, StaleLease
from gridx.protocol import AttemptFinished
from gridx.schemas import BlobRef, Reason
from gridx.states import Cause

from ..rules import attempts as attempt_rules
from ..rules import freezing, metering
from ..rules import jobs as job_rules
from ..rules import sessions as session_rules
from ..rules.jobs import JobEvent
from ..rules.sessions import Verdict
from ..settings import Settings
from ..store import attempts, calls, jobs
from ..store.records import Balance, CallRecord, JobRecord, WorkerRecord
from . import blobs
from .outcome import Outcome, Report, end_attempt, held_by
from .session_end import CallReport

LOST_RESULT = "The worker reported a result that it has not sent."


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """What the report did. ``balance`` is the payer's, where the job is final and had a hold."""

    outcome: Outcome
    job: JobRecord
    balance: Balance | None = None
    result_blobs: tuple[BlobRef, ...] = ()  # that the job refers to from now on
    call: CallRecord | None = None  # of a session, that ended with it


def finish(
    tx: Connection,
    now_us: int,
    settings: Settings,
    report: AttemptFinished,
    worker: WorkerRecord,
    stored_end: int,
    started_us: int | None = None,
    stream: bytes | None = None,
    call_started_us: int | None = None,
) -> Finished:
    """Accept a report: end its attempt, end or requeue its job, close the hold.

    Args:
        stored_end: how much of the attempt's output is durable.
        started_us: when AttemptStarted arrived; None: what was written, else the time of the
            claim. Either way no more is paid than the worker metered.
        call_started_us: when the call of a session started that has not ended, as far as it is
            known and not written.
        stream: the whole output, stored with the report; for a short one that is in no log.

    Raises:
        StaleLease: the attempt is not live, or not this worker's.
    """
    found = jobs.find(tx, report.job_id)
    current = held_by(found, report.attempt, worker)
    if found is None or current is None:
        if found and attempts.was_reported(tx, report.job_id, report.attempt, worker.row_id):
            return Finished(outcome=Outcome.REPEATED, job=found.job)
        raise _stale(report)
    if stored_end < report.stream_bytes:
        return Finished(outcome=Outcome.MORE, job=found.job)
    job = found.job
    cause = job_rules.believed(report.cause, has_requirements=bool(job.job.pip))
    message = job_rules.told_by_worker(cause, report.message)
    exit_code = usable_exit_code(report.exit_code)
    if stored_end > report.stream_bytes:
        # It sent more than it owns to have sent: nothing of this attempt can be believed.
        cause, message = Cause.SANDBOX_FAILED, "The worker sent more output than it reported."
    result_blobs = report.result_blobs
    if result_blobs and not has_all(tx, job, result_blobs):
        cause, message, result_blobs = Cause.SANDBOX_FAILED, LOST_RESULT, ()
    if started_us is None:
        started_us = current.started_us if current.started_us is not None else current.claimed_us
    frozen_us = freezing.stood_us(current.frozen, now_us)
    usage = metering.bound(
        report.usage,
        own_s=(now_us - started_us - frozen_us) / 1_000_000,
        own_frozen_s=frozen_us / 1_000_000,
        request=job.job.limits.request(),
        gpu_memory_bytes=metering.largest_gpus_bytes(
            [gpu.memory_bytes for gpu in worker.capability.gpus], job.job.limits.gpus
        ),
    )
    cancel_wanted = job.cancel_us is not None
    verdict = None
    if job.session is not None:
        verdict = judge_session(tx, now_us, job, cause, message, exit_code, started_us + frozen_us)
        job_event = verdict.job_event
        reason: Reason | None = verdict.reason
        cancel_wanted = job_event in (JobEvent.STOPPED, JobEvent.CLOSED)
    else:
        job_event = job_rules.event_for_report(
            cause, cancel_wanted=cancel_wanted, is_last_try=job.tries + 1 >= job.max_tries
        )
        told = Cause.CANCELLED if job_event is JobEvent.STOPPED else cause
        if told is Cause.CANCELLED and not cancel_wanted:
            told = Cause.SANDBOX_FAILED
        reason = job_rules.reason_for_report(told, message, exit_code, job.job.limits)
    if stream:
        attempts.insert_stream(tx, current.row_id, stream)
    ended = end_attempt(
        tx,
        now_us,
        settings,
        found,
        current,
        attempt_event=attempt_rules.event_for_report(cause, cancel_wanted=cancel_wanted),
        job_event=job_event,
        report=Report(
            until_us=now_us,
            started_us=started_us,
            cause=report.cause.value,
            message=message or None,
            usage=usage,
            stream_bytes=stored_end,
            exit_code=exit_code,
        ),
        reason=reason,
        verdict=verdict,
        call_report=CallReport(
            started_us=call_started_us,
            end_bytes=stored_end,
            cause=report.cause.value,
            exit_code=exit_code,
            usage=usage,
            result=report.result,
            result_blobs=result_blobs,
        ),
    )
    if ended.outcome is not Outcome.SETTLED or job.session is not None:
        return Finished(
            outcome=ended.outcome,
            job=ended.job,
            balance=ended.balance,
            call=ended.call,
            result_blobs=result_blobs,
        )
    if report.result is not None:
        jobs.insert_payload(tx, job.row_id, "result", report.result)
    blobs.refer(tx, job.user_id, job.row_id, result_blobs, "result")
    return Finished(
        outcome=ended.outcome, job=ended.job, balance=ended.balance, result_blobs=result_blobs
    )


def judge_session(
    tx: Connection,
    now_us: int,
    job: JobRecord,
    cause: Cause,
    message: str,
    exit_code: int | None,
    started_us: int,
) -> Verdict:
    """Return what the end of its sandbox means for a session and for the call that runs.

    ``started_us`` is later by what it stood still.
    """
    assert job.session is not None
    opened = calls.find_open(tx, job.row_id)
    newest = calls.find_newest(tx, job.row_id)
    return session_rules.judge(
        cause,
        message,
        exit_code,
        session=job.session,
        limits=job.job.limits,
        why=None if opened is None else opened.why,
        cancel_wanted=job.cancel_us is not None,
        interrupt_wanted=newest is not None
        and not newest.is_final
        and newest.interrupt_us is not None,
        is_at_limit=session_rules.is_at_limit(started_us, now_us, job.job.limits),
    )


def usable_exit_code(exit_code: int | None) -> int | None:
    """Return an exit code that an operating system can have, else None."""
    return exit_code if exit_code is not None and -(2**31) <= exit_code < 2**31 else None


def has_all(tx: Connection, job: JobRecord, refs: tuple[BlobRef, ...]) -> bool:
    """Return whether every blob of a result was put before it was reported."""
    if len(refs) > MAX_BLOBS:
        return False
    try:
        blobs.require(tx, job.user_id, refs)
    except (BlobsMissing, BlobMismatch):
        return False
    return True


def _stale(report: AttemptFinished) -> StaleLease:
    return StaleLease(
        f"Attempt {report.attempt} of {report.job_id} is no longer live on this worker.",
        job_id=report.job_id,
        attempt=report.attempt,
    )
