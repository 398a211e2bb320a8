"""How a session ends: when, for whom it counts, and what its user is told.

A session is one job with one attempt. It is paid for as long as it was open, and it is never
retried: nothing could bring its variables back.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from gridx.errors import GridXError, JobCancelled, RemoteTimeout, SessionEnded, WorkerLost
from gridx.quantities import format_duration
from gridx.schemas import Limits, Reason, SessionSpec
from gridx.states import Cause, JobState

from . import calls as call_rules
from . import jobs as job_rules
from .calls import CallEvent
from .jobs import JobEvent
from .leases import SENTENCES, EndOfLease

_US_PER_S = 1_000_000
_AT_LIMIT_US = 2 * _US_PER_S  # a worker's clock starts a moment before the coordinator's
_GONE = "Its variables there are gone."
_AGAIN = "Run the cells again: that opens a new session, with none of the old variables."


class EndOfSession(StrEnum):
    """Why a session is closed."""

    ASKED = "asked"  # its user closed it
    IDLE = "idle"  # no call came for so long
    LIMIT = "limit"  # it was open for as long as it may


class Open(msgspec.Struct, frozen=True, kw_only=True):
    """What the database knows of the time of a session that lives, in microseconds."""

    idle_us: int | None = None  # it ends then; None while a call waits or runs
    limit_us: int | None = None  # it ends then in any case; None until it has started
    end_us: int | None = None  # since then it has to end
    why: EndOfSession | None = None


def find_end(opened: Open, now_us: int) -> EndOfSession | None:
    """Return why a session has to be closed now; None while it may stay open, or closes already."""
    if opened.end_us is not None:
        return None
    if opened.limit_us is not None and opened.limit_us <= now_us:
        return EndOfSession.LIMIT
    if opened.idle_us is not None and opened.idle_us <= now_us:
        return EndOfSession.IDLE
    return None


def reason_for_end(why: EndOfSession | None, session: SessionSpec, limits: Limits) -> Reason:
    """Return what is shown of a session that was closed; None: its own code ended it."""
    sentence = {
        None: "was ended by its own code",
        EndOfSession.ASKED: "was closed by its user",
        EndOfSession.IDLE: f"was closed after {_span(session.idle_s)} without a call",
        EndOfSession.LIMIT: f"was closed at the end of the {_span(limits.timeout_s)} that it was"
        " opened for",
    }[why]
    return Reason(
        code=SessionEnded.code, message=f"Session {session.name} {sentence}. {_GONE}", hint=_AGAIN
    )


def _span(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    if rest or not minutes:
        return format_duration(seconds)
    return "1 minute" if minutes == 1 else f"{minutes:.0f} minutes"


def reason_for_loss(why: EndOfLease, session: SessionSpec) -> Reason:
    """Return what the user is told of a session whose sandbox was lost."""
    return _lost(SENTENCES[why], session)


def reason_for_hand_back(message: str, session: SessionSpec) -> Reason:
    """Return the same for one that its worker gave back."""
    said = f' and said: "{message[:500]}"' if message else ""
    return _lost(f"its worker stopped{said}", session)


def _lost(sentence: str, session: SessionSpec) -> Reason:
    return Reason(
        code=WorkerLost.code,
        message=f"Session {session.name} is lost: {sentence.rstrip('.')}. {_GONE}",
        hint=f"{_AGAIN} Nothing was charged.",
    )


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker's last report does to the session, and to the call that had not ended."""

    job_event: JobEvent
    reason: Reason
    call_event: CallEvent
    call_reason: Reason | None


def judge(
    cause: Cause,
    message: str,
    exit_code: int | None,
    *,
    session: SessionSpec,
    limits: Limits,
    why: EndOfSession | None,
    cancel_wanted: bool,
    interrupt_wanted: bool,
    is_at_limit: bool,
) -> Verdict:
    """Return what the end of a session's sandbox means.

    Args:
        why: what the session was asked to end for, if it was.
        interrupt_wanted: its call was; a sandbox may have to be killed for that.
        is_at_limit: it was open for as long as it may.
    """
    if cause is Cause.TIMEOUT and is_at_limit:
        cause, why = Cause.COMPLETED, EndOfSession.LIMIT
    if cause is Cause.COMPLETED:
        return _closed(why, JobEvent.CODE_COMPLETED, session, limits)
    if cause in (Cause.CANCELLED, Cause.SANDBOX_FAILED):
        if cancel_wanted:
            return _stopped(job_rules.reason_for_cancel())
        if why is not None:
            return _closed(why, JobEvent.CLOSED, session, limits)
        if cause is Cause.CANCELLED and interrupt_wanted:
            return _stopped(
                Reason(
                    code=JobCancelled.code,
                    message="The call did not obey the interrupt and was killed, and with it"
                    f" session {session.name}. {_GONE}",
                    hint=_AGAIN,
                )
            )
        if cause is Cause.CANCELLED:
            message = "its worker stopped it though nobody had asked for that"
        reason = _lost(message or "its worker could not keep its sandbox", session)
        return Verdict(
            job_event=JobEvent.TRIES_EXHAUSTED,
            reason=reason,
            call_event=CallEvent.SESSION_LOST,
            call_reason=reason,
        )
    told = job_rules.reason_for_report(cause, message, exit_code, limits)
    assert told is not None
    if cause is Cause.ENVIRONMENT:  # it has never been open
        return Verdict(
            job_event=JobEvent.ENVIRONMENT_FAILED,
            reason=told,
            call_event=CallEvent.FAILED,
            call_reason=told,
        )
    sentence = told.message
    if cause is Cause.TIMEOUT:
        sentence = "The call did not stop at its time limit and was killed."
    reason = Reason(
        code=told.code,
        message=f"{sentence} Session {session.name} has ended with it. {_GONE}",
        hint=told.hint,
    )
    return Verdict(
        job_event=JobEvent.CODE_FAILED,
        reason=reason,
        call_event=CallEvent.FAILED,
        call_reason=reason,
    )


def judge_end(
    job_event: JobEvent,
    reason: Reason,
    *,
    session: SessionSpec,
    limits: Limits,
    why: EndOfSession | None,
) -> Verdict:
    """Return the same for a session that ends without a report, by ``job_event``."""
    if job_event is JobEvent.CLOSED:
        return _closed(why, job_event, session, limits)
    if job_event in (JobEvent.STOPPED, JobEvent.CANCEL_ASKED):
        return _stopped(reason, job_event)
    return Verdict(
        job_event=job_event, reason=reason, call_event=CallEvent.SESSION_LOST, call_reason=reason
    )


def _stopped(reason: Reason, job_event: JobEvent = JobEvent.STOPPED) -> Verdict:
    return Verdict(
        job_event=job_event, reason=reason, call_event=CallEvent.STOPPED, call_reason=reason
    )


def _closed(
    why: EndOfSession | None, job_event: JobEvent, session: SessionSpec, limits: Limits
) -> Verdict:
    reason = reason_for_end(why, session, limits)
    if why is None:  # the code of the call ended its process in good order
        return Verdict(
            job_event=job_event, reason=reason, call_event=CallEvent.COMPLETED, call_reason=None
        )
    if why is EndOfSession.LIMIT:
        late = Reason(
            code=RemoteTimeout.code,
            message=reason.message,
            hint="Open the next session for longer.",
        )
        return Verdict(
            job_event=job_event, reason=reason, call_event=CallEvent.FAILED, call_reason=late
        )
    return Verdict(
        job_event=job_event,
        reason=reason,
        call_event=CallEvent.SESSION_CLOSED,
        call_reason=call_rules.reason_for_close(),
    )


def is_at_limit(started_us: int, now_us: int, limits: Limits) -> bool:
    """Return whether a session that started then has been open for as long as it may."""
    return now_us - started_us >= limits.timeout_s * _US_PER_S - _AT_LIMIT_US


def refusal(state: JobState, reason: Reason | None, name: str) -> GridXError:
    """Return the error for somebody who comes with a call when the session has ended."""
    message = reason.message if reason else f"Session {name} has ended. {_GONE}"
    hint = reason.hint if reason else _AGAIN
    cls = WorkerLost if reason and reason.code == WorkerLost.code else SessionEnded
    return cls(message, hint=hint, session=name, state=str(state))
