"""Every row of the job table, and what a report means for a job."""

from __future__ import annotations

import pytest

from coordinator.rules.jobs import (
    MAX_LOG_CHARS,
    TRANSITIONS,
    Effect,
    JobEvent,
    Step,
    advance,
    believed,
    event_for_hand_back,
    event_for_loss,
    event_for_report,
    reason_for_report,
)
from gridx.errors import Conflict, error_classes
from gridx.schemas import Limits
from gridx.states import FINAL_JOB_STATES, Cause, JobState

S, E = JobState, JobEvent
EXPECTED = {
    (S.QUEUED, E.CLAIMED): Step(S.RUNNING),
    (S.QUEUED, E.CANCEL_ASKED): Step(S.CANCELLED, (Effect.RELEASE,)),
    (S.RUNNING, E.CODE_COMPLETED): Step(S.COMPLETED, (Effect.SETTLE,)),
    (S.RUNNING, E.CODE_FAILED): Step(S.FAILED, (Effect.SETTLE,)),
    (S.RUNNING, E.ENVIRONMENT_FAILED): Step(S.FAILED, (Effect.RELEASE,)),
    (S.RUNNING, E.ATTEMPT_FAILED): Step(S.QUEUED),
    (S.RUNNING, E.TRIES_EXHAUSTED): Step(S.FAILED, (Effect.RELEASE,)),
    (S.RUNNING, E.HANDED_BACK): Step(S.QUEUED),
    (S.RUNNING, E.CANCEL_ASKED): Step(S.RUNNING, (Effect.STOP,)),
    (S.RUNNING, E.STOPPED): Step(S.CANCELLED, (Effect.SETTLE,)),
    (S.RUNNING, E.CLOSED): Step(S.COMPLETED, (Effect.SETTLE,)),
    (S.RUNNING, E.ALL_REPORTED): Step(S.VERIFYING),
    (S.VERIFYING, E.RESULT_ACCEPTED): Step(S.COMPLETED, (Effect.SETTLE,)),
    (S.VERIFYING, E.NO_QUORUM): Step(S.RUNNING),
    (S.VERIFYING, E.TRIES_EXHAUSTED): Step(S.FAILED, (Effect.RELEASE,)),
    (S.VERIFYING, E.CANCEL_ASKED): Step(S.CANCELLED, (Effect.SETTLE,)),
}
PAIRS = [(state, event) for state in JobState for event in JobEvent]


@pytest.mark.parametrize("pair", PAIRS, ids=" + ".join)
def test_a_job_moves_as_its_row_says_and_nowhere_without_a_row(
    pair: tuple[JobState, JobEvent],
) -> None:
    if pair in EXPECTED:
        assert advance(*pair) == EXPECTED[pair]
    else:
        with pytest.raises(Conflict):
            advance(*pair)


@pytest.mark.parametrize("pair", TRANSITIONS, ids=" + ".join)
def test_the_hold_is_closed_exactly_when_the_job_ends(pair: tuple[JobState, JobEvent]) -> None:
    step = TRANSITIONS[pair]
    closing = {Effect.SETTLE, Effect.RELEASE} & set(step.effects)
    assert len(closing) == (step.state in FINAL_JOB_STATES)


def test_final_states_have_no_way_out() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] in FINAL_JOB_STATES]


def test_every_state_can_be_reached_and_left_for_an_end() -> None:
    reached = {S.QUEUED} | {step.state for step in TRANSITIONS.values()}
    assert reached == set(JobState)
    ends: set[JobState] = set(FINAL_JOB_STATES)
    for _ in JobState:
        ends |= {state for (state, _), step in TRANSITIONS.items() if step.state in ends}
    assert ends == set(JobState)


@pytest.mark.parametrize(
    ("cause", "cancel_wanted", "is_last_try", "event"),
    [
        (Cause.COMPLETED, False, False, E.CODE_COMPLETED),
        (Cause.COMPLETED, True, True, E.CODE_COMPLETED),
        (Cause.ERROR, False, True, E.CODE_FAILED),
        (Cause.ERROR, True, False, E.CODE_FAILED),
        (Cause.TIMEOUT, False, False, E.CODE_FAILED),
        (Cause.OUT_OF_MEMORY, False, False, E.CODE_FAILED),
        (Cause.CRASHED, False, False, E.CODE_FAILED),
        (Cause.ENVIRONMENT, False, False, E.ENVIRONMENT_FAILED),
        (Cause.ENVIRONMENT, True, True, E.ENVIRONMENT_FAILED),
        (Cause.CANCELLED, True, False, E.STOPPED),
        (Cause.SANDBOX_FAILED, True, True, E.STOPPED),
        (Cause.SANDBOX_FAILED, False, False, E.ATTEMPT_FAILED),
        (Cause.SANDBOX_FAILED, False, True, E.TRIES_EXHAUSTED),
    ],
)
def test_a_report_becomes_the_event_of_who_is_to_blame(
    cause: Cause, cancel_wanted: bool, is_last_try: bool, event: JobEvent
) -> None:
    assert event_for_report(cause, cancel_wanted=cancel_wanted, is_last_try=is_last_try) is event


def test_a_worker_cannot_cancel_a_job_that_nobody_cancelled() -> None:
    event = event_for_report(Cause.CANCELLED, cancel_wanted=False, is_last_try=False)
    assert event is E.ATTEMPT_FAILED


def test_a_lost_attempt_is_retried_until_no_try_is_left_or_cancel_is_wanted() -> None:
    assert event_for_loss(cancel_wanted=False, is_last_try=False) is E.ATTEMPT_FAILED
    assert event_for_loss(cancel_wanted=False, is_last_try=True) is E.TRIES_EXHAUSTED
    assert event_for_loss(cancel_wanted=True, is_last_try=True) is E.STOPPED


@pytest.mark.parametrize("cause", Cause)
def test_every_bad_end_has_a_known_code_a_sentence_and_a_hint(cause: Cause) -> None:
    reason = reason_for_report(cause, "", None, Limits(timeout_s=2.5))
    if cause is Cause.COMPLETED:
        assert reason is None
        return
    assert reason is not None
    assert reason.code in error_classes()
    assert reason.message.endswith(".")
    assert reason.hint


def test_a_limit_is_named_whatever_the_worker_says() -> None:
    reason = reason_for_report(Cause.TIMEOUT, "lies", None, Limits(timeout_s=2.5))
    assert reason is not None
    assert reason.message == "The job was stopped at its time limit of 2.5 s."
    reason = reason_for_report(Cause.OUT_OF_MEMORY, "lies", None, Limits())
    assert reason is not None
    assert "1 GiB" in reason.message


def test_what_a_worker_says_is_cut_to_a_length() -> None:
    reason = reason_for_report(Cause.ERROR, "x" * 100_000, 1, Limits())
    assert reason is not None
    assert len(reason.message) == 1000


def test_a_failed_installation_is_told_with_the_end_of_its_log() -> None:
    log = "x" * 10_000 + "\n\x1b]0;title\x07ERROR: No matching distribution found for polras"
    reason = reason_for_report(Cause.ENVIRONMENT, log, None, Limits())
    assert reason is not None
    assert reason.code == "environment_failed"
    assert reason.message.endswith("x\nERROR: No matching distribution found for polras")
    assert 4000 < len(reason.message) <= MAX_LOG_CHARS


def test_a_job_without_packages_does_not_fail_at_them() -> None:
    assert believed(Cause.ENVIRONMENT, has_requirements=True) is Cause.ENVIRONMENT
    assert believed(Cause.ENVIRONMENT, has_requirements=False) is Cause.SANDBOX_FAILED
    assert believed(Cause.ERROR, has_requirements=False) is Cause.ERROR


@pytest.mark.parametrize(
    ("attempt", "spared", "is_polite", "event"),
    [
        (1, 0, False, E.HANDED_BACK),
        (4, 0, False, E.HANDED_BACK),
        (5, 0, False, E.TRIES_EXHAUSTED),
        (5, 1, False, E.HANDED_BACK),
        (5, 4, True, E.HANDED_BACK),
        (49, 48, True, E.HANDED_BACK),
        (49, 5, True, E.HANDED_BACK),
        (50, 49, True, E.TRIES_EXHAUSTED),
    ],
)
def test_polite_lenders_do_not_use_a_jobs_attempts_up(
    attempt: int, spared: int, is_polite: bool, event: JobEvent
) -> None:
    told = event_for_hand_back(
        attempt, spared, is_polite=is_polite, max_attempts=5, most_attempts=50
    )
    assert told is event
