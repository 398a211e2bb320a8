"""A worker comes, comes back, or goes: what that means for the attempts on record for it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection

from gridx.protocol import AttemptRef

from ..rules import leases
from ..rules.leases import EndOfLease
from ..settings import Settings
from ..store import attempts, jobs, workers
from ..store.records import LiveAttempt, WorkerRecord
from .expire import end_lost
from .freeze import thaw
from .outcome import Ended


class Adopted(msgspec.Struct, frozen=True, kw_only=True):
    """Which attempts go on, which the worker must drop, and which it has forgotten (they ended)."""

    adopted: tuple[LiveAttempt, ...]
    stop: tuple[AttemptRef, ...]
    ended: tuple[Ended, ...]


def adopt(
    tx: Connection,
    now_us: int,
    settings: Settings,
    worker: WorkerRecord,
    running: Sequence[AttemptRef],
) -> Adopted:
    """Compare what a worker's hello names with its live attempts on record.

    Named and live: the lease stands again. Named only: to be stopped. Live only: the worker
    began anew, so the attempt is lost now and not after its grace.
    """
    live = {(a.job_id, a.attempt): a for a in attempts.list_live(tx, worker.row_id)}
    decided = leases.adopt(((r.job_id, r.attempt) for r in running), live)
    row_ids, ended = [], []
    for job_id, _ in decided.adopted:
        found = jobs.find(tx, job_id)
        assert found is not None and found.current is not None
        thaw(tx, now_us, found, found.current)  # the worker says it again where it stands still
        row_ids.append(found.current.row_id)
    attempts.mark_connected(tx, row_ids)
    for job_id, _ in decided.lost:
        found = jobs.find(tx, job_id)
        assert found is not None and found.current is not None
        ended.append(end_lost(tx, now_us, settings, found, found.current, EndOfLease.FORGOTTEN))
    workers.mark_seen(tx, [worker.row_id], now_us)
    return Adopted(
        adopted=tuple(msgspec.structs.replace(live[ref], lease_us=None) for ref in decided.adopted),
        stop=tuple(AttemptRef(job_id=job_id, attempt=n) for job_id, n in decided.stop),
        ended=tuple(ended),
    )


def disconnect(
    tx: Connection, now_us: int, settings: Settings, worker: WorkerRecord, heard_us: int
) -> int:
    """Give every live attempt of a worker that is gone its grace; return how many there are.

    ``heard_us``: when it was last heard; a cancelled attempt that never reports is paid up to
    then.
    """
    workers.mark_seen(tx, [worker.row_id], heard_us)
    return attempts.mark_disconnected(
        tx, worker.row_id, heard_us, leases.after(now_us, settings.grace_s)
    )
