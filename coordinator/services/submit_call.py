"""The next call of a session comes in. Its number is the idempotency key, within the session."""

from __future__ import annotations

import blake3
import msgspec
from sqlalchemy import Connection

from gridx.errors import Conflict, InvalidRequest, NotFound, SessionEnded
from gridx.schemas import BlobRef, CellSpec

from ..rules import calls as call_rules
from ..rules import leases
from ..rules import sessions as session_rules
from ..settings import Settings
from ..store import calls, jobs
from ..store.records import CallRecord, CallSpec, JobRecord
from . import blobs


class CallOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A call that is to be submitted; made by ``make_call_order``."""

    user: str
    job_id: str
    call: int
    spec: CallSpec
    inputs: bytes
    blobs: tuple[BlobRef, ...]
    body_digest: bytes


class CallSubmitted(msgspec.Struct, frozen=True, kw_only=True):
    """The call, new or known, and the session that it belongs to."""

    job: JobRecord
    call: CallRecord
    is_new: bool


def make_call_order(
    user: str,
    job_id: str,
    call: int,
    *,
    code: str,
    timeout_s: float,
    cell: CellSpec,
    inputs: bytes = b"",
    blobs: tuple[BlobRef, ...] = (),
) -> CallOrder:
    """Digest what was sent, so that the same call sent again is known as the same."""
    spec = CallSpec(timeout_s=timeout_s, code=code, cell=cell)
    head = msgspec.msgpack.encode((user, job_id, call, spec, blobs))
    return CallOrder(
        user=user,
        job_id=job_id,
        call=call,
        spec=spec,
        inputs=inputs,
        blobs=blobs,
        body_digest=blake3.blake3(head).update(inputs).digest(),
    )


def submit_call(tx: Connection, now_us: int, settings: Settings, order: CallOrder) -> CallSubmitted:
    """Write the next call of a session. Its worker is to be told.

    Raises:
        NotFound: there is no such session, or it is not this user's.
        InvalidRequest: the job is no session.
        WorkerLost, SessionEnded: the session has ended, or is being closed.
        Conflict: another call has this number, or it is not this one's turn.
        BlobsMissing: its user has not put what it refers to.
    """
    job = find_session(tx, order.job_id, order.user)
    known = calls.find(tx, job.row_id, order.call)
    if known is not None:
        call, digest = known
        if digest != order.body_digest:
            raise Conflict(
                f"Call {order.call} of {order.job_id} is another one.",
                hint="Attach to the session again: another notebook may have gone on with it.",
            )
        return CallSubmitted(job=job, call=call, is_new=False)
    newest = check_open(tx, job)
    call_rules.check_next(order.call, newest=newest.n, newest_state=newest.state)
    blobs.require(tx, job.user_id, order.blobs)
    begin_bytes = newest.begin_bytes if newest.end_bytes is None else newest.end_bytes
    due_us = leases.after(now_us, settings.starting_limit_s)
    row_id = calls.insert(
        tx,
        job_row_id=job.row_id,
        n=order.call,
        spec=order.spec,
        body_digest=order.body_digest,
        inputs=order.inputs,
        begin_bytes=begin_bytes,
        now_us=now_us,
        due_us=due_us,
    )
    blobs.refer(tx, job.user_id, job.row_id, order.blobs, "inputs", order.call)
    calls.drop_result(tx, job.row_id, newest.n)
    calls.set_idle(tx, job.row_id, None)
    found = calls.find(tx, job.row_id, order.call)
    assert found is not None and found[0].row_id == row_id
    return CallSubmitted(job=job, call=found[0], is_new=True)


def find_session(tx: Connection, job_id: str, user: str | None) -> JobRecord:
    """Return a session of ``user`` (None: anybody's).

    Raises:
        NotFound: there is no such job, or it is not this user's.
        InvalidRequest: it is no session.
    """
    job = jobs.find_record(tx, job_id)
    if job is None or user not in (None, job.user):
        raise NotFound(f"There is no session {job_id} of yours.", job_id=job_id)
    if job.session is None:
        raise InvalidRequest(
            f"Job {job_id} is no session: it has one call.",
            hint="Open a session with %%gridx --session NAME.",
            job_id=job_id,
        )
    return job


def check_open(tx: Connection, job: JobRecord) -> CallRecord:
    """Return the newest call of a session that takes calls.

    Raises:
        WorkerLost, SessionEnded: it has ended, or is being closed.
    """
    assert job.session is not None
    if job.is_final:
        raise session_rules.refusal(job.state, job.reason, job.session.name)
    opened = calls.find_open(tx, job.row_id)
    if opened is None or opened.end_us is not None or job.cancel_us is not None:
        raise SessionEnded(f"Session {job.session.name} is being closed.", job_id=job.job_id)
    newest = calls.find_newest(tx, job.row_id)
    assert newest is not None, "a session begins with call 0"
    return newest
