"""After a start: what waits, what runs somewhere, and where fairness stood."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from ..rules import leases
from ..settings import Settings
from ..store import attempts, jobs
from ..store.records import LiveAttempt, QueuedJob


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """What the dispatcher begins with. ``queued`` is in the order of the tags."""

    queued: tuple[QueuedJob, ...]
    live: tuple[LiveAttempt, ...]
    virtual_time: float


def recover(tx: Connection, now_us: int, settings: Settings) -> Recovered:
    """Give every live attempt the grace, since no worker is connected yet; return all that lives."""
    attempts.mark_all_disconnected(tx, leases.after(now_us, settings.grace_s))
    return Recovered(
        queued=tuple(job.to_queued() for job in jobs.list_queued(tx)),
        live=attempts.list_live(tx),
        virtual_time=jobs.last_virtual_time(tx),
    )
