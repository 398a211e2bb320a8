"""What may happen to a call of a session, as a table: (state, event) to the next state.

A session has one call at a time: the next is accepted when the last has ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from gridx.errors import Conflict, JobCancelled, SessionEnded, StaleLease, WorkerLost
from gridx.schemas import Limits, Reason
from gridx.states import FINAL_CALL_STATES, CallState, Cause

from .jobs import reason_for_report


class CallEvent(StrEnum):
    """What can happen to a call."""

    STARTED = "started"  # its sandbox has it
    COMPLETED = "completed"  # it ran to its end
    FAILED = "failed"  # its own error or limit, or its worker could not run it
    STOPPED = "stopped"  # its user interrupted it, or cancelled the session
    SESSION_CLOSED = "session_closed"  # its session was closed while it waited or ran
    SESSION_LOST = "session_lost"  # its session's sandbox is gone


_S, _E = CallState, CallEvent

TRANSITIONS: Final[Mapping[tuple[CallState, CallEvent], CallState]] = {
    (_S.QUEUED, _E.STARTED): _S.RUNNING,
    # "started" may be written late or never: a short call goes straight to its end
    **{
        (live, event): end
        for live in (_S.QUEUED, _S.RUNNING)
        for event, end in (
            (_E.COMPLETED, _S.COMPLETED),
            (_E.FAILED, _S.FAILED),
            (_E.STOPPED, _S.CANCELLED),
            (_E.SESSION_CLOSED, _S.CANCELLED),
            (_E.SESSION_LOST, _S.FAILED),
        )
    },
}


def advance(state: CallState, event: CallEvent) -> CallState:
    """Return the state that ``event`` leads to.

    Raises:
        StaleLease: the call has ended, or the event cannot happen to it.
    """
    after = TRANSITIONS.get((state, event))
    if after is None:
        raise StaleLease(
            f"A call that is {state} cannot be {event.replace('_', ' ')}.",
            state=str(state),
            event=str(event),
        )
    return after


def event_for_report(cause: Cause, *, stop_wanted: bool) -> CallEvent:
    """Return what a report of a call with ``cause`` means for it, while its session goes on.

    A worker that says "cancelled" when nobody asked for it has failed at the call.
    """
    if cause is Cause.COMPLETED:
        return CallEvent.COMPLETED
    if cause is Cause.CANCELLED and stop_wanted:
        return CallEvent.STOPPED
    return CallEvent.FAILED


def reason_for_call(
    cause: Cause,
    message: str,
    exit_code: int | None,
    limits: Limits,
    *,
    timeout_s: float,
    stop_wanted: bool,
) -> Reason | None:
    """Return what the user is told of a call that ended so (completed: nothing).

    Args:
        timeout_s: the call's own limit; ``limits`` are the session's.
    """
    if cause is Cause.TIMEOUT:
        reason = reason_for_report(cause, message, exit_code, limits)
        assert reason is not None
        return Reason(
            code=reason.code,
            message=f"The call was stopped at its time limit of {timeout_s:g} s.",
            hint=reason.hint,
        )
    if cause is Cause.ENVIRONMENT:  # its session has its packages: they were there before it
        cause = Cause.SANDBOX_FAILED
    if cause is Cause.CANCELLED:
        if stop_wanted:
            return Reason(
                code=JobCancelled.code,
                message="The call was interrupted on its user's wish; the session is still open.",
                hint=JobCancelled.default_hint,
            )
        cause = Cause.SANDBOX_FAILED
    if cause is Cause.SANDBOX_FAILED:
        return Reason(
            code=WorkerLost.code,
            message="The worker could not run this call"
            + (f": {message[:500].rstrip('.')}." if message else "."),
            hint="The session is still open with its variables: run the cell again.",
        )
    return reason_for_report(cause, message, exit_code, limits)


def reason_for_close() -> Reason:
    """Return what is shown of a call whose session was closed under it."""
    return Reason(
        code=SessionEnded.code,
        message="The session was closed before this call had ended.",
        hint=SessionEnded.default_hint,
    )


def check_next(call: int, *, newest: int, newest_state: CallState) -> None:
    """Refuse a call that is not the one whose turn it is.

    Raises:
        Conflict: the last one has not ended, or this is not the next number.
    """
    if newest_state not in FINAL_CALL_STATES:
        raise Conflict(
            f"Call {newest} of this session has not ended: a session runs one call at a time.",
            hint="Wait for its end, or interrupt it.",
            newest=newest,
        )
    if call != newest + 1:
        raise Conflict(
            f"The next call of this session is {newest + 1}, not {call}.",
            hint="Attach to the session again: another notebook may have gone on with it.",
            newest=newest,
        )
