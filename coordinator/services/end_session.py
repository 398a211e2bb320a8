"""Sessions are closed: by their users, after they were idle, or at their limit."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from gridx.states import JobState

from ..rules import leases
from ..rules import sessions as session_rules
from ..rules.attempts import AttemptEvent
from ..rules.jobs import JobEvent
from ..rules.leases import EndOfLease
from ..rules.sessions import EndOfSession
from ..settings import Settings
from ..store import attempts, calls, jobs
from ..store.records import JobRecord
from .cancel import Cancelled, cancel
from .expire import end_lost, lease_of
from .outcome import Ended, Report, end_attempt
from .submit_call import find_session


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """What the wish did.

    ``tell``: the worker is to close it and report. ``ended``: it has ended, since its worker is
    not connected. ``cancelled``: it had not begun. None of them: it had ended before.
    """

    job: JobRecord
    tell: bool = False
    ended: Ended | None = None
    cancelled: Cancelled | None = None


def end_session(
    tx: Connection, now_us: int, settings: Settings, job_id: str, user: str | None
) -> Ending:
    """Close a session of ``user`` (None: anybody's). It is paid for the time that it was open.

    Raises:
        NotFound: there is no such session, or it is not this user's.
        InvalidRequest: the job is no session.
    """
    job = find_session(tx, job_id, user)
    if job.is_final:
        return Ending(job=job)
    if job.state is JobState.QUEUED:
        done = cancel(tx, now_us, settings, job_id, user)
        return Ending(job=done.job, cancelled=done)
    return _close(tx, now_us, settings, job_id, EndOfSession.ASKED)


def has_ending(tx: Connection, now_us: int) -> bool:
    """True when ``end_due`` has something to do."""
    return bool(calls.list_ending(tx, now_us) or calls.list_due(tx, now_us))


def end_due(tx: Connection, now_us: int, settings: Settings) -> tuple[Ending, ...]:
    """Close what was idle, or open, for long enough; give up what is far over a call's limit."""
    endings = []
    for job_id in calls.list_due(tx, now_us):
        found = jobs.find(tx, job_id)
        if found is None or found.current is None or found.job.state is not JobState.RUNNING:
            continue
        ended = end_lost(tx, now_us, settings, found, found.current, EndOfLease.OVERRUN)
        endings.append(Ending(job=ended.job, ended=ended))
    for job_id in calls.list_ending(tx, now_us):
        job = jobs.find_record(tx, job_id)
        if job is None or job.state is not JobState.RUNNING or job.cancel_us is not None:
            continue
        opened = calls.find_open(tx, job.row_id)
        why = None if opened is None else session_rules.find_end(opened, now_us)
        if why is not None:
            endings.append(_close(tx, now_us, settings, job_id, why))
    return tuple(endings)


def _close(
    tx: Connection, now_us: int, settings: Settings, job_id: str, why: EndOfSession
) -> Ending:
    found = jobs.find(tx, job_id)
    assert found is not None and found.current is not None, "it runs"
    job, current = found.job, found.current
    if not calls.set_end(tx, job.row_id, now_us, why):
        return Ending(job=job, tell=True)  # asked before: its worker may not have heard it
    if current.lease_us is None:
        attempts.limit(tx, current.row_id, leases.after(now_us, settings.cancel_limit_s))
        return Ending(job=job, tell=True)
    assert job.session is not None
    ended = end_attempt(
        tx,
        now_us,
        settings,
        found,
        current,
        attempt_event=AttemptEvent.STOPPED,
        job_event=JobEvent.CLOSED,
        report=Report(
            until_us=leases.paid_until(lease_of(found, current, now_us), now_us),
            started_us=current.started_us,
        ),
        reason=session_rules.reason_for_end(why, job.session, job.job.limits),
    )
    return Ending(job=ended.job, ended=ended)
