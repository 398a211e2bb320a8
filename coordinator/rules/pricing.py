"""The hold before a job, the charge after it, and who gets which part of it."""

from __future__ import annotations

import msgspec

from gridx.credits import Rates, charge_ucr, hold_ucr
from gridx.schemas import Limits

_US_PER_S = 1_000_000


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What a job costs a second and at most."""

    rate_ucr_per_s: int
    hold_ucr: int


def price(rates: Rates, limits: Limits) -> Price:
    """Return the price of a job with these limits: rate times timeout, rounded up."""
    rate = rates.rate_ucr_per_s(limits.request())
    return Price(rate_ucr_per_s=rate, hold_ucr=hold_ucr(rate, limits.timeout_s))


def charge(
    *,
    rate_ucr_per_s: int,
    hold_ucr: int,
    since_us: int,
    until_us: int,
    metered_s: float | None,
    is_own_worker: bool,
) -> int:
    """Return what the payer owes for one attempt, in micro-credits.

    Args:
        since_us, until_us: start and end by the coordinator's clock.
        metered_s: what the worker says; it can only make the charge smaller. None: no report.
        is_own_worker: payer and lender are one person, and nothing is charged.
    """
    if is_own_worker:
        return 0
    elapsed_us = max(0, until_us - since_us)
    if metered_s is not None:
        # `not >` rather than `<`: a NaN from a hostile worker charges nothing
        metered_us = int(metered_s * _US_PER_S) if 0 <= metered_s < 1e9 else 0
        elapsed_us = min(elapsed_us, metered_us)
    return charge_ucr(rate_ucr_per_s, elapsed_us, hold_ucr)


def split(charge: int, worker_share_percent: int) -> tuple[int, int]:
    """Return (lender's part, fee): the part is rounded down, so that both add up to ``charge``."""
    share = charge * worker_share_percent // 100
    return share, charge - share
