"""Who may put, read and refer to which blobs.

A blob belongs to a user. Its owner may put it and ask for what is missing. To read it, a job has
to refer to it: a job of the caller, or one that runs on the calling worker. Whether another user
has the same bytes, nobody can find out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import Connection

from gridx.errors import BlobMismatch, BlobsMissing, NotFound
from gridx.schemas import BlobRef

from ..rules import attempts as attempt_rules
from ..store import blobs, jobs, users
from ..store.blobs import BlobRole
from ..store.jobs import Found
from ..store.records import JobRecord

_NAMED = 3  # digests that an error names


class Owned(msgspec.Struct, frozen=True, kw_only=True):
    """Whose blob is to be put. ``owner_id`` is None for a user who is not on record."""

    owner_id: int | None
    is_known: bool = False


def missing(tx: Connection, now_us: int, user: str, digests: Iterable[str]) -> tuple[str, ...]:
    """Return which of these ``user`` has not put, in the order given."""
    found = users.find(tx, user)
    if found is None:
        return tuple(digests)
    return tuple(d for d in digests if blobs.find_size(tx, found.user_id, d) is None)


def look_up(tx: Connection, now_us: int, user: str, ref: BlobRef) -> Owned:
    """Return whose blob ``ref`` of ``user`` would be, and whether it is there."""
    found = users.find(tx, user)
    if found is None:
        return Owned(owner_id=None)
    size = blobs.find_size(tx, found.user_id, ref.digest)
    return Owned(owner_id=found.user_id, is_known=size == ref.size)


def find_owner(
    tx: Connection, now_us: int, job_id: str, attempt: int | None, worker_id: str
) -> int:
    """Return whose blobs a worker may put for a job: its user's, while it holds the job.

    Raises:
        NotFound: no attempt of the job is live on this worker, or not ``attempt``.
    """
    return _held(tx, job_id, attempt, worker_id).user_id


def touch(tx: Connection, now_us: int, owner_id: int, ref: BlobRef) -> bool:
    """Write that a blob is of use again; False when it is not there."""
    return blobs.touch(tx, owner_id, ref.digest, now_us)


def keep(tx: Connection, now_us: int, owner_id: int, ref: BlobRef, stored_bytes: int) -> None:
    """Write that a blob is there now, with ``stored_bytes`` on disk."""
    if not blobs.touch(tx, owner_id, ref.digest, now_us):
        blobs.insert(tx, owner_id, ref, stored_bytes, now_us)


def find_readable(
    tx: Connection,
    now_us: int,
    job_id: str,
    digest: str,
    *,
    user: str | None = None,
    worker_id: str | None = None,
    attempt: int | None = None,
) -> tuple[int, BlobRef]:
    """Return the owner of a blob that the caller may read through ``job_id``, and its size.

    Args:
        user: whose job it has to be; None: anybody's.
        worker_id: the worker that reads; then the job has to run there, and only what it was
            submitted with can be read: a worker cannot get at a blob by calling it its result.

    Raises:
        NotFound: there is no such blob, or the caller has no right to read it.
    """
    if worker_id is not None:
        job = _held(tx, job_id, attempt, worker_id)
        is_readable = "inputs" in blobs.roles_of(tx, job.row_id, digest)
    else:
        found = jobs.find_record(tx, job_id)
        if found is None or user not in (None, found.user):
            raise _no_blob(digest, job_id)
        job = found
        is_readable = bool(blobs.roles_of(tx, job.row_id, digest))
    size = blobs.find_size(tx, job.user_id, digest) if is_readable else None
    if size is None:
        raise _no_blob(digest, job_id)
    return job.user_id, BlobRef(digest=digest, size=size)


def require(tx: Connection, owner_id: int, refs: Sequence[BlobRef]) -> None:
    """Refuse to go on unless the owner has all of these.

    Raises:
        BlobsMissing: some are not there.
        BlobMismatch: one has another size.
    """
    lacking = []
    for ref in refs:
        size = blobs.find_size(tx, owner_id, ref.digest)
        if size is None:
            lacking.append(ref.digest)
        elif size != ref.size:
            raise BlobMismatch(f"Blob {ref.digest[:16]} has {size} bytes, not {ref.size}.")
    if lacking:
        raise BlobsMissing(
            f"{len(lacking)} of the {len(refs)} blobs that the job names are not here.",
            missing=len(lacking),
            named=len(refs),
            first=lacking[:_NAMED],
        )


def refer(
    tx: Connection,
    owner_id: int,
    job_row_id: int,
    refs: Sequence[BlobRef],
    role: BlobRole,
    call: int = 0,
) -> None:
    """Let a call of a job refer to blobs that are there."""
    if refs:
        blobs.insert_refs(
            tx, job_row_id=job_row_id, call=call, role=role, owner_id=owner_id, refs=refs
        )


def list_refs(
    tx: Connection, job_row_id: int, role: BlobRole, call: int = 0
) -> tuple[BlobRef, ...]:
    """Return what a call of a job refers to."""
    return blobs.list_refs(tx, job_row_id, call, role)


def release(tx: Connection, now_us: int, job: JobRecord, call: int = 0) -> None:
    """Let go of what a call was submitted with: it has ended. The blobs stay for the next one."""
    blobs.release_refs(
        tx, owner_id=job.user_id, job_row_id=job.row_id, call=call, role="inputs", now_us=now_us
    )


def _held(tx: Connection, job_id: str, attempt: int | None, worker_id: str) -> JobRecord:
    found = jobs.find(tx, job_id)
    if found is None or not _is_held(found, attempt, worker_id):
        raise NotFound(
            f"No attempt of {job_id} is live on this worker.",
            hint="Stop it: the job has ended or runs elsewhere.",
            job_id=job_id,
        )
    return found.job


def _is_held(found: Found, attempt: int | None, worker_id: str) -> bool:
    current = found.current
    return (
        current is not None
        and found.job.worker_id == worker_id
        and attempt in (None, current.n)
        and attempt_rules.is_live(current.state)
    )


def _no_blob(digest: str, job_id: str) -> NotFound:
    return NotFound(
        f"Job {job_id} refers to no blob {digest[:16]} that you may read.",
        hint="A blob is read through a job of yours that was submitted with it, or that made it.",
        job_id=job_id,
    )
