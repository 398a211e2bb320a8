"""How many warm sandboxes are worth their memory: numbers only."""

from __future__ import annotations

import pytest

from worker.sandbox.demand import KEPT_S, Demand, reserved, share, warm_size


@pytest.mark.parametrize(
    ("burst", "rate_per_s", "refill_s", "size"),
    [(1, 0, 0.2, 1), (4, 0, 0.2, 4), (1, 1, 0.2, 2), (2, 5, 0.2, 4), (2, 7.1, 0.28, 6)],
)
def test_the_pool_covers_a_burst_and_what_comes_while_it_refills(
    burst: int, rate_per_s: float, refill_s: float, size: int
) -> None:
    assert warm_size(burst=burst, rate_per_s=rate_per_s, refill_s=refill_s) == size


def test_the_default_rests_at_its_size_when_nobody_asks() -> None:
    assert Demand(resting=2).wanted(1e6) == 2


def test_a_steady_stream_is_estimated_by_its_rate() -> None:
    demand = Demand(resting=1)
    for number in range(200):
        demand.asked(number * 0.5)
    assert demand.rate_per_s(100.0) == pytest.approx(2.0, rel=0.1)


def test_the_estimate_decays_to_the_resting_size() -> None:
    demand = Demand(resting=1)
    for number in range(100):
        demand.asked(number * 0.2)
    sizes = [demand.wanted(20.0 + later_s) for later_s in (0.0, 15.0, 60.0, 600.0)]
    assert sizes[0] > 3
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1


def test_jobs_that_come_at_once_raise_the_size_above_the_rate() -> None:
    demand = Demand(resting=1)
    for _ in range(6):
        demand.asked(10.0)
    assert demand.wanted(10.0) >= 6


def test_slow_starts_want_more_ahead() -> None:
    quick, slow = Demand(resting=1), Demand(resting=1)
    for _ in range(30):
        quick.started(0.1)
        slow.started(1.0)
    assert slow.refill_s == pytest.approx(1.0, rel=0.01)
    for number in range(100):
        quick.asked(number * 0.5)
        slow.asked(number * 0.5)
    assert slow.wanted(50.0) > quick.wanted(50.0)


def test_what_was_used_once_is_not_kept_warm() -> None:
    demand = Demand()
    demand.asked(0.0)
    assert demand.wanted(0.1) == 0


def test_what_is_used_repeatedly_stays_warm_for_five_minutes_after_its_last_use() -> None:
    demand = Demand()
    demand.asked(0.0)
    demand.asked(100.0)
    assert demand.wanted(100.0 + KEPT_S) == 1
    assert demand.wanted(100.1 + KEPT_S) == 0


def test_two_uses_far_apart_are_not_repeated_use() -> None:
    demand = Demand()
    demand.asked(0.0)
    demand.asked(KEPT_S + 1)
    assert demand.wanted(KEPT_S + 2) == 0


@pytest.mark.parametrize(
    ("wanted", "most", "kept"),
    [
        ([4], 8, [4]),
        ([4], 2, [2]),
        ([4, 2, 1], 5, [3, 1, 1]),
        ([4, 1, 1], 2, [1, 1, 0]),
        ([1, 0, 3], 8, [1, 0, 3]),
        ([3, 3], 0, [0, 0]),
        ([], 4, []),
    ],
)
def test_each_kind_gets_one_before_any_gets_two_and_no_more_than_the_most(
    wanted: list[int], most: int, kept: list[int]
) -> None:
    assert share(wanted, most) == kept


def test_memory_is_set_aside_in_steps() -> None:
    assert [reserved(kept, resting=4) for kept in (0, 4, 5, 8, 9)] == [4, 4, 8, 8, 12]
