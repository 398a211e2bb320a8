"""What a job holds, costs and pays."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.rules.pricing import charge, price, split
from gridx.credits import Rates
from gridx.schemas import Limits

CORE = 100_000


def owed(**changes: object) -> int:
    given: dict[str, object] = {
        "rate_ucr_per_s": CORE,
        "hold_ucr": 60 * CORE,
        "since_us": 1_000_000,
        "until_us": 3_500_000,
        "metered_s": 10.0,
        "is_own_worker": False,
    }
    return charge(**{**given, **changes})  # type: ignore[arg-type]


def test_one_core_for_a_minute_holds_six_credits() -> None:
    found = price(Rates(), Limits())
    assert (found.rate_ucr_per_s, found.hold_ucr) == (100_000, 6_000_000)


def test_a_gpu_costs_ten_cores() -> None:
    assert price(Rates(), Limits(gpus=1, timeout_s=1)).hold_ucr == 1_100_000


def test_the_coordinators_clock_bounds_the_charge() -> None:
    assert owed() == 250_000


def test_the_workers_meter_can_only_make_it_smaller() -> None:
    assert owed(metered_s=1.25) == 125_000
    assert owed(metered_s=1e6) == 250_000


@pytest.mark.parametrize("nonsense", [-1.0, math.nan, math.inf, -math.inf, 1e300])
def test_a_meter_that_makes_no_sense_charges_nothing(nonsense: float) -> None:
    assert owed(metered_s=nonsense) == 0


def test_no_charge_is_above_its_hold() -> None:
    assert owed(until_us=10**12, metered_s=1e6) == 60 * CORE


def test_a_clock_that_went_back_charges_nothing() -> None:
    assert owed(until_us=0) == 0


def test_without_a_report_the_coordinators_clock_stands_alone() -> None:
    assert owed(metered_s=None) == 250_000


def test_on_the_payers_own_worker_nothing_is_charged() -> None:
    assert owed(is_own_worker=True) == 0


def test_a_charge_is_rounded_down_and_has_no_minimum() -> None:
    assert owed(until_us=1_000_009, metered_s=1.0) == 0
    assert owed(until_us=1_000_019, metered_s=1.0) == 1


def test_the_lender_gets_85_percent_and_the_fee_account_the_rest() -> None:
    assert split(1_000_000, 85) == (850_000, 150_000)
    assert split(1, 85) == (0, 1)


@given(st.integers(0, 10**15), st.integers(0, 100))
def test_the_parts_of_a_charge_add_up(amount: int, percent: int) -> None:
    share, fee = split(amount, percent)
    assert share + fee == amount
    assert share >= 0
    assert fee >= 0
    assert share * 100 <= amount * percent
