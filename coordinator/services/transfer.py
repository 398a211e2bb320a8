"""A worker moves the blobs of a job: while bytes flow, the job's limits wait for them."""

from __future__ import annotations

from sqlalchemy import Connection

from ..rules import attempts as attempt_rules
from ..rules import leases
from ..settings import Settings
from ..store import attempts, calls, jobs
from .expire import lease_of


def note_transfer(
    tx: Connection, now_us: int, settings: Settings, job_id: str, worker_id: str
) -> None:
    """Give the attempt of ``job_id`` on this worker, and its open call, time to go on.

    Nothing changes for an attempt that has ended, runs elsewhere, or is to be stopped.
    """
    found = jobs.find(tx, job_id)
    if found is None or found.current is None or found.job.worker_id != worker_id:
        return
    job, current = found.job, found.current
    if not attempt_rules.is_live(current.state) or job.cancel_us is not None:
        return
    limits = {"overrun_s": settings.overrun_s, "transfer_limit_s": settings.transfer_limit_s}
    due_us = leases.due_while_moving(
        lease_of(found, current), now_us, timeout_s=job.job.limits.timeout_s, **limits
    )
    if job.session is None:
        attempts.extend(tx, current.row_id, due_us)
        return
    opened = calls.find_open(tx, job.row_id)
    if opened is None or opened.end_us is not None:
        return
    attempts.extend(tx, current.row_id, due_us)
    call = calls.find_newest(tx, job.row_id)
    if call is None or call.is_final or call.due_us is None:
        return
    lease = leases.Lease(claimed_us=call.created_us, started_us=call.started_us, due_us=call.due_us)
    call_due_us = leases.due_while_moving(lease, now_us, timeout_s=call.spec.timeout_s, **limits)
    calls.extend(tx, call, call_due_us)
