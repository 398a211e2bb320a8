"""Every row of the call table, and what a report means for a call."""

from __future__ import annotations

import pytest

from coordinator.rules.calls import (
    TRANSITIONS,
    CallEvent,
    advance,
    check_next,
    event_for_report,
    reason_for_call,
    reason_for_close,
)
from gridx.errors import Conflict, StaleLease, error_classes
from gridx.schemas import Limits
from gridx.states import FINAL_CALL_STATES, CallState, Cause

S, E = CallState, CallEvent
FROM_LIVE = {
    E.COMPLETED: S.COMPLETED,
    E.FAILED: S.FAILED,
    E.STOPPED: S.CANCELLED,
    E.SESSION_CLOSED: S.CANCELLED,
    E.SESSION_LOST: S.FAILED,
}
EXPECTED = {
    (S.QUEUED, E.STARTED): S.RUNNING,
    **{(S.QUEUED, event): state for event, state in FROM_LIVE.items()},
    **{(S.RUNNING, event): state for event, state in FROM_LIVE.items()},
}


@pytest.mark.parametrize(
    "pair", [(state, event) for state in CallState for event in CallEvent], ids=" + ".join
)
def test_a_call_moves_as_its_row_says_and_is_fenced_without_one(
    pair: tuple[CallState, CallEvent],
) -> None:
    if pair in EXPECTED:
        assert advance(*pair) is EXPECTED[pair]
    else:
        with pytest.raises(StaleLease):
            advance(*pair)


def test_final_states_have_no_way_out() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] in FINAL_CALL_STATES]


@pytest.mark.parametrize(
    ("cause", "stop_wanted", "event"),
    [
        (Cause.COMPLETED, False, E.COMPLETED),
        (Cause.COMPLETED, True, E.COMPLETED),
        (Cause.ERROR, True, E.FAILED),
        (Cause.TIMEOUT, False, E.FAILED),
        (Cause.OUT_OF_MEMORY, False, E.FAILED),
        (Cause.CRASHED, False, E.FAILED),
        (Cause.CANCELLED, True, E.STOPPED),
        (Cause.CANCELLED, False, E.FAILED),
        (Cause.SANDBOX_FAILED, False, E.FAILED),
        (Cause.ENVIRONMENT, False, E.FAILED),
    ],
)
def test_a_report_becomes_the_event_of_what_happened(
    cause: Cause, stop_wanted: bool, event: CallEvent
) -> None:
    assert event_for_report(cause, stop_wanted=stop_wanted) is event


@pytest.mark.parametrize("stop_wanted", [True, False])
@pytest.mark.parametrize("cause", Cause)
def test_every_bad_end_has_a_known_code_a_sentence_and_a_hint(
    cause: Cause, stop_wanted: bool
) -> None:
    reason = reason_for_call(cause, "", None, Limits(), timeout_s=2.5, stop_wanted=stop_wanted)
    if cause is Cause.COMPLETED:
        assert reason is None
        return
    assert reason is not None
    assert reason.code in error_classes()
    assert reason.message.endswith(".")
    assert reason.hint


def test_the_limit_of_a_call_is_its_own_and_not_the_session_s() -> None:
    reason = reason_for_call(
        Cause.TIMEOUT, "lies", None, Limits(timeout_s=3600), timeout_s=2.5, stop_wanted=False
    )
    assert reason is not None
    assert reason.message == "The call was stopped at its time limit of 2.5 s."


def test_a_call_that_its_worker_could_not_run_says_so_and_that_the_session_is_open() -> None:
    reason = reason_for_call(
        Cause.SANDBOX_FAILED, "a blob did not come", None, Limits(), timeout_s=1, stop_wanted=False
    )
    assert reason is not None
    assert reason.message == "The worker could not run this call: a blob did not come."
    assert "still open" in reason.hint
    assert reason_for_close().code == "session_ended"


def test_one_call_at_a_time_and_in_order() -> None:
    check_next(3, newest=2, newest_state=S.FAILED)
    with pytest.raises(Conflict, match="Call 2 of this session has not ended"):
        check_next(3, newest=2, newest_state=S.RUNNING)
    with pytest.raises(Conflict, match="is 3, not 4"):
        check_next(4, newest=2, newest_state=S.COMPLETED)
    with pytest.raises(Conflict, match="is 3, not 1"):
        check_next(1, newest=2, newest_state=S.COMPLETED)
