"""The end of an attempt and what it does to its job: shared by every way in which one can end."""

from __future__ import annotations

from enum import StrEnum

import msgspec
from sqlalchemy import Connection

from gridx.errors import StaleLease
from gridx.resources import Usage
from gridx.schemas import Reason
from gridx.states import FINAL_JOB_STATES, JobState

from ..ledger import escrow
from ..rules import attempts as attempt_rules
from ..rules import freezing, pricing
from ..rules import jobs as job_rules
from ..rules import sessions as session_rules
from ..rules.attempts import AttemptEvent
from ..rules.jobs import Effect, JobEvent
from ..rules.sessions import Verdict
from ..settings import Settings
from ..store import attempts, calls, jobs
from ..store.jobs import CurrentAttempt, Found
from ..store.records import Balance, CallRecord, JobRecord, WorkerRecord
from . import blobs
from .session_end import CallReport, close_session


class Outcome(StrEnum):
    """What an event did to its job."""

    SETTLED = "settled"  # the job is final, its hold is closed
    REQUEUED = "requeued"  # the job waits for another worker
    REPEATED = "repeated"  # this was accepted before; nothing has changed
    MORE = "more"  # output is missing; nothing has changed


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that ended. ``balance`` is the payer's, where the job is final and had a hold;
    ``call`` is the one of a session that ended with it."""

    job: JobRecord
    attempt: int
    worker_id: str
    outcome: Outcome
    balance: Balance | None = None
    call: CallRecord | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of how an attempt ended; ``cause`` is None without a worker's word."""

    until_us: int
    started_us: int | None
    cause: str | None = None
    message: str | None = None
    usage: Usage | None = None
    stream_bytes: int | None = None
    exit_code: int | None = None


def held_by(found: Found | None, attempt: int, worker: WorkerRecord) -> CurrentAttempt | None:
    """Return this attempt while it is live on this worker, else None: the fence of late reports."""
    current = None if found is None else found.current
    if (
        current is None
        or current.n != attempt
        or current.worker_row_id != worker.row_id
        or not attempt_rules.is_live(current.state)
    ):
        return None
    return current


def find_held(
    tx: Connection, job_id: str, attempt: int, worker: WorkerRecord
) -> tuple[Found, CurrentAttempt]:
    """Return a job and its attempt that is live on this worker.

    Raises:
        StaleLease: it is not live, or not this worker's.
    """
    found = jobs.find(tx, job_id)
    current = held_by(found, attempt, worker)
    if found is None or current is None:
        raise StaleLease(
            f"Attempt {attempt} of {job_id} is no longer live on this worker.",
            job_id=job_id,
            attempt=attempt,
        )
    return found, current


def end_attempt(
    tx: Connection,
    now_us: int,
    settings: Settings,
    found: Found,
    current: CurrentAttempt,
    *,
    attempt_event: AttemptEvent,
    job_event: JobEvent,
    report: Report,
    reason: Reason | None,
    verdict: Verdict | None = None,
    call_report: CallReport | None = None,
    is_spared: bool = False,
) -> Ended:
    """End the live attempt ``current``, move its job by ``job_event``, close the hold if it ends.

    ``reason`` is written when the job ends. ``verdict`` and ``call_report`` are for a session
    whose worker has reported: what that means for the call which had not ended. Paid is from
    ``report.started_us`` (None: nothing) to ``report.until_us`` without what it stood still, by
    the rules of pricing. ``is_spared``: the attempt does not count against the job.

    Raises:
        StaleLease: the attempt has ended.
        Conflict: the event cannot happen to the job.
    """
    job = found.job
    attempt_state = attempt_rules.advance(current.state, attempt_event)
    step = job_rules.advance(job.state, job_event)
    frozen_us = freezing.stood_us(current.frozen, report.until_us)
    charge_ucr = 0
    if Effect.SETTLE in step.effects and report.started_us is not None and job.hold_ucr:
        charge_ucr = pricing.charge(
            rate_ucr_per_s=job.rate_ucr_per_s,
            hold_ucr=job.hold_ucr,
            since_us=report.started_us,
            until_us=report.until_us - frozen_us,
            metered_s=None if report.usage is None else report.usage.wall_s,
            is_own_worker=current.owner_id == job.user_id,
        )
    attempts.close(
        tx,
        current.row_id,
        attempt_state,
        now_us=now_us,
        started_us=report.started_us,
        cause=report.cause,
        message=report.message,
        usage=report.usage,
        stream_bytes=report.stream_bytes,
        charge_ucr=charge_ucr,
        frozen_us=frozen_us,
    )
    is_final = step.state in FINAL_JOB_STATES
    failed_try = job_event in (JobEvent.ATTEMPT_FAILED, JobEvent.TRIES_EXHAUSTED)
    after = msgspec.structs.replace(
        job,
        state=step.state,
        tries=job.tries + failed_try,
        spared=job.spared + is_spared,
        is_frozen=False,
        cost_ucr=charge_ucr,
        finished_us=now_us if is_final else None,
        exit_code=report.exit_code if is_final else None,
        reason=reason if is_final else None,
        started_us=report.started_us,
        stream_bytes=report.stream_bytes,
    )
    jobs.move(tx, job, after)
    if is_final:
        jobs.delete_inputs(tx, job)
        if job.blob_count:
            blobs.release(tx, now_us, job)
    call = None
    if is_final and job.session is not None:
        call = _close_session(
            tx, now_us, after, current, step.effects, verdict, call_report, reason, job_event
        )
    balance = _close_hold(tx, now_us, settings, after, current, step.effects, charge_ucr)
    return Ended(
        job=after,
        attempt=current.n,
        worker_id=after.worker_id or "",
        outcome=Outcome.REQUEUED if step.state is JobState.QUEUED else Outcome.SETTLED,
        balance=balance,
        call=call,
    )


def _close_session(
    tx: Connection,
    now_us: int,
    job: JobRecord,
    current: CurrentAttempt,
    effects: tuple[Effect, ...],
    verdict: Verdict | None,
    report: CallReport | None,
    reason: Reason | None,
    job_event: JobEvent,
) -> CallRecord | None:
    assert job.session is not None
    if verdict is None:
        opened = calls.find_open(tx, job.row_id)
        assert reason is not None, "only a report ends a session without one"
        verdict = session_rules.judge_end(
            job_event,
            reason,
            session=job.session,
            limits=job.job.limits,
            why=None if opened is None else opened.why,
        )
    return close_session(
        tx,
        now_us,
        job,
        verdict,
        report or CallReport(),
        is_paid=Effect.SETTLE in effects,
        is_own_worker=current.owner_id == job.user_id,
        frozen=current.frozen,
    )


def _close_hold(
    tx: Connection,
    now_us: int,
    settings: Settings,
    job: JobRecord,
    current: CurrentAttempt,
    effects: tuple[Effect, ...],
    charge_ucr: int,
) -> Balance | None:
    if not job.hold_ucr:
        return None
    if Effect.SETTLE in effects:
        closed = escrow.settle(
            tx,
            job.row_id,
            key=f"settle:{job.job_id}:{current.n}",
            charge_ucr=charge_ucr,
            lender_account_id=current.lender_account_id,
            worker_share_percent=settings.worker_share_percent,
            now_us=now_us,
        )
    elif Effect.RELEASE in effects:
        closed = escrow.release(tx, job.row_id, now_us)
    else:
        return None
    return Balance(user=job.user, posted_ucr=closed.posted_ucr, held_ucr=closed.held_ucr)
