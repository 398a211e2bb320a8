"""A user interrupts the call of a session; the session goes on."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from gridx.errors import NotFound
from gridx.states import JobState

from ..settings import Settings
from ..store import calls
from ..store.records import CallRecord, JobRecord
from .cancel import Cancelled, cancel
from .submit_call import find_session


class Interrupted(msgspec.Struct, frozen=True, kw_only=True):
    """What the wish did. ``send``: tell the worker. ``cancelled``: the session had not begun."""

    job: JobRecord
    call: CallRecord
    send: bool = False
    cancelled: Cancelled | None = None


def interrupt(
    tx: Connection, now_us: int, settings: Settings, job_id: str, n: int, user: str | None
) -> Interrupted:
    """Note the wish to interrupt call ``n``; a session that waits for a worker is cancelled.

    A call that has ended stays as it is. The wish is kept, so that it reaches a worker which is
    not connected now.

    Raises:
        NotFound: there is no such session of this user, or no such call.
        InvalidRequest: the job is no session.
    """
    job = find_session(tx, job_id, user)
    known = calls.find(tx, job.row_id, n)
    if known is None:
        raise NotFound(f"Session {job_id} has no call {n}.", job_id=job_id, call=n)
    call = known[0]
    if call.is_final:
        return Interrupted(job=job, call=call)
    if job.state is JobState.QUEUED:
        done = cancel(tx, now_us, settings, job_id, user)
        return Interrupted(job=done.job, call=done.call or call, cancelled=done)
    calls.mark_interrupted(tx, call, now_us)
    return Interrupted(job=job, call=call, send=True)
