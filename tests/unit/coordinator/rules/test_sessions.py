"""When a session ends, for whom it counts, and what is said about it."""

from __future__ import annotations

import pytest

from coordinator.rules.calls import CallEvent
from coordinator.rules.jobs import JobEvent
from coordinator.rules.leases import EndOfLease
from coordinator.rules.sessions import (
    EndOfSession,
    Open,
    find_end,
    is_at_limit,
    judge,
    judge_end,
    reason_for_end,
    reason_for_hand_back,
    reason_for_loss,
    refusal,
)
from gridx.errors import SessionEnded, WorkerLost, error_classes
from gridx.schemas import Limits, Reason, SessionSpec
from gridx.states import Cause, JobState

SESSION = SessionSpec(name="main", idle_s=600)
LIMITS = Limits(timeout_s=3600)
J, C, W = JobEvent, CallEvent, EndOfSession


@pytest.mark.parametrize(
    ("opened", "why"),
    [
        (Open(), None),
        (Open(idle_us=101), None),
        (Open(idle_us=100), W.IDLE),
        (Open(limit_us=100), W.LIMIT),
        (Open(idle_us=100, limit_us=100), W.LIMIT),
        (Open(idle_us=50, limit_us=60, end_us=70, why=W.ASKED), None),
    ],
)
def test_a_session_ends_when_it_was_idle_or_open_for_long_enough_and_once(
    opened: Open, why: EndOfSession | None
) -> None:
    assert find_end(opened, 100) is why


@pytest.mark.parametrize(
    ("cause", "why", "cancel", "interrupt", "at_limit", "job", "call", "code"),
    [
        # closed on somebody's wish, or by its own code
        (Cause.COMPLETED, W.ASKED, 0, 0, 0, J.CODE_COMPLETED, C.SESSION_CLOSED, "session_ended"),
        (Cause.COMPLETED, W.IDLE, 0, 0, 0, J.CODE_COMPLETED, C.SESSION_CLOSED, "session_ended"),
        (Cause.COMPLETED, W.LIMIT, 0, 0, 1, J.CODE_COMPLETED, C.FAILED, "timeout"),
        (Cause.COMPLETED, None, 0, 0, 0, J.CODE_COMPLETED, C.COMPLETED, None),
        (Cause.TIMEOUT, None, 0, 0, 1, J.CODE_COMPLETED, C.FAILED, "timeout"),
        # its own fault: paid
        (Cause.TIMEOUT, None, 0, 0, 0, J.CODE_FAILED, C.FAILED, "timeout"),
        (Cause.OUT_OF_MEMORY, None, 0, 0, 0, J.CODE_FAILED, C.FAILED, "out_of_memory"),
        (Cause.CRASHED, W.ASKED, 0, 0, 0, J.CODE_FAILED, C.FAILED, "crashed"),
        (Cause.ENVIRONMENT, None, 0, 0, 0, J.ENVIRONMENT_FAILED, C.FAILED, "environment_failed"),
        # stopped on its user's wish: paid
        (Cause.CANCELLED, None, 1, 0, 0, J.STOPPED, C.STOPPED, "cancelled"),
        (Cause.CANCELLED, None, 0, 1, 0, J.STOPPED, C.STOPPED, "cancelled"),
        (Cause.SANDBOX_FAILED, None, 1, 0, 0, J.STOPPED, C.STOPPED, "cancelled"),
        (Cause.SANDBOX_FAILED, W.IDLE, 0, 0, 0, J.CLOSED, C.SESSION_CLOSED, "session_ended"),
        (Cause.CANCELLED, W.ASKED, 0, 1, 0, J.CLOSED, C.SESSION_CLOSED, "session_ended"),
        # the infrastructure's: nothing is paid
        (Cause.SANDBOX_FAILED, None, 0, 0, 0, J.TRIES_EXHAUSTED, C.SESSION_LOST, "worker_lost"),
        (Cause.SANDBOX_FAILED, None, 0, 1, 0, J.TRIES_EXHAUSTED, C.SESSION_LOST, "worker_lost"),
        (Cause.CANCELLED, None, 0, 0, 0, J.TRIES_EXHAUSTED, C.SESSION_LOST, "worker_lost"),
    ],
)
def test_the_last_report_ends_session_and_call(
    cause: Cause,
    why: EndOfSession | None,
    cancel: int,
    interrupt: int,
    at_limit: int,
    job: JobEvent,
    call: CallEvent,
    code: str | None,
) -> None:
    verdict = judge(
        cause,
        "",
        None,
        session=SESSION,
        limits=LIMITS,
        why=why,
        cancel_wanted=bool(cancel),
        interrupt_wanted=bool(interrupt),
        is_at_limit=bool(at_limit),
    )
    assert (verdict.job_event, verdict.call_event) == (job, call)
    assert (verdict.call_reason and verdict.call_reason.code) == code
    assert verdict.reason.code in error_classes()
    assert verdict.reason.message.endswith(".")
    assert verdict.reason.hint


@pytest.mark.parametrize("cause", [Cause.TIMEOUT, Cause.OUT_OF_MEMORY, Cause.CRASHED])
def test_a_call_that_takes_its_session_along_says_that_the_variables_are_gone(
    cause: Cause,
) -> None:
    verdict = judge(
        cause,
        "",
        None,
        session=SESSION,
        limits=LIMITS,
        why=None,
        cancel_wanted=False,
        interrupt_wanted=False,
        is_at_limit=False,
    )
    assert "Session main has ended with it. Its variables there are gone." in verdict.reason.message


@pytest.mark.parametrize(
    ("event", "call"),
    [
        (J.CLOSED, C.SESSION_CLOSED),
        (J.STOPPED, C.STOPPED),
        (J.CANCEL_ASKED, C.STOPPED),
        (J.TRIES_EXHAUSTED, C.SESSION_LOST),
    ],
)
def test_an_end_without_a_report_ends_the_call_too(event: JobEvent, call: CallEvent) -> None:
    given = Reason(code="x", message="y.")
    verdict = judge_end(event, given, session=SESSION, limits=LIMITS, why=W.ASKED)
    assert verdict.call_event is call


@pytest.mark.parametrize("why", EndOfLease)
def test_a_lost_session_says_what_happened_what_is_gone_and_what_to_do(why: EndOfLease) -> None:
    reason = reason_for_loss(why, SESSION)
    assert reason.code == WorkerLost.code
    assert reason.message.startswith("Session main is lost: ")
    assert reason.message.endswith("Its variables there are gone.")
    assert reason.hint.startswith("Run the cells again")
    assert "Nothing was charged." in reason.hint
    handed = reason_for_hand_back("going home", SESSION)
    assert 'its worker stopped and said: "going home". Its variables' in handed.message


def test_an_end_is_told_in_words_with_its_time() -> None:
    assert "after 10 minutes without a call" in reason_for_end(W.IDLE, SESSION, LIMITS).message
    assert "of the 60 minutes that it was" in reason_for_end(W.LIMIT, SESSION, LIMITS).message
    half = SessionSpec(name="s", idle_s=0.5)
    assert "after 500 ms without" in reason_for_end(W.IDLE, half, LIMITS).message
    minute = SessionSpec(name="s", idle_s=60)
    assert "after 1 minute without" in reason_for_end(W.IDLE, minute, LIMITS).message


def test_who_comes_too_late_hears_why() -> None:
    lost = refusal(JobState.FAILED, reason_for_loss(EndOfLease.VANISHED, SESSION), "main")
    assert isinstance(lost, WorkerLost)
    closed = refusal(JobState.COMPLETED, reason_for_end(W.IDLE, SESSION, LIMITS), "main")
    assert isinstance(closed, SessionEnded)
    assert "without a call" in closed.message
    assert isinstance(refusal(JobState.CANCELLED, None, "main"), SessionEnded)


def test_a_worker_s_clock_may_end_a_session_a_moment_before_ours() -> None:
    assert is_at_limit(0, 3_599_000_000, LIMITS)
    assert not is_at_limit(0, 3_500_000_000, LIMITS)
