from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridx.credits import Rates, charge_ucr, format_credits, from_credits, hold_ucr, to_credits
from gridx.resources import GIB, ResourceRequest


def test_one_core_for_a_minute_holds_six_credits() -> None:
    rate = Rates().rate_ucr_per_s(ResourceRequest())
    assert rate == 100_000
    assert hold_ucr(rate, 60) == 6_000_000
    assert to_credits(hold_ucr(rate, 60)) == 6.0
    assert from_credits(to_credits(99_999_766)) == 99_999_766


@pytest.mark.parametrize(
    ("request_", "rates", "rate"),
    [
        (ResourceRequest(cores=2, gpus=1), Rates(), 1_200_000),
        (ResourceRequest(cores=0.5), Rates(), 50_000),
        (ResourceRequest(memory_bytes=2 * GIB), Rates(gib_ucr_per_s=7), 100_014),
        (ResourceRequest(memory_bytes=GIB + 1), Rates(gib_ucr_per_s=7), 100_008),
        (ResourceRequest(cores=0.001), Rates(core_ucr_per_s=1), 1),
    ],
)
def test_a_rate_is_the_sum_of_its_parts_rounded_up(
    request_: ResourceRequest, rates: Rates, rate: int
) -> None:
    assert rates.rate_ucr_per_s(request_) == rate


amounts = st.integers(0, 10**9)
times_s = st.floats(0, 86_400, allow_nan=False)


@given(rate=amounts, timeout_us=st.integers(0, 86_400_000_000))
def test_a_hold_is_never_less_than_the_rate_times_the_time(rate: int, timeout_us: int) -> None:
    exact = Fraction(rate * timeout_us, 1_000_000)
    # Seconds are a float: to and fro may cost a microsecond, never in the user's disfavour by more.
    one_us = ceil(Fraction(rate, 1_000_000))
    assert exact <= hold_ucr(rate, timeout_us / 1_000_000) <= ceil(exact) + one_us


@given(rate=amounts, elapsed_us=st.integers(-5, 10**12), hold=amounts)
def test_a_charge_is_rounded_down_and_never_above_its_hold(
    rate: int, elapsed_us: int, hold: int
) -> None:
    charge = charge_ucr(rate, elapsed_us, hold)
    assert 0 <= charge <= hold
    assert charge == min(hold, floor(Fraction(rate * max(0, elapsed_us), 1_000_000)))


@given(rate=amounts, timeout_s=times_s)
def test_a_job_that_runs_to_its_limit_can_be_paid_from_its_hold(
    rate: int, timeout_s: float
) -> None:
    hold = hold_ucr(rate, timeout_s)
    assert charge_ucr(rate, floor(timeout_s * 1e6), hold + 1) <= hold


@pytest.mark.parametrize(
    ("ucr", "text"),
    [
        (0, "0.00"),
        (1, "0.000001"),
        (1_234, "0.001234"),
        (9_999, "0.009999"),
        (10_000, "0.01"),
        (6_000_000, "6.00"),
        (99_999_999, "100.00"),
        (1_234_567_890_000, "1,234,567.89"),
        (-1_500_000, "-1.50"),
        (-12, "-0.000012"),
    ],
)
def test_amounts_are_shown_with_two_decimals_or_six_where_two_would_hide_them(
    ucr: int, text: str
) -> None:
    assert format_credits(ucr) == text


@given(st.integers(-(10**15), 10**15))
def test_a_shown_amount_is_within_half_a_cent(ucr: int) -> None:
    shown = Fraction(format_credits(ucr).replace(",", ""))
    assert abs(shown - Fraction(ucr, 1_000_000)) <= Fraction(1, 200)
    assert (shown == 0) == (ucr == 0)
