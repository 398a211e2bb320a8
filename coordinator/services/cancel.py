"""A user stops a job: at once while it waits, by asking its worker while it runs."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from gridx.errors import NotFound
from gridx.states import JobState

from ..ledger import escrow
from ..rules import jobs as job_rules
from ..rules import leases
from ..rules import sessions as session_rules
from ..rules.attempts import AttemptEvent
from ..rules.jobs import JobEvent
from ..settings import Settings
from ..store import attempts, jobs
from ..store.jobs import CurrentAttempt, Found
from ..store.records import Balance, CallRecord, JobRecord
from . import blobs
from .expire import lease_of
from .outcome import Report, end_attempt
from .session_end import CallReport, close_session


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """What the wish did. ``stop``: tell the worker of this job's newest attempt to stop it.
    ``call`` is the one of a session that ended with it."""

    job: JobRecord
    changed: bool
    stop: bool = False
    balance: Balance | None = None
    call: CallRecord | None = None


def cancel(
    tx: Connection, now_us: int, settings: Settings, job_id: str, user: str | None
) -> Cancelled:
    """Stop a job of ``user`` (None: anybody's).

    Waiting: it ends, all of its hold is returned. Running: its worker is asked, and the metered
    time is paid when it reports. Worker not connected: it ends, paid up to when the worker was
    last heard. Ended: nothing changes.

    Raises:
        NotFound: there is no such job, or it is not this user's.
    """
    found = jobs.find(tx, job_id)
    if found is None or user not in (None, found.job.user):
        raise NotFound(f"There is no job {job_id} of yours.", job_id=job_id)
    job = found.job
    if job.is_final or job.cancel_us is not None:
        return Cancelled(job=job, changed=False)
    step = job_rules.advance(job.state, JobEvent.CANCEL_ASKED)
    if job.state is JobState.QUEUED:
        return _end_waiting(tx, now_us, job, step.state)
    after = msgspec.structs.replace(job, state=step.state, cancel_us=now_us)
    jobs.move(tx, job, after)
    current = found.current
    assert current is not None
    if current.lease_us is None:
        attempts.limit(tx, current.row_id, leases.after(now_us, settings.cancel_limit_s))
        return Cancelled(job=after, changed=True, stop=True)
    return _end_unreachable(
        tx, now_us, settings, msgspec.structs.replace(found, job=after), current
    )


def _end_waiting(tx: Connection, now_us: int, job: JobRecord, state: JobState) -> Cancelled:
    after = msgspec.structs.replace(
        job,
        state=state,
        cancel_us=now_us,
        finished_us=now_us,
        reason=job_rules.reason_for_cancel(),
    )
    jobs.move(tx, job, after)
    jobs.delete_inputs(tx, job)
    if job.blob_count:
        blobs.release(tx, now_us, job)
    call = None if job.session is None else _end_unopened(tx, now_us, after)
    if not job.hold_ucr:
        return Cancelled(job=after, changed=True, call=call)
    closed = escrow.release(tx, job.row_id, now_us)
    return Cancelled(
        job=after,
        changed=True,
        balance=Balance(user=job.user, posted_ucr=closed.posted_ucr, held_ucr=closed.held_ucr),
        call=call,
    )


def _end_unopened(tx: Connection, now_us: int, job: JobRecord) -> CallRecord | None:
    assert job.session is not None
    verdict = session_rules.judge_end(
        JobEvent.CANCEL_ASKED,
        job_rules.reason_for_cancel(),
        session=job.session,
        limits=job.job.limits,
        why=None,
    )
    return close_session(tx, now_us, job, verdict, CallReport(), is_paid=False, is_own_worker=False)


def _end_unreachable(
    tx: Connection, now_us: int, settings: Settings, found: Found, current: CurrentAttempt
) -> Cancelled:
    ended = end_attempt(
        tx,
        now_us,
        settings,
        found,
        current,
        attempt_event=AttemptEvent.STOPPED,
        job_event=JobEvent.STOPPED,
        report=Report(
            until_us=leases.paid_until(lease_of(found, current), now_us),
            started_us=current.started_us,
        ),
        reason=job_rules.reason_for_cancel(),
    )
    return Cancelled(job=ended.job, changed=True, balance=ended.balance, call=ended.call)
