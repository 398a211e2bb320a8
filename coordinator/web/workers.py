"""Workers over REST."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gridx.clock import to_datetime
from gridx.resources import Capability
from gridx.schemas import WorkerList, WorkerView

from ..rules.access import Caller, may_act_for
from ..services import views
from ..store.records import WorkerRecord
from .base import Call, Reply
from .connections import WorkerLink

if TYPE_CHECKING:
    from .context import Context

_ORDER = {"online": 0, "paused": 1, "offline": 2}


def _view(context: Context, caller: Caller, worker: WorkerRecord) -> WorkerView:
    link = context.connections.find(worker.worker_id)
    room = context.scheduler.find_worker(worker.worker_id)
    seen_us = worker.seen_us if link is None else link.heard_us
    return WorkerView(
        worker_id=worker.worker_id,
        name=worker.name,
        owner=worker.owner,
        public_key=worker.public_key,
        status=_status(link),
        capability=_shown(worker, caller),
        load=None if link is None else link.load,
        running=0 if room is None else len(room.held),
        free_cores=0.0 if room is None else max(0.0, room.free_cores),
        free_memory_bytes=0 if room is None else max(0, room.free_memory_bytes),
        seen_at=to_datetime(seen_us) if seen_us else None,
    )


def _status(link: WorkerLink | None) -> str:
    if link is None:
        return "offline"
    return "online" if link.worker.capability.pause is None else "paused"


def _shown(worker: WorkerRecord, caller: Caller) -> Capability:
    """Return what a worker offers; whom its owner has named is the owner's business."""
    if not worker.capability.users or may_act_for(caller, worker.owner):
        return worker.capability
    return msgspec.structs.replace(worker.capability, users=())


async def list_workers(context: Context, call: Call) -> Reply:
    """List every worker on record: those that are online first, then those that are paused."""
    found = await context.store.read(views.list_workers)
    shown = [_view(context, call.caller, worker) for worker in found]
    shown.sort(key=lambda view: (_ORDER[view.status], view.name, view.worker_id))
    return Reply(value=WorkerList(workers=tuple(shown)))
