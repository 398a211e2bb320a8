"""What may happen to a job, as a table: (state, event) to the next state and its effects.

Who pays for an attempt that ended badly is decided here and nowhere else: SETTLE pays for the
metered time and returns the rest of the hold, RELEASE returns all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from gridx.display.text import clean_text
from gridx.errors import (
    Conflict,
    EnvironmentFailed,
    GridXError,
    JobCancelled,
    JobFailed,
    RemoteCrash,
    RemoteOutOfMemory,
    RemoteTimeout,
    WorkerLost,
)
from gridx.resources import format_bytes
from gridx.schemas import Limits, Reason
from gridx.states import Cause, JobState


class JobEvent(StrEnum):
    """What can happen to a job."""

    CLAIMED = "claimed"  # a worker's lease on it was granted
    CODE_COMPLETED = "code_completed"  # the accepted report: it ran to its end
    CODE_FAILED = "code_failed"  # the accepted report: its own error, or one of its own limits
    ENVIRONMENT_FAILED = "environment_failed"  # the same: its packages cannot be installed
    ATTEMPT_FAILED = "attempt_failed"  # the infrastructure's fault, and tries are left
    TRIES_EXHAUSTED = "tries_exhausted"  # the same, and none is left
    HANDED_BACK = "handed_back"  # the worker will not run it
    CANCEL_ASKED = "cancel_asked"  # while queued it ends; while running its worker is told
    STOPPED = "stopped"  # cancel was wanted and the attempt has ended
    CLOSED = "closed"  # a session had to end, and its worker has not reported that
    ALL_REPORTED = "all_reported"  # every wanted attempt is in; their results are compared
    RESULT_ACCEPTED = "result_accepted"
    NO_QUORUM = "no_quorum"  # the results differ, and tries are left


class Effect(StrEnum):
    """What else must happen in the same transaction."""

    SETTLE = "settle"  # pay for the metered time, return the rest of the hold
    RELEASE = "release"  # return the whole hold
    STOP = "stop"  # tell the worker, after the commit


class Step(msgspec.Struct, frozen=True):
    """Where a job goes, and what goes with it."""

    state: JobState
    effects: tuple[Effect, ...] = ()


_S, _E = JobState, JobEvent
_PAID, _FREE = (Effect.SETTLE,), (Effect.RELEASE,)

TRANSITIONS: Final[Mapping[tuple[JobState, JobEvent], Step]] = {
    (_S.QUEUED, _E.CLAIMED): Step(_S.RUNNING),
    (_S.QUEUED, _E.CANCEL_ASKED): Step(_S.CANCELLED, _FREE),
    (_S.RUNNING, _E.CODE_COMPLETED): Step(_S.COMPLETED, _PAID),
    (_S.RUNNING, _E.CODE_FAILED): Step(_S.FAILED, _PAID),
    (_S.RUNNING, _E.ENVIRONMENT_FAILED): Step(_S.FAILED, _FREE),  # its code never ran
    (_S.RUNNING, _E.ATTEMPT_FAILED): Step(_S.QUEUED),
    (_S.RUNNING, _E.TRIES_EXHAUSTED): Step(_S.FAILED, _FREE),
    (_S.RUNNING, _E.HANDED_BACK): Step(_S.QUEUED),
    (_S.RUNNING, _E.CANCEL_ASKED): Step(_S.RUNNING, (Effect.STOP,)),
    (_S.RUNNING, _E.STOPPED): Step(_S.CANCELLED, _PAID),
    (_S.RUNNING, _E.CLOSED): Step(_S.COMPLETED, _PAID),
    (_S.RUNNING, _E.ALL_REPORTED): Step(_S.VERIFYING),
    (_S.VERIFYING, _E.RESULT_ACCEPTED): Step(_S.COMPLETED, _PAID),
    (_S.VERIFYING, _E.NO_QUORUM): Step(_S.RUNNING),
    (_S.VERIFYING, _E.TRIES_EXHAUSTED): Step(_S.FAILED, _FREE),
    (_S.VERIFYING, _E.CANCEL_ASKED): Step(_S.CANCELLED, _PAID),
}


def advance(state: JobState, event: JobEvent) -> Step:
    """Return what ``event`` does to a job in ``state``.

    Raises:
        Conflict: it cannot happen there.
    """
    step = TRANSITIONS.get((state, event))
    if step is None:
        raise Conflict(
            f"A job that is {state} cannot be {event.replace('_', ' ')}.",
            hint="Look at its state with `gridx jobs` and decide again.",
            state=str(state),
            event=str(event),
        )
    return step


_OWN_FAULT: Final = frozenset({Cause.ERROR, Cause.TIMEOUT, Cause.OUT_OF_MEMORY, Cause.CRASHED})


def event_for_report(cause: Cause, *, cancel_wanted: bool, is_last_try: bool) -> JobEvent:
    """Return what a report with ``cause`` means for its job.

    A worker that says "cancelled" when nobody asked for it has failed: it cannot charge for
    stopping somebody's job. ``is_last_try``: no other attempt follows when this one failed.
    """
    if cause is Cause.COMPLETED:
        return JobEvent.CODE_COMPLETED
    if cause in _OWN_FAULT:
        return JobEvent.CODE_FAILED
    if cause is Cause.ENVIRONMENT:
        return JobEvent.ENVIRONMENT_FAILED
    return event_for_loss(cancel_wanted=cancel_wanted, is_last_try=is_last_try)


def event_for_hand_back(
    attempt: int, spared: int, *, is_polite: bool, max_attempts: int, most_attempts: int
) -> JobEvent:
    """Return what it means that a worker will not run (or go on with) attempt ``attempt``.

    A lender who pauses has done nothing wrong, and neither has the job: its attempt is spared.
    Only the others count towards ``max_attempts``, so that a job which no worker can run ends
    with a reason. ``most_attempts`` bounds all of them together, against a worker that gives
    back and takes again for ever.
    """
    counted = attempt - spared
    if attempt >= most_attempts or (counted >= max_attempts and not is_polite):
        return JobEvent.TRIES_EXHAUSTED
    return JobEvent.HANDED_BACK


def event_for_loss(*, cancel_wanted: bool, is_last_try: bool) -> JobEvent:
    """Return what an attempt that ended without a result of its own means for its job."""
    if cancel_wanted:
        return JobEvent.STOPPED
    return JobEvent.TRIES_EXHAUSTED if is_last_try else JobEvent.ATTEMPT_FAILED


_ERROR: Final[Mapping[Cause, type[GridXError]]] = {
    Cause.ERROR: JobFailed,
    Cause.TIMEOUT: RemoteTimeout,
    Cause.OUT_OF_MEMORY: RemoteOutOfMemory,
    Cause.CRASHED: RemoteCrash,
    Cause.CANCELLED: JobCancelled,
    Cause.ENVIRONMENT: EnvironmentFailed,
    Cause.SANDBOX_FAILED: WorkerLost,
}
MAX_MESSAGE_CHARS = 1000
MAX_LOG_CHARS = 4096  # of what a failed installation said: its end tells what went wrong


def told_by_worker(cause: Cause, message: str) -> str:
    """Return what a worker says of an end, cut to what is kept of it."""
    if cause is Cause.ENVIRONMENT:
        return clean_text(message[-MAX_LOG_CHARS:])[-MAX_LOG_CHARS:]
    return message[:MAX_MESSAGE_CHARS]


def believed(cause: Cause, *, has_requirements: bool) -> Cause:
    """Return the cause that a worker's word counts as.

    A job that lists no packages cannot fail at them: then its worker did.
    """
    if cause is Cause.ENVIRONMENT and not has_requirements:
        return Cause.SANDBOX_FAILED
    return cause


def reason_for_report(
    cause: Cause, message: str, exit_code: int | None, limits: Limits
) -> Reason | None:
    """Return what the user is told of a job that ended with this report (completed: nothing).

    ``message`` is the worker's; ours, which names the limit, comes before it.
    """
    error = _ERROR.get(cause)
    if error is None:
        return None
    ours = {
        Cause.TIMEOUT: f"The job was stopped at its time limit of {limits.timeout_s:g} s.",
        Cause.OUT_OF_MEMORY: "The job was stopped at its memory limit of"
        f" {format_bytes(limits.memory_bytes)}.",
        Cause.CANCELLED: reason_for_cancel().message,
    }
    fallback = {
        Cause.ERROR: "The code raised an error."
        if exit_code is None
        else f"The code ended with exit code {exit_code}.",
        Cause.CRASHED: "The job's process ended without a result.",
        Cause.ENVIRONMENT: "The packages that the job lists could not be installed.",
        Cause.SANDBOX_FAILED: "No worker could run the job.",
    }
    sentence = ours.get(cause) or told_by_worker(cause, message) or fallback[cause]
    return Reason(code=error.code, message=sentence, hint=error.default_hint)


def reason_for_cancel() -> Reason:
    """Return what is shown of a job that its user stopped."""
    return Reason(
        code=JobCancelled.code,
        message="The job was stopped on its user's wish.",
        hint=JobCancelled.default_hint,
    )
