"""A worker with room takes a job that waits."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from gridx.errors import Conflict
from gridx.schemas import BlobRef
from gridx.states import JobState

from ..rules import jobs as job_rules
from ..rules import leases
from ..rules.jobs import JobEvent
from ..settings import Settings
from ..store import attempts, jobs
from ..store.records import JobRecord, WorkerRecord
from . import blobs


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    """A lease, and all that its worker needs to begin."""

    job: JobRecord
    attempt: int
    inputs: bytes
    blobs: tuple[BlobRef, ...] = ()


def claim(
    tx: Connection, now_us: int, settings: Settings, job_id: str, worker: WorkerRecord
) -> Claimed | None:
    """Lease a queued job to ``worker``; None when it is not queued any more.

    Raises:
        Conflict: this worker may not run this user's jobs.
    """
    found = jobs.find(tx, job_id)
    if found is None or found.job.state is not JobState.QUEUED:
        return None
    before = found.job
    refuse_strangers(before, worker)
    after = msgspec.structs.replace(
        before,
        state=job_rules.advance(before.state, JobEvent.CLAIMED).state,
        attempt=before.attempt + 1,
        worker_id=worker.worker_id,
        worker_name=worker.name,
        worker_key=worker.public_key,
        claimed_us=now_us,
        started_us=None,
        stream_bytes=None,
    )
    jobs.move(tx, before, after)
    lease(tx, now_us, settings, after, worker)
    inputs = jobs.find_payload(tx, job_id, "inputs") or b""
    refs = blobs.list_refs(tx, after.row_id, "inputs") if after.blob_count else ()
    return Claimed(job=after, attempt=after.attempt, inputs=inputs, blobs=refs)


def lease(
    tx: Connection, now_us: int, settings: Settings, job: JobRecord, worker: WorkerRecord
) -> None:
    """Write the attempt ``job.attempt`` as leased to ``worker``."""
    attempts.insert(
        tx,
        job_row_id=job.row_id,
        n=job.attempt,
        worker_row_id=worker.row_id,
        now_us=now_us,
        due_us=leases.due_when_granted(
            now_us, settings.preparing_limit_s if job.job.pip else settings.starting_limit_s
        ),
    )


def refuse_strangers(job: JobRecord, worker: WorkerRecord) -> None:
    """Refuse a pair that the dispatcher must not make: the last line, behind its own rule.

    Raises:
        Conflict: the job is for its user's own workers, or the worker for its owner's own jobs.
    """
    if job.user_id == worker.owner_id:
        return
    if job.own_only or not worker.capability.takes_jobs_of(job.user, owner=worker.owner):
        raise Conflict(
            f"Worker {worker.name} may not run jobs of {job.user}.",
            hint="It takes the jobs of those whom its owner has named, in a Docker sandbox.",
        )
