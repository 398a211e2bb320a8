from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.rules.freezing import NOT_FROZEN, Frozen, given_up_at, stands_us, stood_us

S = 1_000_000


def test_what_goes_on_has_not_stood_still() -> None:
    assert stands_us(NOT_FROZEN, 50 * S) == stood_us(NOT_FROZEN, 50 * S) == 0
    assert stood_us(Frozen(before_us=7 * S), 50 * S) == 7 * S


def test_each_span_counts_and_the_allowance_is_for_all_together() -> None:
    assert given_up_at(NOT_FROZEN, 10 * S, 60.0) == 70 * S
    assert given_up_at(Frozen(before_us=45 * S), 10 * S, 60.0) == 25 * S
    assert given_up_at(Frozen(before_us=90 * S), 10 * S, 60.0) == 10 * S
    frozen = Frozen(since_us=10 * S, until_us=25 * S, before_us=45 * S)
    assert stands_us(frozen, 20 * S) == 10 * S
    assert stood_us(frozen, 20 * S) == 55 * S
    assert stood_us(frozen, 500 * S) == 60 * S  # no more than it may


def test_a_call_stands_still_from_its_own_begin_on() -> None:
    frozen = Frozen(since_us=10 * S, until_us=100 * S)
    assert stands_us(frozen, 20 * S, begun_us=4 * S) == 10 * S
    assert stands_us(frozen, 20 * S, begun_us=15 * S) == 5 * S
    assert stands_us(frozen, 20 * S, begun_us=30 * S) == 0


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9), st.floats(0, 1000))
def test_no_order_of_times_gives_less_than_nothing_or_more_than_may_be(
    since_us: int, now_us: int, before_us: int, most_s: float
) -> None:
    before_us = min(before_us, int(most_s * S))
    until_us = given_up_at(Frozen(before_us=before_us), since_us, most_s)
    frozen = Frozen(since_us=since_us, until_us=until_us, before_us=before_us)
    assert before_us <= stood_us(frozen, now_us) <= max(before_us, int(most_s * S))
