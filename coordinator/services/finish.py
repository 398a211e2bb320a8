"""A worker reports the end of an attempt: fenced, metered, settled, once."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from gridx.errors import StaleLease
from gridx.protocol import AttemptFinished
from gridx.states import Cause

from ..rules import attempts as attempt_rules
from ..rules import jobs as job_rules
from ..settings import Settings
from ..store import attempts, jobs
from ..store.records import Balance, JobRecord, WorkerRecord
from .outcome import Outcome, Report, end_attempt, held_by

_MAX_MESSAGE_CHARS = 1000


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """What the report did. ``balance`` is the payer's, where the job is final and had a hold."""

    outcome: Outcome
    job: JobRecord
    balance: Balance | None = None


def finish(
    tx: Connection,
    now_us: int,
    settings: Settings,
    report: AttemptFinished,
    worker: WorkerRecord,
    stored_end: int,
    started_us: int | None = None,
    stream: bytes | None = None,
) -> Finished:
    """Accept a report: end its attempt, end or requeue its job, close the hold.

    Args:
        stored_end: how much of the attempt's output is durable.
        started_us: when AttemptStarted arrived; None: what was written, else the time of the
            claim. Either way no more is paid than the worker metered.
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
    cause = report.cause
    message = report.message[:_MAX_MESSAGE_CHARS]
    exit_code = report.exit_code
    if exit_code is not None and not -(2**31) <= exit_code < 2**31:
        exit_code = None  # no operating system has it
    if stored_end > report.stream_bytes:
        # It sent more than it owns to have sent: nothing of this attempt can be believed.
        cause, message = Cause.SANDBOX_FAILED, "The worker sent more output than it reported."
    cancel_wanted = job.cancel_us is not None
    job_event = job_rules.event_for_report(
        cause, cancel_wanted=cancel_wanted, is_last_try=job.tries + 1 >= job.max_tries
    )
    told = Cause.CANCELLED if job_event is job_rules.JobEvent.STOPPED else cause
    if told is Cause.CANCELLED and not cancel_wanted:
        told = Cause.SANDBOX_FAILED
    if started_us is None:
        started_us = current.started_us if current.started_us is not None else current.claimed_us
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
            usage=report.usage,
            stream_bytes=stored_end,
            exit_code=exit_code,
        ),
        reason=job_rules.reason_for_report(told, message, exit_code, job.job.limits),
    )
    if report.result is not None and ended.outcome is Outcome.SETTLED:
        jobs.insert_payload(tx, job.row_id, "result", report.result)
    return Finished(outcome=ended.outcome, job=ended.job, balance=ended.balance)


def _stale(report: AttemptFinished) -> StaleLease:
    return StaleLease(
        f"Attempt {report.attempt} of {report.job_id} is no longer live on this worker.",
        job_id=report.job_id,
        attempt=report.attempt,
    )
