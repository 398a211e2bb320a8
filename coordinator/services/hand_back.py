"""A worker gives a job back that it will not run: it waits again at once, and no try is counted."""

from __future__ import annotations

from sqlalchemy import Connection

from gridx.errors import StaleLease

from ..rules import attempts as attempt_rules
from ..rules import jobs as job_rules
from ..rules.attempts import AttemptEvent
from ..rules.jobs import JobEvent
from ..settings import Settings
from ..store import jobs
from ..store.records import WorkerRecord
from .outcome import Ended, Report, end_attempt


def hand_back(
    tx: Connection,
    now_us: int,
    settings: Settings,
    job_id: str,
    attempt: int,
    worker: WorkerRecord,
    message: str = "",
) -> Ended:
    """End the attempt and put its job back into the queue; a job that was cancelled ends.

    Nothing is charged: the worker has not run it.

    Raises:
        StaleLease: the attempt is not live, or not this worker's.
    """
    found = jobs.find(tx, job_id)
    current = None if found is None else found.current
    if (
        found is None
        or current is None
        or current.n != attempt
        or current.worker_row_id != worker.row_id
        or not attempt_rules.is_live(current.state)
    ):
        raise StaleLease(
            f"Attempt {attempt} of {job_id} is no longer live on this worker.",
            job_id=job_id,
            attempt=attempt,
        )
    cancelled = found.job.cancel_us is not None
    return end_attempt(
        tx,
        now_us,
        settings,
        found,
        current,
        attempt_event=AttemptEvent.STOPPED if cancelled else AttemptEvent.HANDED_BACK,
        job_event=JobEvent.STOPPED if cancelled else JobEvent.HANDED_BACK,
        report=Report(until_us=now_us, started_us=None, message=message[:1000] or None),
        reason=job_rules.reason_for_cancel(),
    )
