"""Leases that are over: their jobs wait again, or end with a reason."""

from __future__ import annotations

from sqlalchemy import Connection

from gridx.schemas import Reason

from ..rules import jobs as job_rules
from ..rules import leases
from ..rules import sessions as session_rules
from ..rules.attempts import AttemptEvent
from ..rules.jobs import JobEvent
from ..rules.leases import EndOfLease, Lease
from ..settings import Settings
from ..store import attempts, calls, jobs
from ..store.jobs import CurrentAttempt, Found
from ..store.records import JobRecord, WorkerRecord
from .outcome import Ended, Report, end_attempt, held_by


def find_due(tx: Connection, now_us: int) -> bool:
    """True when ``expire`` has something to do: a read, so that an idle grid writes nothing."""
    return attempts.has_due(tx, now_us)


def expire(tx: Connection, now_us: int, settings: Settings) -> tuple[Ended, ...]:
    """End every live attempt whose lease or limit is over.

    A connected worker among them is to be told, with StopAttempt(fenced=True).
    """
    ended = []
    for job_id, _ in attempts.list_due(tx, now_us):
        found = jobs.find(tx, job_id)
        if found is None or found.current is None:
            continue
        why = leases.find_end(lease_of(found, found.current, _end_asked_us(tx, found)), now_us)
        if why is not None:
            ended.append(end_lost(tx, now_us, settings, found, found.current, why))
    return tuple(ended)


def lose(
    tx: Connection,
    now_us: int,
    settings: Settings,
    job_id: str,
    attempt: int,
    worker: WorkerRecord,
) -> Ended | None:
    """End an attempt that its connected worker no longer names; None when it has ended."""
    found = jobs.find(tx, job_id)
    current = held_by(found, attempt, worker)
    if found is None or current is None:
        return None
    return end_lost(tx, now_us, settings, found, current, EndOfLease.FORGOTTEN)


def end_lost(
    tx: Connection,
    now_us: int,
    settings: Settings,
    found: Found,
    current: CurrentAttempt,
    why: EndOfLease,
) -> Ended:
    """End a live attempt that brings no report: fenced from now on, a try counted, but not where
    its lender paused it for too long.

    A job whose cancel was wanted ends as cancelled, paid up to when its worker was last heard
    or asked to stop, by the coordinator's clock; so does a session that was to be closed, as
    completed. Any other is not charged.
    """
    job = found.job
    cancelled = job.cancel_us is not None
    end_us = _end_asked_us(tx, found)
    event = job_rules.event_for_loss(
        cancel_wanted=cancelled, is_last_try=job.tries + 1 >= job.max_tries
    )
    is_spared = why is EndOfLease.FROZEN and job.session is None and not cancelled
    if is_spared:
        event = job_rules.event_for_hand_back(
            current.n,
            job.spared,
            is_polite=True,
            max_attempts=settings.max_attempts,
            most_attempts=settings.most_attempts,
        )
    if end_us is not None and not cancelled:
        event = JobEvent.CLOSED
    return end_attempt(
        tx,
        now_us,
        settings,
        found,
        current,
        attempt_event=AttemptEvent.STOPPED
        if event in (JobEvent.STOPPED, JobEvent.CLOSED)
        else AttemptEvent.LEASE_EXPIRED,
        job_event=event,
        report=Report(
            until_us=leases.paid_until(lease_of(found, current, end_us), now_us),
            started_us=current.started_us,
            message=why.value,
        ),
        reason=_reason(tx, job, event, why),
        is_spared=is_spared,
    )


def _reason(tx: Connection, job: JobRecord, event: JobEvent, why: EndOfLease) -> Reason:
    if event is JobEvent.STOPPED:
        return job_rules.reason_for_cancel()
    if job.session is None:
        return leases.reason_for_loss(why, job.tries + 1)
    if event is JobEvent.CLOSED and (opened := calls.find_open(tx, job.row_id)):
        return session_rules.reason_for_end(opened.why, job.session, job.job.limits)
    return session_rules.reason_for_loss(why, job.session)


def _end_asked_us(tx: Connection, found: Found) -> int | None:
    """Return since when a session has to end; None for any other job."""
    if found.job.session is None:
        return None
    opened = calls.find_open(tx, found.job.row_id)
    return None if opened is None else opened.end_us


def lease_of(found: Found, current: CurrentAttempt, end_us: int | None = None) -> Lease:
    """Return what the rules need to know of a live attempt; ``end_us``: a session's."""
    return Lease(
        claimed_us=current.claimed_us,
        started_us=current.started_us,
        lease_us=current.lease_us,
        heard_us=current.heard_us,
        due_us=current.due_us,
        cancel_us=end_us if found.job.cancel_us is None else found.job.cancel_us,
        frozen_until_us=current.frozen.until_us,
    )
