"""Workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, bindparam

from gridx.resources import Capability

from .prepared import Prepared
from .records import WorkerRecord
from .tables import users, workers

_capability = msgspec.json.Decoder(Capability)

_select = sa.select(
    workers.c.id,
    workers.c.public_id,
    workers.c.name,
    users.c.name,
    users.c.id,
    workers.c.capability,
    workers.c.seen_us,
    workers.c.public_key,
).join_from(workers, users, users.c.id == workers.c.owner_id)
_find = Prepared(_select.where(workers.c.public_id == bindparam("worker_id")))
_all = Prepared(_select.order_by(workers.c.id))
_of_owner = Prepared(_select.where(users.c.name == bindparam("owner")).order_by(workers.c.id))
_change = Prepared(
    workers.update()
    .where(workers.c.id == bindparam("row_id"))
    .values(
        name=bindparam("new_name"),
        capability=bindparam("new_capability"),
        public_key=bindparam("new_key"),
        seen_us=bindparam("at_us"),
    )
)
_seen = Prepared(
    workers.update().where(workers.c.id == bindparam("row_id")).values(seen_us=bindparam("at_us"))
)


def _record(row: Any) -> WorkerRecord:
    return WorkerRecord(
        row_id=row[0],
        worker_id=row[1],
        name=row[2],
        owner=row[3],
        owner_id=row[4],
        capability=_capability.decode(row[5]),
        seen_us=row[6],
        public_key=row[7],
    )


def find(tx: Connection, worker_id: str) -> WorkerRecord | None:
    """Return the worker with this public id, if there is one."""
    row = _find.first(tx, {"worker_id": worker_id})
    return None if row is None else _record(row)


def list_all(tx: Connection, owner: str | None) -> tuple[WorkerRecord, ...]:
    """Return every worker, or those of one owner, oldest first."""
    rows = _all.all(tx, {}) if owner is None else _of_owner.all(tx, {"owner": owner})
    return tuple(_record(row) for row in rows)


def insert(
    tx: Connection,
    worker_id: str,
    owner_id: int,
    name: str,
    capability: Capability,
    public_key: str,
    now_us: int,
) -> None:
    """Add a worker."""
    tx.execute(
        workers.insert(),
        {
            "public_id": worker_id,
            "owner_id": owner_id,
            "name": name,
            "capability": msgspec.json.encode(capability).decode(),
            "public_key": public_key,
            "created_us": now_us,
            "seen_us": now_us,
        },
    )


def change(
    tx: Connection, row_id: int, name: str, capability: Capability, public_key: str, now_us: int
) -> None:
    """Write what a worker says of itself now."""
    _change.run(
        tx,
        {
            "row_id": row_id,
            "new_name": name,
            "new_capability": msgspec.json.encode(capability).decode(),
            "new_key": public_key,
            "at_us": now_us,
        },
    )


def mark_seen(tx: Connection, row_ids: Sequence[int], at_us: int) -> None:
    """Write that these workers were heard at ``at_us``."""
    if row_ids:
        _seen.run_many(tx, [{"row_id": row_id, "at_us": at_us} for row_id in sorted(row_ids)])
