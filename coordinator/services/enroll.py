"""Workers come on record: by their own id, and only their owner may speak for them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection

from gridx.errors import Forbidden, InvalidRequest
from gridx.resources import MIB, Capability

from ..rules.identity import check_same_key
from ..store import workers
from ..store.records import WorkerRecord

_MAX_NAME_CHARS = 64
_MAX_CAPABILITY_BYTES = MIB


def enroll(
    tx: Connection,
    now_us: int,
    owner_id: int,
    worker_id: str,
    name: str,
    capability: Capability,
    public_key: str = "",
) -> WorkerRecord:
    """Add a worker, or write what it says of itself now.

    Raises:
        Forbidden: the id is that of somebody else's worker, or of one with another key.
        InvalidRequest: what it offers is longer than 1 MiB.
    """
    name = name[:_MAX_NAME_CHARS]
    _refuse_endless(capability)
    known = workers.find(tx, worker_id)
    if known is None:
        workers.insert(tx, worker_id, owner_id, name, capability, public_key, now_us)
        known = workers.find(tx, worker_id)
        assert known is not None
        return known
    if known.owner_id != owner_id:
        raise Forbidden(
            f"Worker {worker_id} belongs to another user.",
            hint="Start the worker with a data folder of its own: --data-dir DIR.",
            worker_id=worker_id,
        )
    check_same_key(worker_id, known.public_key, public_key)
    workers.change(tx, known.row_id, name, capability, public_key, now_us)
    return msgspec.structs.replace(
        known, name=name, capability=capability, public_key=public_key, seen_us=now_us
    )


def set_capability(
    tx: Connection, now_us: int, worker: WorkerRecord, capability: Capability
) -> WorkerRecord:
    """Write what a worker offers now.

    Raises:
        InvalidRequest: it is longer than 1 MiB.
    """
    _refuse_endless(capability)
    workers.change(tx, worker.row_id, worker.name, capability, worker.public_key, now_us)
    return msgspec.structs.replace(worker, capability=capability, seen_us=now_us)


def mark_seen(tx: Connection, now_us: int, row_ids: Sequence[int]) -> None:
    """Write that these workers are there."""
    workers.mark_seen(tx, row_ids, now_us)


def _refuse_endless(capability: Capability) -> None:
    if len(msgspec.json.encode(capability)) > _MAX_CAPABILITY_BYTES:
        raise InvalidRequest(
            "What this worker offers does not fit into 1 MiB.",
            hint="Let it announce fewer images, or images with fewer packages.",
        )
