"""What a watched job tells its reader: one update after the other, ``Finished`` last."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import (
    EnvironmentFailed,
    JobCancelled,
    JobError,
    JobFailed,
    RemoteCrash,
    RemoteOutOfMemory,
    RemoteTimeout,
    SessionEnded,
    WorkerLost,
)
from .events import Event
from .protocol import Position
from .schemas import BlobRef, JobView
from .states import JobState


@dataclass(frozen=True, slots=True)
class EventArrived:
    """A piece of output. ``position`` is the place after it: resume there."""

    event: Event
    position: Position


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The job stands elsewhere now, or waits for another reason."""

    view: JobView


@dataclass(frozen=True, slots=True)
class Restarted:
    """A new attempt begins: what was shown of the earlier one is void, output starts again."""

    attempt: int


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """The connection was lost or is back. Nothing of the output is lost by it."""

    connected: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """The last update, exactly once. Amounts are exact, in micro-credits."""

    view: JobView
    cost_ucr: int
    balance_ucr: int | None
    held_ucr: int | None
    result: bytes | None
    result_blobs: tuple[BlobRef, ...] = ()  # instead of ``result``: download them

    def error(self) -> JobError | None:
        """Return why the job did not complete, or None when it did."""
        return job_error(self.view)


Update = EventArrived | StateChanged | Restarted | LinkChanged | Finished

_BY_CODE: dict[str, type[JobError]] = {
    "error": JobFailed,
    "timeout": RemoteTimeout,
    "out_of_memory": RemoteOutOfMemory,
    "crashed": RemoteCrash,
    "cancelled": JobCancelled,
    "sandbox_failed": WorkerLost,
    "environment": EnvironmentFailed,
    **{cls.code: cls for cls in (EnvironmentFailed, JobFailed, SessionEnded, WorkerLost)},
}


def job_error(view: JobView) -> JobError | None:
    """Return the error that ``view``, a job that has ended, stands for; None when it completed."""
    if view.status == JobState.COMPLETED:
        return None
    reason = view.reason
    if view.status == JobState.CANCELLED:
        cls: type[JobError] = JobCancelled
    else:
        cls = _BY_CODE.get(reason.code, JobError) if reason else JobFailed
    message = reason.message if reason and reason.message else f"Job {view.job_id} {view.status}."
    hint = reason.hint if reason and reason.hint else None
    return cls(message, hint=hint, job_id=view.job_id, exit_code=view.exit_code)
