"""Workers over REST."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gridx.clock import to_datetime
from gridx.schemas import WorkerList, WorkerView

from ..services import views
from ..store.records import WorkerRecord
from .base import Call, Reply

if TYPE_CHECKING:
    from .context import Context


def _view(context: Context, worker: WorkerRecord) -> WorkerView:
    link = context.connections.find(worker.worker_id)
    room = context.scheduler.find_worker(worker.worker_id)
    seen_us = worker.seen_us if link is None else link.heard_us
    return WorkerView(
        worker_id=worker.worker_id,
        name=worker.name,
        owner=worker.owner,
        public_key=worker.public_key,
        status="offline" if link is None else "online",
        capability=worker.capability,
        load=None if link is None else link.load,
        running=0 if room is None else len(room.held),
        free_cores=0.0 if room is None else max(0.0, room.free_cores),
        free_memory_bytes=0 if room is None else max(0, room.free_memory_bytes),
        seen_at=to_datetime(seen_us) if seen_us else None,
    )


async def list_workers(context: Context, call: Call) -> Reply:
    """List every worker on record, those that are online first."""
    found = await context.store.read(views.list_workers)
    shown = [_view(context, worker) for worker in found]
    shown.sort(key=lambda view: (view.status != "online", view.name, view.worker_id))
    return Reply(value=WorkerList(workers=tuple(shown)))
