"""When a lease stands, when it is over, and what a worker that comes back keeps."""

from __future__ import annotations

import pytest

from coordinator.rules.leases import (
    EndOfLease,
    Lease,
    adopt,
    after,
    due_when_granted,
    due_when_started,
    due_while_moving,
    find_end,
    paid_until,
    reason_for_loss,
)

NOW = 1_000_000_000


def lease(**changes: int | None) -> Lease:
    return Lease(**{"claimed_us": NOW - 500, "due_us": NOW + 1, **changes})  # type: ignore[arg-type]


def test_a_lease_of_a_connected_worker_stands() -> None:
    assert find_end(lease(), NOW) is None


def test_the_grace_keeps_a_lease_until_its_last_microsecond() -> None:
    assert find_end(lease(lease_us=NOW + 1), NOW) is None
    assert find_end(lease(lease_us=NOW), NOW) is EndOfLease.VANISHED


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, EndOfLease.NEVER_STARTED),
        ({"started_us": NOW - 100}, EndOfLease.OVERRUN),
        ({"cancel_us": NOW - 50}, EndOfLease.CANCEL_UNANSWERED),
        ({"started_us": NOW - 100, "cancel_us": NOW - 50}, EndOfLease.CANCEL_UNANSWERED),
        ({"lease_us": NOW, "cancel_us": NOW - 50}, EndOfLease.VANISHED),
    ],
)
def test_a_limit_that_has_passed_says_which_it_was(
    changes: dict[str, int], why: EndOfLease
) -> None:
    assert find_end(lease(due_us=NOW, **changes), NOW) is why


def test_limits_are_counted_from_the_claim_and_from_the_start() -> None:
    assert due_when_granted(NOW, 120.0) == NOW + 120_000_000
    assert due_when_started(NOW, 60.0, 30.5) == NOW + 90_500_000
    assert after(NOW, 0.25) == NOW + 250_000


def test_a_cancelled_attempt_without_report_is_paid_up_to_the_last_sign_of_life() -> None:
    assert paid_until(lease(), NOW) == NOW
    assert paid_until(lease(heard_us=NOW - 30), NOW) == NOW - 30
    assert paid_until(lease(heard_us=NOW - 30, cancel_us=NOW - 40), NOW) == NOW - 40


@pytest.mark.parametrize("why", EndOfLease)
def test_every_loss_is_told_in_a_sentence(why: EndOfLease) -> None:
    reason = reason_for_loss(why, 3)
    assert reason.code == "worker_lost"
    assert "3 times" in reason.message
    assert reason.message.endswith(".")
    assert reason.hint


def test_a_worker_that_comes_back_keeps_what_it_names_and_drops_what_is_not_its_own() -> None:
    a, b, c = ("job_a", 1), ("job_b", 1), ("job_c", 2)
    decided = adopt(named=[a, b, a], live=[a, c])
    assert decided.adopted == (a,)
    assert decided.stop == (b,)
    assert decided.lost == (c,)


def test_another_attempt_of_the_same_job_is_another_lease() -> None:
    decided = adopt(named=[("job_a", 1)], live=[("job_a", 2)])
    assert (decided.adopted, decided.stop) == ((), (("job_a", 1),))
    assert decided.lost == (("job_a", 2),)


def test_a_worker_that_moves_data_gets_time_but_not_for_ever() -> None:
    limits = {"timeout_s": 10.0, "overrun_s": 20.0, "transfer_limit_s": 100.0}
    lease = Lease(claimed_us=0, due_us=5_000_000)
    assert due_while_moving(lease, 4_000_000, **limits) == 24_000_000
    assert due_while_moving(lease, 120_000_000, **limits) == 130_000_000
    assert due_while_moving(lease, 900_000_000, **limits) == 130_000_000
    started = Lease(claimed_us=0, started_us=50_000_000, due_us=500_000_000)
    assert due_while_moving(started, 60_000_000, **limits) == 500_000_000


def test_limits_stand_still_with_what_stands_still() -> None:
    frozen = lease(started_us=NOW - 100, due_us=NOW - 1, frozen_until_us=NOW + 1)
    assert find_end(frozen, NOW) is None
    assert find_end(frozen, NOW + 1) is EndOfLease.FROZEN


def test_what_is_to_be_stopped_or_has_lost_its_worker_does_not_wait_for_that() -> None:
    stopping = lease(due_us=NOW, cancel_us=NOW - 5, frozen_until_us=NOW + 1000)
    assert find_end(stopping, NOW) is EndOfLease.CANCEL_UNANSWERED
    assert find_end(lease(lease_us=NOW, frozen_until_us=NOW + 1000), NOW) is EndOfLease.VANISHED
