"""Jobs and their payloads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, bindparam

from gridx.schemas import CellSpec, JobRequest, Reason, SessionSpec
from gridx.states import AttemptState, JobState

from ..rules.freezing import Frozen
from .prepared import Prepared, insert_into
from .records import JobCounts, JobRecord
from .tables import IS_QUEUED, IS_UNFINISHED, accounts, attempts, job_payloads, jobs, users, workers

Role = Literal["inputs", "result"]


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """The column ``jobs.spec``: what was asked for, as it came."""

    job: JobRequest
    cell: CellSpec | None = None
    blob_count: int = 0  # of the references that call 0 was submitted with
    session: SessionSpec | None = None
    call_timeout_s: float | None = None


class CurrentAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """The newest attempt of a job, with what only the services need of it."""

    row_id: int
    n: int
    state: AttemptState
    worker_row_id: int
    owner_id: int
    lender_account_id: int
    claimed_us: int
    started_us: int | None
    lease_us: int | None
    heard_us: int | None
    due_us: int
    cause: str | None
    frozen: Frozen = Frozen()


_spec_decoder = msgspec.json.Decoder(Spec)
_reason_decoder = msgspec.json.Decoder(Reason)
_encode = msgspec.json.Encoder().encode

_lender = accounts.alias("lender")
_select: Final = sa.select(
    jobs.c.id,
    jobs.c.public_id,
    jobs.c.user_id,
    users.c.name,
    jobs.c.state,
    jobs.c.spec,
    jobs.c.own_only,
    jobs.c.tag,
    jobs.c.rate_ucr_per_s,
    jobs.c.hold_ucr,
    jobs.c.cost_ucr,
    jobs.c.tries,
    jobs.c.max_tries,
    jobs.c.created_us,
    jobs.c.cancel_us,
    jobs.c.finished_us,
    jobs.c.exit_code,
    jobs.c.reason,
    jobs.c.attempt,
    workers.c.public_id,
    workers.c.name,
    attempts.c.claimed_us,
    attempts.c.started_us,
    attempts.c.stream_bytes,
    jobs.c.body_digest,
    attempts.c.id,
    attempts.c.state,
    attempts.c.worker_id,
    workers.c.owner_id,
    attempts.c.lease_us,
    attempts.c.heard_us,
    attempts.c.due_us,
    attempts.c.cause,
    workers.c.public_key,
    jobs.c.spared,
    attempts.c.frozen_since_us,
    attempts.c.frozen_until_us,
    attempts.c.frozen_us,
).select_from(
    jobs.join(users, users.c.id == jobs.c.user_id)
    .outerjoin(attempts, sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.n == jobs.c.attempt))
    .outerjoin(workers, workers.c.id == attempts.c.worker_id)
)
_find_view = Prepared(_select.where(jobs.c.public_id == bindparam("job_id")))
_find = Prepared(
    _select.add_columns(_lender.c.id)
    .outerjoin(_lender, sa.and_(_lender.c.user_id == workers.c.owner_id, _lender.c.kind == "user"))
    .where(jobs.c.public_id == bindparam("job_id"))
)
_queued = Prepared(_select.where(IS_QUEUED).order_by(jobs.c.tag, jobs.c.id))
_move = Prepared(
    jobs.update()
    .where(jobs.c.id == bindparam("row_id"), jobs.c.state == bindparam("from_state"))
    .values(
        state=bindparam("to_state"),
        attempt=bindparam("to_attempt"),
        tries=bindparam("to_tries"),
        spared=bindparam("to_spared"),
        cost_ucr=bindparam("to_cost"),
        cancel_us=bindparam("to_cancel"),
        finished_us=bindparam("to_finished"),
        exit_code=bindparam("to_exit_code"),
        reason=bindparam("to_reason"),
    )
)
_insert = Prepared(
    insert_into(
        jobs,
        "public_id",
        "user_id",
        "body_digest",
        "state",
        "tag",
        "spec",
        "own_only",
        "rate_ucr_per_s",
        "hold_ucr",
        "attempt",
        "max_tries",
        "created_us",
    ).returning(jobs.c.id)
)
_insert_payload = Prepared(insert_into(job_payloads, "job_id", "role", "data"))
_payload = Prepared(
    sa.select(job_payloads.c.data).where(
        job_payloads.c.job_id
        == sa.select(jobs.c.id).where(jobs.c.public_id == bindparam("job_id")).scalar_subquery(),
        job_payloads.c.role == bindparam("payload_role"),
    )
)
_delete_inputs = Prepared(
    job_payloads.delete().where(
        job_payloads.c.job_id == bindparam("row_id"), job_payloads.c.role == "inputs"
    )
)
_counts = Prepared(
    sa.select(jobs.c.state, sa.func.count()).where(IS_UNFINISHED).group_by(jobs.c.state)
)
_newest_tags = (
    sa.select(jobs.c.tag, jobs.c.attempt).order_by(jobs.c.id.desc()).limit(1000).subquery()
)
_virtual_time = Prepared(
    sa.select(sa.func.max(_newest_tags.c.tag)).where(_newest_tags.c.attempt > 0)
)


def _record(row: Any) -> JobRecord:
    spec = _spec_decoder.decode(row[5])
    return JobRecord(
        row_id=row[0],
        job_id=row[1],
        user_id=row[2],
        user=row[3],
        state=JobState(row[4]),
        job=spec.job,
        cell=spec.cell,
        blob_count=spec.blob_count,
        own_only=bool(row[6]),
        tag=row[7],
        rate_ucr_per_s=row[8],
        hold_ucr=row[9],
        cost_ucr=row[10],
        tries=row[11],
        max_tries=row[12],
        created_us=row[13],
        cancel_us=row[14],
        finished_us=row[15],
        exit_code=row[16],
        reason=None if row[17] is None else _reason_decoder.decode(row[17]),
        attempt=row[18],
        worker_id=row[19],
        worker_name=row[20],
        worker_key=row[33] or "",
        claimed_us=row[21],
        started_us=row[22],
        stream_bytes=row[23],
        session=spec.session,
        call_timeout_s=spec.call_timeout_s,
        spared=row[34],
        is_frozen=row[35] is not None,
    )


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A job as the services see it."""

    job: JobRecord
    body_digest: bytes
    current: CurrentAttempt | None


def find(tx: Connection, job_id: str) -> Found | None:
    """Return the job with this public id and its newest attempt, if there is one."""
    row = _find.first(tx, {"job_id": job_id})
    if row is None:
        return None
    current = None
    if row[25] is not None:
        current = CurrentAttempt(
            row_id=row[25],
            n=row[18],
            state=AttemptState(row[26]),
            worker_row_id=row[27],
            owner_id=row[28],
            lender_account_id=row[38],
            claimed_us=row[21],
            started_us=row[22],
            lease_us=row[29],
            heard_us=row[30],
            due_us=row[31],
            cause=row[32],
            frozen=Frozen(since_us=row[35], until_us=row[36], before_us=row[37] or 0),
        )
    return Found(job=_record(row), body_digest=row[24], current=current)


def find_record(tx: Connection, job_id: str) -> JobRecord | None:
    """Return the job with this public id, if there is one."""
    row = _find_view.first(tx, {"job_id": job_id})
    return None if row is None else _record(row)


def list_queued(tx: Connection) -> Iterator[JobRecord]:
    """Yield the jobs that wait, in the order of their tags, without holding all of their code."""
    for row in _queued.each(tx, {}):
        yield _record(row)


def list_page(
    tx: Connection, *, user: str | None, before: str | None, state: JobState | None, limit: int
) -> tuple[JobRecord, ...]:
    """Return up to ``limit`` jobs, newest first, that were submitted before job ``before``."""
    query = _select.order_by(jobs.c.id.desc()).limit(limit)
    if user is not None:
        query = query.where(
            jobs.c.user_id == sa.select(users.c.id).where(users.c.name == user).scalar_subquery()
        )
    if before is not None:
        query = query.where(
            jobs.c.id < sa.select(jobs.c.id).where(jobs.c.public_id == before).scalar_subquery()
        )
    if state is not None:
        query = query.where(jobs.c.state == str(state))
    return tuple(_record(row) for row in tx.execute(query))


def insert(tx: Connection, job: JobRecord, body_digest: bytes) -> int:
    """Add a job and return its row id (``job.row_id`` is not used)."""
    row_id: int = _insert.value(
        tx,
        {
            "public_id": job.job_id,
            "user_id": job.user_id,
            "body_digest": body_digest,
            "state": job.state.value,
            "tag": job.tag,
            "spec": _encode(
                Spec(
                    job=job.job,
                    cell=job.cell,
                    blob_count=job.blob_count,
                    session=job.session,
                    call_timeout_s=job.call_timeout_s,
                )
            ).decode(),
            "own_only": job.own_only,
            "rate_ucr_per_s": job.rate_ucr_per_s,
            "hold_ucr": job.hold_ucr,
            "attempt": job.attempt,
            "max_tries": job.max_tries,
            "created_us": job.created_us,
        },
    )
    return row_id


def move(tx: Connection, before: JobRecord, after: JobRecord) -> None:
    """Write what has changed from ``before`` to ``after``; the state must still be the first.

    Raises:
        RuntimeError: it is not; the transaction must not go on.
    """
    count = _move.run(
        tx,
        {
            "row_id": before.row_id,
            "from_state": before.state.value,
            "to_state": after.state.value,
            "to_attempt": after.attempt,
            "to_tries": after.tries,
            "to_spared": after.spared,
            "to_cost": after.cost_ucr,
            "to_cancel": after.cancel_us,
            "to_finished": after.finished_us,
            "to_exit_code": after.exit_code,
            "to_reason": None if after.reason is None else _encode(after.reason).decode(),
        },
    )
    if count != 1:
        raise RuntimeError(f"Job {before.job_id} is no longer {before.state}.")


def insert_payload(tx: Connection, row_id: int, role: Role, data: bytes) -> None:
    """Add a payload of a job."""
    _insert_payload.run(tx, {"job_id": row_id, "role": role, "data": data})


def delete_inputs(tx: Connection, job: JobRecord) -> None:
    """Drop a cell's inputs: nobody needs them once it has ended. Scripts have none."""
    if job.cell is not None:
        _delete_inputs.run(tx, {"row_id": job.row_id})


def find_payload(tx: Connection, job_id: str, role: Role) -> bytes | None:
    """Return a payload of the job with this public id, if it has one."""
    data: bytes | None = _payload.value(tx, {"job_id": job_id, "payload_role": role})
    return data


def count_live(tx: Connection) -> JobCounts:
    """Return how many jobs wait and run."""
    by_state: dict[str, int] = {row[0]: row[1] for row in _counts.all(tx, {})}
    queued = by_state.pop("queued", 0)
    return JobCounts(queued=queued, running=sum(by_state.values()))


def last_virtual_time(tx: Connection) -> float:
    """Return the highest tag that was dispatched lately (0.0: none): a hint for fairness."""
    return float(_virtual_time.value(tx, {}) or 0.0)
