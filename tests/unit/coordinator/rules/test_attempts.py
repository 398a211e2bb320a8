"""Every row of the attempt table."""

from __future__ import annotations

import pytest

from coordinator.rules.attempts import (
    TRANSITIONS,
    AttemptEvent,
    advance,
    event_for_report,
    is_live,
)
from gridx.errors import StaleLease
from gridx.states import AttemptState, Cause

S, E = AttemptState, AttemptEvent
FROM_LIVE = {
    E.REPORTED: S.REPORTED,
    E.ACCEPTED: S.ACCEPTED,
    E.WORKER_FAILED: S.FAILED,
    E.HANDED_BACK: S.FAILED,
    E.LEASE_EXPIRED: S.LOST,
    E.STOPPED: S.CANCELLED,
}
EXPECTED = {
    (S.LEASED, E.STARTED): S.RUNNING,
    **{(S.LEASED, event): state for event, state in FROM_LIVE.items()},
    **{(S.RUNNING, event): state for event, state in FROM_LIVE.items()},
    (S.REPORTED, E.ACCEPTED): S.ACCEPTED,
    (S.REPORTED, E.REFUSED): S.REJECTED,
    (S.REPORTED, E.STOPPED): S.CANCELLED,
}


@pytest.mark.parametrize(
    "pair", [(state, event) for state in AttemptState for event in AttemptEvent], ids=" + ".join
)
def test_an_attempt_moves_as_its_row_says_and_is_fenced_without_one(
    pair: tuple[AttemptState, AttemptEvent],
) -> None:
    if pair in EXPECTED:
        assert advance(*pair) is EXPECTED[pair]
    else:
        with pytest.raises(StaleLease):
            advance(*pair)


def test_only_leased_and_running_attempts_are_leases() -> None:
    assert {state for state in AttemptState if is_live(state)} == {S.LEASED, S.RUNNING}


def test_no_event_leads_back_to_life() -> None:
    for (before, _), after in TRANSITIONS.items():
        assert is_live(before) or not is_live(after)


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("cancel_wanted", [True, False])
def test_a_report_is_accepted_unless_the_worker_did_not_run_the_job_to_an_end_of_its_own(
    cause: Cause, cancel_wanted: bool
) -> None:
    event = event_for_report(cause, cancel_wanted=cancel_wanted)
    if cause in (Cause.SANDBOX_FAILED, Cause.CANCELLED):
        assert event is (E.STOPPED if cancel_wanted else E.WORKER_FAILED)
    else:
        assert event is E.ACCEPTED
