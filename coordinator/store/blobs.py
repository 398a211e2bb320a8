"""Which blobs there are, whose they are, and which jobs refer to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import sqlalchemy as sa
from sqlalchemy import Connection, bindparam

from gridx.schemas import BlobRef

from .prepared import Prepared, insert_into
from .tables import blob_refs, blobs

BlobRole = Literal["inputs", "result"]

_key = (
    blobs.c.owner_id == bindparam("of_owner"),
    blobs.c.digest == bindparam("of_digest"),
)
_size = Prepared(sa.select(blobs.c.size_bytes).where(*_key))
_insert = Prepared(
    insert_into(
        blobs, "owner_id", "digest", "size_bytes", "stored_bytes", "created_us", "touched_us"
    )
)
_touch = Prepared(blobs.update().where(*_key).values(touched_us=bindparam("at_us")))
_insert_ref = Prepared(
    insert_into(blob_refs, "job_id", "call", "role", "place", "owner_id", "digest")
)
_of_call = (
    blob_refs.c.job_id == bindparam("of_job"),
    blob_refs.c.call == bindparam("of_call"),
    blob_refs.c.role == bindparam("of_role"),
)
_refs = Prepared(
    sa.select(blob_refs.c.digest, blobs.c.size_bytes)
    .join_from(
        blob_refs,
        blobs,
        sa.and_(blobs.c.owner_id == blob_refs.c.owner_id, blobs.c.digest == blob_refs.c.digest),
    )
    .where(*_of_call)
    .order_by(blob_refs.c.place)
)
_has_ref = Prepared(
    sa.select(blob_refs.c.role)
    .where(blob_refs.c.job_id == bindparam("of_job"), blob_refs.c.digest == bindparam("of_digest"))
    .distinct()
)
_touch_refs = Prepared(
    blobs.update()
    .where(
        blobs.c.owner_id == bindparam("of_owner"),
        blobs.c.digest.in_(sa.select(blob_refs.c.digest).where(*_of_call)),
    )
    .values(touched_us=bindparam("at_us"))
)
_delete_refs = Prepared(blob_refs.delete().where(*_of_call))


def find_size(tx: Connection, owner_id: int, digest: str) -> int | None:
    """Return the raw size of an owner's blob, or None when there is none."""
    size: int | None = _size.value(tx, _name(owner_id, digest))
    return size


def insert(tx: Connection, owner_id: int, ref: BlobRef, stored_bytes: int, now_us: int) -> None:
    """Add a blob that is not there yet."""
    _insert.run(
        tx,
        {
            "owner_id": owner_id,
            "digest": bytes.fromhex(ref.digest),
            "size_bytes": ref.size,
            "stored_bytes": stored_bytes,
            "created_us": now_us,
            "touched_us": now_us,
        },
    )


def touch(tx: Connection, owner_id: int, digest: str, now_us: int) -> bool:
    """Write that a blob is of use now; False when there is none."""
    return _touch.run(tx, {**_name(owner_id, digest), "at_us": now_us}) == 1


def insert_refs(
    tx: Connection,
    *,
    job_row_id: int,
    call: int,
    role: BlobRole,
    owner_id: int,
    refs: Sequence[BlobRef],
) -> None:
    """Let a call refer to its owner's blobs, in this order."""
    _insert_ref.run_many(
        tx,
        [
            {
                "job_id": job_row_id,
                "call": call,
                "role": role,
                "place": place,
                "owner_id": owner_id,
                "digest": bytes.fromhex(ref.digest),
            }
            for place, ref in enumerate(refs)
        ],
    )


def list_refs(tx: Connection, job_row_id: int, call: int, role: BlobRole) -> tuple[BlobRef, ...]:
    """Return what a call refers to, in its order."""
    rows = _refs.all(tx, _call(job_row_id, call, role))
    return tuple(BlobRef(digest=row[0].hex(), size=row[1]) for row in rows)


def roles_of(tx: Connection, job_row_id: int, digest: str) -> frozenset[str]:
    """Return as what a job refers to a blob; empty when it does not."""
    rows = _has_ref.all(tx, {"of_job": job_row_id, "of_digest": bytes.fromhex(digest)})
    return frozenset(row[0] for row in rows)


def release_refs(
    tx: Connection, *, owner_id: int, job_row_id: int, call: int, role: BlobRole, now_us: int
) -> None:
    """Let a call refer to nothing more in this role; until now its blobs were of use."""
    params = _call(job_row_id, call, role)
    _touch_refs.run(tx, {**params, "of_owner": owner_id, "at_us": now_us})
    _delete_refs.run(tx, params)


def _name(owner_id: int, digest: str) -> dict[str, int | bytes]:
    return {"of_owner": owner_id, "of_digest": bytes.fromhex(digest)}


def _call(job_row_id: int, call: int, role: BlobRole) -> dict[str, int | str]:
    return {"of_job": job_row_id, "of_call": call, "of_role": role}
