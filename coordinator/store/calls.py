"""Sessions that are open, and their calls."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, bindparam

from gridx.errors import StaleLease
from gridx.resources import Usage
from gridx.schemas import Reason
from gridx.states import CallState

from ..rules.sessions import EndOfSession, Open
from .prepared import Prepared, insert_into
from .records import CallRecord, CallSpec
from .tables import IS_CALL_LIVE, attempts, calls, jobs, open_sessions

_spec_decoder = msgspec.json.Decoder(CallSpec)
_reason_decoder = msgspec.json.Decoder(Reason)
_encode = msgspec.json.Encoder().encode
_NEWEST = sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.n == jobs.c.attempt)

# --- open sessions --------------------------------------------------------------------------

_open = Prepared(insert_into(open_sessions, "job_id"))
_find_open = Prepared(
    sa.select(
        open_sessions.c.idle_us,
        open_sessions.c.limit_us,
        open_sessions.c.end_us,
        open_sessions.c.why,
    ).where(open_sessions.c.job_id == bindparam("job"))
)
_set_idle = Prepared(
    open_sessions.update()
    .where(open_sessions.c.job_id == bindparam("job"))
    .values(idle_us=bindparam("at_us"))
)
_set_limit = Prepared(
    open_sessions.update()
    .where(
        open_sessions.c.job_id
        == sa.select(jobs.c.id).where(jobs.c.public_id == bindparam("ref_job")).scalar_subquery()
    )
    .values(limit_us=bindparam("at_us"))
)
_set_end = Prepared(
    open_sessions.update()
    .where(open_sessions.c.job_id == bindparam("job"), open_sessions.c.end_us.is_(None))
    .values(end_us=bindparam("at_us"), why=bindparam("end_why"))
)
_close = Prepared(open_sessions.delete().where(open_sessions.c.job_id == bindparam("job")))
# The whole table is what is open now: small, and its own index.
_ending = Prepared(
    sa.select(jobs.c.public_id)
    .join_from(open_sessions, jobs, jobs.c.id == open_sessions.c.job_id)
    .join(attempts, _NEWEST)
    .where(
        open_sessions.c.end_us.is_(None),
        attempts.c.frozen_since_us.is_(None),
        sa.or_(
            open_sessions.c.idle_us <= bindparam("at_us"),
            open_sessions.c.limit_us <= bindparam("at_us"),
        ),
    )
)

# --- calls ----------------------------------------------------------------------------------

_insert = Prepared(
    insert_into(
        calls,
        "job_id",
        "n",
        "state",
        "body_digest",
        "spec",
        "inputs",
        "begin_bytes",
        "created_us",
        "due_us",
    ).returning(calls.c.id)
)
_select: Final = sa.select(
    calls.c.id,
    calls.c.job_id,
    jobs.c.public_id,
    jobs.c.attempt,
    calls.c.n,
    calls.c.state,
    calls.c.spec,
    calls.c.begin_bytes,
    calls.c.end_bytes,
    calls.c.created_us,
    calls.c.started_us,
    calls.c.finished_us,
    calls.c.due_us,
    calls.c.interrupt_us,
    calls.c.reason,
    calls.c.exit_code,
    calls.c.cost_ucr,
    calls.c.body_digest,
    calls.c.frozen_us,
).join_from(calls, jobs, jobs.c.id == calls.c.job_id)
_find = Prepared(_select.where(calls.c.job_id == bindparam("job"), calls.c.n == bindparam("ref_n")))
_newest = Prepared(
    _select.where(calls.c.job_id == bindparam("job")).order_by(calls.c.n.desc()).limit(1)
)
_ends = Prepared(
    sa.select(calls.c.n, calls.c.end_bytes)
    .where(calls.c.job_id == bindparam("job"), calls.c.end_bytes.is_not(None))
    .order_by(calls.c.n)
)
_queued = Prepared(
    _select.where(
        jobs.c.public_id == bindparam("ref_job"),
        calls.c.n == bindparam("ref_n"),
        calls.c.state == CallState.QUEUED.value,
    )
)
_start = Prepared(
    calls.update()
    .where(calls.c.id == bindparam("row_id"), calls.c.state == CallState.QUEUED.value)
    .values(
        state=CallState.RUNNING.value,
        started_us=bindparam("at_us"),
        due_us=bindparam("limit_us"),
    )
)
_end = Prepared(
    calls.update()
    .where(calls.c.id == bindparam("row_id"), IS_CALL_LIVE)
    .values(
        state=bindparam("to_state"),
        spec=bindparam("to_spec"),
        inputs=None,
        result=bindparam("result_data"),
        end_bytes=bindparam("stream_end"),
        started_us=bindparam("at_started"),
        finished_us=bindparam("at_us"),
        cause=bindparam("why"),
        reason=bindparam("to_reason"),
        exit_code=bindparam("to_exit_code"),
        usage=bindparam("used"),
        cost_ucr=bindparam("to_cost"),
    )
)
_interrupt = Prepared(
    calls.update()
    .where(calls.c.id == bindparam("row_id"), IS_CALL_LIVE, calls.c.interrupt_us.is_(None))
    .values(interrupt_us=bindparam("at_us"))
)
_extend = Prepared(
    calls.update()
    .where(calls.c.id == bindparam("row_id"), IS_CALL_LIVE, calls.c.due_us < bindparam("limit_us"))
    .values(due_us=bindparam("limit_us"))
)
_drop_result = Prepared(
    calls.update()
    .where(calls.c.job_id == bindparam("job"), calls.c.n == bindparam("ref_n"))
    .values(result=None)
)
_payload = Prepared(
    sa.select(calls.c.inputs, calls.c.result).where(calls.c.id == bindparam("row_id"))
)
_was_reported = Prepared(
    sa.select(calls.c.cause)
    .join_from(calls, jobs, jobs.c.id == calls.c.job_id)
    .where(jobs.c.public_id == bindparam("ref_job"), calls.c.n == bindparam("ref_n"))
)
_due = Prepared(
    sa.select(jobs.c.public_id)
    .join_from(calls, jobs, jobs.c.id == calls.c.job_id)
    .join(attempts, _NEWEST)
    .where(
        IS_CALL_LIVE,
        calls.c.due_us <= bindparam("at_us"),
        attempts.c.frozen_since_us.is_(None),
    )
)
# What stood still goes on: all of its times move.
_shift_call = Prepared(
    calls.update()
    .where(calls.c.id == bindparam("row_id"), IS_CALL_LIVE)
    .values(
        due_us=calls.c.due_us + bindparam("later_us"),
        frozen_us=calls.c.frozen_us + bindparam("stood_us"),
    )
)
_shift_session = Prepared(
    open_sessions.update()
    .where(open_sessions.c.job_id == bindparam("job"))
    .values(
        idle_us=open_sessions.c.idle_us + bindparam("later_us"),
        limit_us=open_sessions.c.limit_us + bindparam("later_us"),
    )
)


def open_session(tx: Connection, job_row_id: int) -> None:
    """Note that a session lives."""
    _open.run(tx, {"job_id": job_row_id})


def find_open(tx: Connection, job_row_id: int) -> Open | None:
    """Return what is known of the time of a session; None when it has ended, or is none."""
    row = _find_open.first(tx, {"job": job_row_id})
    if row is None:
        return None
    why = None if row[3] is None else EndOfSession(row[3])
    return Open(idle_us=row[0], limit_us=row[1], end_us=row[2], why=why)


def set_idle(tx: Connection, job_row_id: int, at_us: int | None) -> None:
    """Note when a session without a call ends; None: it has one."""
    _set_idle.run(tx, {"job": job_row_id, "at_us": at_us})


def set_limit(tx: Connection, job_id: str, at_us: int) -> None:
    """Note when a session that has started ends in any case."""
    _set_limit.run(tx, {"ref_job": job_id, "at_us": at_us})


def set_end(tx: Connection, job_row_id: int, at_us: int, why: EndOfSession) -> bool:
    """Note that a session has to end; False when that is known."""
    return _set_end.run(tx, {"job": job_row_id, "at_us": at_us, "end_why": why.value}) == 1


def close_session(tx: Connection, job_row_id: int) -> None:
    """Forget a session that has ended."""
    _close.run(tx, {"job": job_row_id})


def list_ending(tx: Connection, now_us: int) -> tuple[str, ...]:
    """Return the ids of the open sessions that were idle, or open, for as long as they may."""
    return tuple(row[0] for row in _ending.all(tx, {"at_us": now_us}))


def insert(
    tx: Connection,
    *,
    job_row_id: int,
    n: int,
    spec: CallSpec,
    body_digest: bytes,
    inputs: bytes | None,
    begin_bytes: int,
    now_us: int,
    due_us: int | None,
) -> int:
    """Add a call that waits and return its row id."""
    row_id: int = _insert.value(
        tx,
        {
            "job_id": job_row_id,
            "n": n,
            "state": CallState.QUEUED.value,
            "body_digest": body_digest,
            "spec": _encode(spec).decode(),
            "inputs": inputs,
            "begin_bytes": begin_bytes,
            "created_us": now_us,
            "due_us": due_us,
        },
    )
    return row_id


def _record(row: Any) -> CallRecord:
    return CallRecord(
        row_id=row[0],
        job_row_id=row[1],
        job_id=row[2],
        attempt=row[3],
        n=row[4],
        state=CallState(row[5]),
        spec=_spec_decoder.decode(row[6]),
        begin_bytes=row[7],
        end_bytes=row[8],
        created_us=row[9],
        started_us=row[10],
        finished_us=row[11],
        due_us=row[12],
        interrupt_us=row[13],
        reason=None if row[14] is None else _reason_decoder.decode(row[14]),
        exit_code=row[15],
        cost_ucr=row[16],
        frozen_us=row[18],
    )


def find(tx: Connection, job_row_id: int, n: int) -> tuple[CallRecord, bytes] | None:
    """Return call ``n`` of a session, and the digest of what it was submitted with."""
    row = _find.first(tx, {"job": job_row_id, "ref_n": n})
    return None if row is None else (_record(row), row[17])


def find_newest(tx: Connection, job_row_id: int) -> CallRecord | None:
    """Return the newest call of a session; None: it is no session."""
    row = _newest.first(tx, {"job": job_row_id})
    return None if row is None else _record(row)


def list_ends(tx: Connection, job_row_id: int) -> tuple[tuple[int, int], ...]:
    """Return (number, end of its output) of each call that has ended, in order."""
    return tuple((row[0], row[1]) for row in _ends.all(tx, {"job": job_row_id}))


def find_queued(tx: Connection, job_id: str, n: int) -> CallRecord | None:
    """Return call ``n`` of the session with this public id while its start is not written."""
    row = _queued.first(tx, {"ref_job": job_id, "ref_n": n})
    return None if row is None else _record(row)


def mark_started(tx: Connection, call: CallRecord, started_us: int, due_us: int) -> None:
    """Write that a call started, and when its attempt is given up."""
    _start.run(tx, {"row_id": call.row_id, "at_us": started_us, "limit_us": due_us})


def end(
    tx: Connection,
    call: CallRecord,
    *,
    cause: str | None,
    usage: Usage | None,
    result: bytes | None,
) -> None:
    """Write how ``call`` has ended. ``cause`` is None where no report of it was accepted.

    Raises:
        StaleLease: it had ended before.
    """
    count = _end.run(
        tx,
        {
            "row_id": call.row_id,
            "to_state": call.state.value,
            "to_spec": _encode(call.spec).decode(),
            "result_data": result,
            "stream_end": call.end_bytes,
            "at_started": call.started_us,
            "at_us": call.finished_us,
            "why": cause,
            "to_reason": None if call.reason is None else _encode(call.reason).decode(),
            "to_exit_code": call.exit_code,
            "used": None if usage is None else _encode(usage).decode(),
            "to_cost": call.cost_ucr,
        },
    )
    if count != 1:
        raise StaleLease("The call has ended.")


def mark_interrupted(tx: Connection, call: CallRecord, now_us: int) -> bool:
    """Note the wish to interrupt a call; False when it is known, or the call has ended."""
    return _interrupt.run(tx, {"row_id": call.row_id, "at_us": now_us}) == 1


def extend(tx: Connection, call: CallRecord, due_us: int) -> None:
    """Give the attempt of an open call up at ``due_us`` only, unless a later time stands."""
    _extend.run(tx, {"row_id": call.row_id, "limit_us": due_us})


def shift(tx: Connection, call: CallRecord, later_us: int, stood_us: int) -> None:
    """Move the limit of an open call that stood still for ``stood_us`` of its own time."""
    _shift_call.run(tx, {"row_id": call.row_id, "later_us": later_us, "stood_us": stood_us})


def shift_session(tx: Connection, job_row_id: int, later_us: int) -> None:
    """Move the times at which an open session ends by itself."""
    _shift_session.run(tx, {"job": job_row_id, "later_us": later_us})


def drop_result(tx: Connection, job_row_id: int, n: int) -> None:
    """Drop the result of a call: whoever submits the next one has it."""
    _drop_result.run(tx, {"job": job_row_id, "ref_n": n})


def find_payloads(tx: Connection, call: CallRecord) -> tuple[bytes | None, bytes | None]:
    """Return the inputs and the result of a call, where they are there."""
    row = _payload.first(tx, {"row_id": call.row_id})
    return (None, None) if row is None else (row[0], row[1])


def was_reported(tx: Connection, job_id: str, n: int) -> bool:
    """True when a report about this call was accepted before."""
    return _was_reported.value(tx, {"ref_job": job_id, "ref_n": n}) is not None


def list_due(tx: Connection, now_us: int) -> tuple[str, ...]:
    """Return the ids of the sessions whose call is over its limit without a report."""
    return tuple(row[0] for row in _due.all(tx, {"at_us": now_us}))
