"""Attempts, and the short outputs that are stored with their reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, bindparam

from gridx.errors import StaleLease
from gridx.resources import Usage
from gridx.states import AttemptState

from .jobs import Spec
from .prepared import Prepared, insert_into
from .records import LiveAttempt
from .tables import IS_LIVE, attempts, jobs, open_sessions, streams, users, workers

_spec_decoder = msgspec.json.Decoder(Spec)
_usage_decoder = msgspec.json.Decoder(Usage)

_insert = Prepared(
    insert_into(attempts, "job_id", "n", "worker_id", "state", "claimed_us", "due_us").returning(
        attempts.c.id
    )
)
_insert_stream = Prepared(insert_into(streams, "attempt_id", "data"))
_close = Prepared(
    attempts.update()
    .where(attempts.c.id == bindparam("row_id"), IS_LIVE)
    .values(
        state=bindparam("to_state"),
        started_us=bindparam("at_started"),
        finished_us=bindparam("at_us"),
        cause=bindparam("why"),
        message=bindparam("text"),
        usage=bindparam("used"),
        stream_bytes=bindparam("stream_end"),
        charge_ucr=bindparam("charged"),
        frozen_since_us=None,
        frozen_until_us=None,
        frozen_us=bindparam("stood_us"),
    )
)
_start = Prepared(
    attempts.update()
    .where(
        attempts.c.job_id
        == sa.select(jobs.c.id).where(jobs.c.public_id == bindparam("ref_job")).scalar_subquery(),
        attempts.c.n == bindparam("ref_n"),
        attempts.c.worker_id == bindparam("ref_worker"),
        attempts.c.state == AttemptState.LEASED.value,
    )
    .values(
        state=AttemptState.RUNNING.value,
        started_us=bindparam("at_us"),
        # a cancel that came first has set a limit of its own
        due_us=sa.case(
            (
                sa.select(jobs.c.cancel_us)
                .where(jobs.c.id == attempts.c.job_id)
                .scalar_subquery()
                .is_(None),
                bindparam("limit_us"),
            ),
            else_=attempts.c.due_us,
        ),
    )
)
_connected = Prepared(
    attempts.update()
    .where(attempts.c.id == bindparam("row_id"), IS_LIVE)
    .values(lease_us=None, heard_us=None)
)
_disconnected = Prepared(
    attempts.update()
    .where(attempts.c.worker_id == bindparam("worker"), IS_LIVE, attempts.c.lease_us.is_(None))
    .values(lease_us=bindparam("until_us"), heard_us=bindparam("at_us"))
)
_all_disconnected = Prepared(
    attempts.update()
    .where(IS_LIVE, attempts.c.lease_us.is_(None))
    .values(
        lease_us=bindparam("until_us"),
        # Before a restart the beats were in memory only; what was written of the worker counts.
        heard_us=sa.select(workers.c.seen_us)
        .where(workers.c.id == attempts.c.worker_id)
        .scalar_subquery(),
    )
)
_limit = Prepared(
    attempts.update()
    .where(
        attempts.c.id == bindparam("row_id"),
        IS_LIVE,
        attempts.c.due_us > bindparam("limit_us"),
    )
    .values(due_us=bindparam("limit_us"))
)
_extend = Prepared(
    attempts.update()
    .where(
        attempts.c.id == bindparam("row_id"),
        IS_LIVE,
        attempts.c.due_us < bindparam("limit_us"),
    )
    .values(due_us=bindparam("limit_us"))
)
_live = (
    sa.select(
        jobs.c.public_id,
        attempts.c.n,
        workers.c.public_id,
        users.c.name,
        attempts.c.state,
        jobs.c.spec,
        attempts.c.claimed_us,
        attempts.c.started_us,
        attempts.c.lease_us,
        jobs.c.cancel_us,
    )
    .select_from(
        attempts.join(jobs, jobs.c.id == attempts.c.job_id)
        .join(users, users.c.id == jobs.c.user_id)
        .join(workers, workers.c.id == attempts.c.worker_id)
    )
    .where(IS_LIVE)
    .order_by(attempts.c.id)
)
_all_live = Prepared(_live)
_live_of_worker = Prepared(_live.where(attempts.c.worker_id == bindparam("worker")))
_over = sa.select(jobs.c.public_id, attempts.c.n).join_from(
    attempts, jobs, jobs.c.id == attempts.c.job_id
)
_ends = sa.exists().where(
    open_sessions.c.job_id == attempts.c.job_id, open_sessions.c.end_us.is_not(None)
)
# Three queries in one: each walks its own index, and sees only what is over.
_due = Prepared(
    sa.union(
        _over.where(IS_LIVE, attempts.c.lease_us <= bindparam("at_us")),
        _over.where(IS_LIVE, attempts.c.frozen_until_us <= bindparam("at_us")),
        _over.where(
            IS_LIVE,
            attempts.c.due_us <= bindparam("at_us"),
            # what stands still has no limit but that of standing still, or of being stopped
            sa.or_(attempts.c.frozen_since_us.is_(None), jobs.c.cancel_us.is_not(None), _ends),
        ),
    )
)
_freeze = Prepared(
    attempts.update()
    .where(attempts.c.id == bindparam("row_id"), IS_LIVE)
    .values(frozen_since_us=bindparam("at_us"), frozen_until_us=bindparam("until_us"))
)
_thaw = Prepared(
    attempts.update()
    .where(attempts.c.id == bindparam("row_id"), IS_LIVE)
    .values(
        frozen_since_us=None,
        frozen_until_us=None,
        frozen_us=attempts.c.frozen_us + bindparam("stood_us"),
        due_us=attempts.c.due_us + bindparam("later_us"),
    )
)
_usage = Prepared(
    sa.select(attempts.c.usage)
    .join_from(attempts, jobs, jobs.c.id == attempts.c.job_id)
    .where(jobs.c.public_id == bindparam("job_id"), attempts.c.n == bindparam("ref_n"))
)
_outcome = Prepared(
    sa.select(attempts.c.worker_id, attempts.c.cause)
    .join_from(attempts, jobs, jobs.c.id == attempts.c.job_id)
    .where(jobs.c.public_id == bindparam("job_id"), attempts.c.n == bindparam("ref_n"))
)
_stream = Prepared(
    sa.select(streams.c.data)
    .select_from(
        streams.join(attempts, attempts.c.id == streams.c.attempt_id).join(
            jobs, jobs.c.id == attempts.c.job_id
        )
    )
    .where(jobs.c.public_id == bindparam("job_id"), attempts.c.n == bindparam("ref_n"))
)


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that started, to be written when it suits."""

    job_id: str
    attempt: int
    worker_row_id: int
    started_us: int
    timeout_s: float
    is_session: bool = False


def insert(
    tx: Connection, *, job_row_id: int, n: int, worker_row_id: int, now_us: int, due_us: int
) -> int:
    """Add a leased attempt and return its row id."""
    row_id: int = _insert.value(
        tx,
        {
            "job_id": job_row_id,
            "n": n,
            "worker_id": worker_row_id,
            "state": AttemptState.LEASED.value,
            "claimed_us": now_us,
            "due_us": due_us,
        },
    )
    return row_id


def close(
    tx: Connection,
    row_id: int,
    state: AttemptState,
    *,
    now_us: int,
    started_us: int | None,
    cause: str | None = None,
    message: str | None = None,
    usage: Usage | None = None,
    stream_bytes: int | None = None,
    charge_ucr: int = 0,
    frozen_us: int = 0,
) -> None:
    """End a live attempt. ``cause`` is None where no report of its worker was accepted.

    Raises:
        StaleLease: it is not live.
    """
    count = _close.run(
        tx,
        {
            "row_id": row_id,
            "to_state": state.value,
            "at_started": started_us,
            "at_us": now_us,
            "why": cause,
            "text": message,
            "used": None if usage is None else msgspec.json.encode(usage).decode(),
            "stream_end": stream_bytes,
            "charged": charge_ucr,
            "stood_us": frozen_us,
        },
    )
    if count != 1:
        raise StaleLease("The attempt is no longer live.")


def mark_started(tx: Connection, started: Started, due_us: int) -> None:
    """Write a start and the limit that follows from it; unless the attempt is not leased now."""
    _start.run(
        tx,
        {
            "ref_job": started.job_id,
            "ref_n": started.attempt,
            "ref_worker": started.worker_row_id,
            "at_us": started.started_us,
            "limit_us": due_us,
        },
    )


def mark_connected(tx: Connection, row_ids: Sequence[int]) -> None:
    """Write that the worker of these live attempts is connected again."""
    if row_ids:
        _connected.run_many(tx, [{"row_id": row_id} for row_id in sorted(row_ids)])


def mark_disconnected(tx: Connection, worker_row_id: int, heard_us: int, until_us: int) -> int:
    """Start the clock of every live attempt of a worker that is gone; return how many."""
    return _disconnected.run(tx, {"worker": worker_row_id, "at_us": heard_us, "until_us": until_us})


def mark_all_disconnected(tx: Connection, until_us: int) -> None:
    """The same for every worker, after a restart."""
    _all_disconnected.run(tx, {"until_us": until_us})


def limit(tx: Connection, row_id: int, due_us: int) -> None:
    """Give a live attempt up at ``due_us``, unless an earlier time stands."""
    _limit.run(tx, {"row_id": row_id, "limit_us": due_us})


def extend(tx: Connection, row_id: int, due_us: int) -> None:
    """Give a live attempt up at ``due_us`` only, unless a later time stands."""
    _extend.run(tx, {"row_id": row_id, "limit_us": due_us})


def freeze(tx: Connection, row_id: int, since_us: int, until_us: int) -> None:
    """Note that a live attempt stands still, and when it is given up for that."""
    _freeze.run(tx, {"row_id": row_id, "at_us": since_us, "until_us": until_us})


def thaw(tx: Connection, row_id: int, stood_us: int, later_us: int) -> None:
    """Note that a live attempt goes on which stood still so long; its limit moves ``later_us``."""
    _thaw.run(tx, {"row_id": row_id, "stood_us": stood_us, "later_us": later_us})


def find_usage(tx: Connection, job_id: str, n: int) -> Usage | None:
    """Return what an attempt used, once its report was accepted."""
    text: str | None = _usage.value(tx, {"job_id": job_id, "ref_n": n})
    return None if text is None else _usage_decoder.decode(text)


def _live_record(row: Any) -> LiveAttempt:
    spec = _spec_decoder.decode(row[5])
    return LiveAttempt(
        job_id=row[0],
        attempt=row[1],
        worker_id=row[2],
        user=row[3],
        state=AttemptState(row[4]),
        request=spec.job.limits.request(),
        claimed_us=row[6],
        started_us=row[7],
        lease_us=row[8],
        cancel_wanted=row[9] is not None,
        timeout_s=spec.job.limits.timeout_s,
        is_session=spec.session is not None,
    )


def list_live(tx: Connection, worker_row_id: int | None = None) -> tuple[LiveAttempt, ...]:
    """Return the live attempts, of one worker or of all."""
    rows = (
        _all_live.all(tx, {})
        if worker_row_id is None
        else _live_of_worker.all(tx, {"worker": worker_row_id})
    )
    return tuple(_live_record(row) for row in rows)


def list_due(tx: Connection, now_us: int) -> tuple[tuple[str, int], ...]:
    """Return (job id, number) of the live attempts whose lease or limit is over, each once."""
    return tuple((row[0], row[1]) for row in _due.all(tx, {"at_us": now_us}))


def has_due(tx: Connection, now_us: int) -> bool:
    """True when a live attempt's lease or limit is over."""
    return bool(_due.all(tx, {"at_us": now_us}))


def was_reported(tx: Connection, job_id: str, n: int, worker_row_id: int) -> bool:
    """True when a report of this worker about this attempt was accepted before."""
    row = _outcome.first(tx, {"job_id": job_id, "ref_n": n})
    return row is not None and row[0] == worker_row_id and row[1] is not None


def insert_stream(tx: Connection, row_id: int, data: bytes) -> None:
    """Store an attempt's whole output."""
    _insert_stream.run(tx, {"attempt_id": row_id, "data": data})


def find_stream(tx: Connection, job_id: str, n: int) -> bytes | None:
    """Return an attempt's output where it was stored with the report."""
    data: bytes | None = _stream.value(tx, {"job_id": job_id, "ref_n": n})
    return data
