"""What may happen to an attempt, as a table. Final states never change: late reports are fenced."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from gridx.errors import StaleLease
from gridx.states import LIVE_ATTEMPT_STATES, AttemptState, Cause


class AttemptEvent(StrEnum):
    """What can happen to an attempt."""

    STARTED = "started"  # its worker says that the sandbox has the job
    REPORTED = "reported"  # its report is in and waits for verification
    ACCEPTED = "accepted"  # its report is the job's end, good or bad
    REFUSED = "refused"  # verification found another result right
    WORKER_FAILED = "worker_failed"  # its worker could not run it
    HANDED_BACK = "handed_back"  # its worker will not run it
    LEASE_EXPIRED = "lease_expired"
    STOPPED = "stopped"  # its user wished so


_S, _E = AttemptState, AttemptEvent

TRANSITIONS: Final[Mapping[tuple[AttemptState, AttemptEvent], AttemptState]] = {
    (_S.LEASED, _E.STARTED): _S.RUNNING,
    # "started" may be written late or never: a short attempt goes straight to its end
    **{
        (live, event): end
        for live in (_S.LEASED, _S.RUNNING)
        for event, end in (
            (_E.REPORTED, _S.REPORTED),
            (_E.ACCEPTED, _S.ACCEPTED),
            (_E.WORKER_FAILED, _S.FAILED),
            (_E.HANDED_BACK, _S.FAILED),
            (_E.LEASE_EXPIRED, _S.LOST),
            (_E.STOPPED, _S.CANCELLED),
        )
    },
    (_S.REPORTED, _E.ACCEPTED): _S.ACCEPTED,
    (_S.REPORTED, _E.REFUSED): _S.REJECTED,
    (_S.REPORTED, _E.STOPPED): _S.CANCELLED,
}


def advance(state: AttemptState, event: AttemptEvent) -> AttemptState:
    """Return the state that ``event`` leads to.

    Raises:
        StaleLease: the attempt has ended, or the event cannot happen to it.
    """
    after = TRANSITIONS.get((state, event))
    if after is None:
        raise StaleLease(
            f"An attempt that is {state} cannot be {event.replace('_', ' ')}.",
            state=str(state),
            event=str(event),
        )
    return after


def is_live(state: AttemptState) -> bool:
    """True while the attempt is a lease: a report about it counts."""
    return state in LIVE_ATTEMPT_STATES


def event_for_report(cause: Cause, *, cancel_wanted: bool) -> AttemptEvent:
    """Return what a report with ``cause`` means for its attempt."""
    if cause not in (Cause.SANDBOX_FAILED, Cause.CANCELLED):
        return AttemptEvent.ACCEPTED
    return AttemptEvent.STOPPED if cancel_wanted else AttemptEvent.WORKER_FAILED
