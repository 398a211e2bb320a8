"""What users see of jobs, accounts and workers."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from gridx.clock import to_datetime
from gridx.credits import to_credits
from gridx.errors import NotFound
from gridx.resources import Usage
from gridx.schemas import AccountView, BlobRef, JobView
from gridx.states import JobState

from ..ledger import accounts as ledger
from ..store import attempts, blobs, jobs, workers
from ..store.jobs import Role
from ..store.records import Balance, JobCounts, JobRecord, LiveAttempt, WorkerRecord

_MAX_PAGE = 200


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs, newest first; ``next`` is the id to pass as ``before`` for the next page."""

    jobs: tuple[JobRecord, ...]
    next: str | None = None


def get_job(tx: Connection, now_us: int, job_id: str, user: str | None = None) -> JobRecord:
    """Return a job of ``user`` (None: anybody's).

    Raises:
        NotFound: there is no such job, or it is not this user's.
    """
    job = jobs.find_record(tx, job_id)
    if job is None or user not in (None, job.user):
        raise NotFound(f"There is no job {job_id} of yours.", job_id=job_id)
    return job


def list_jobs(
    tx: Connection,
    now_us: int,
    user: str | None,
    before: str | None = None,
    limit: int = 50,
    state: JobState | None = None,
) -> JobPage:
    """Return a page of the jobs of ``user`` (None: of all), at most 200."""
    limit = max(1, min(limit, _MAX_PAGE))
    found = jobs.list_page(tx, user=user, before=before, state=state, limit=limit + 1)
    more = len(found) > limit
    page = found[:limit]
    return JobPage(jobs=page, next=page[-1].job_id if more else None)


def get_balance(tx: Connection, now_us: int, user: str) -> Balance:
    """Return a user's credits.

    Raises:
        NotFound: there is no such user.
    """
    balance = ledger.find_balance(tx, user)
    if balance is None:
        raise NotFound(
            f"There is no user {user}.",
            hint="A user's account is opened with the first job, worker or login.",
            user=user,
        )
    return balance


def list_workers(tx: Connection, now_us: int, owner: str | None = None) -> tuple[WorkerRecord, ...]:
    """Return every worker on record, or those of one owner."""
    return workers.list_all(tx, owner)


def list_live(tx: Connection, now_us: int) -> tuple[LiveAttempt, ...]:
    """Return every live attempt."""
    return attempts.list_live(tx)


def find_result(
    tx: Connection, now_us: int, job: JobRecord
) -> tuple[bytes | None, tuple[BlobRef, ...]]:
    """Return the result of a job that has ended: in one piece, or the blobs that are its pieces."""
    if job.session is not None:
        return None, ()  # its calls have results, it has none
    data = jobs.find_payload(tx, job.job_id, "result")
    return data, () if data is not None else blobs.list_refs(tx, job.row_id, 0, "result")


def find_payload(tx: Connection, now_us: int, job_id: str, role: Role) -> bytes | None:
    """Return a job's inputs or result, where it has them."""
    return jobs.find_payload(tx, job_id, role)


def find_stream(tx: Connection, now_us: int, job_id: str, attempt: int) -> bytes | None:
    """Return an attempt's output where it is stored with its report; else it is in the log."""
    return attempts.find_stream(tx, job_id, attempt)


def find_usage(tx: Connection, now_us: int, job: JobRecord) -> Usage | None:
    """Return what the newest attempt of a job used, once its report was accepted."""
    return attempts.find_usage(tx, job.job_id, job.attempt)


def count_jobs(tx: Connection, now_us: int) -> JobCounts:
    """Return how many jobs wait and run."""
    return jobs.count_live(tx)


def job_view(
    job: JobRecord, *, waiting: str | None = None, started_us: int | None = None
) -> JobView:
    """Return a job as the API shows it.

    Args:
        waiting: why it waits or stands still, while it does.
        started_us: when it started, where that is not written yet.
    """
    is_queued = job.state is JobState.QUEUED
    if is_queued:
        started_us = None
    elif job.started_us is not None:
        started_us = job.started_us
    return JobView(
        job_id=job.job_id,
        user_id=job.user,
        status="running" if job.state is JobState.VERIFYING else job.state.value,
        language=job.job.language,
        kind=kind_of(job),
        limits=job.job.limits,
        reserved=0.0 if job.is_final else to_credits(job.hold_ucr),
        cost=to_credits(job.cost_ucr),
        attempt=job.attempt,
        worker_id=None if is_queued else job.worker_id,
        worker_name=None if is_queued else job.worker_name,
        worker_key="" if is_queued else job.worker_key,
        exit_code=job.exit_code,
        reason=job.reason,
        waiting=waiting,
        created_at=to_datetime(job.created_us),
        started_at=None if started_us is None else to_datetime(started_us),
        finished_at=None if job.finished_us is None else to_datetime(job.finished_us),
        elapsed_s=None
        if started_us is None or job.finished_us is None
        else max(0, job.finished_us - started_us) / 1_000_000,
        session=None if job.session is None else job.session.name,
    )


def kind_of(job: JobRecord) -> str:
    """Return which shape a job has: "script", "cell" or "session"."""
    if job.session is not None:
        return "session"
    return "script" if job.cell is None else "cell"


def account_view(balance: Balance) -> AccountView:
    """Return an account as the API shows it."""
    return AccountView(
        user_id=balance.user,
        balance=to_credits(balance.posted_ucr),
        available=to_credits(balance.available_ucr),
        held=to_credits(balance.held_ucr),
    )
