"""Credits as whole micro-credits (ucr): money is never a float.

One credit is 1,000,000 ucr. Products of a rate and a time are computed in integers and rounded
once: up for a hold, down for a charge, so that a charge never exceeds its hold.
"""

from __future__ import annotations

import math

import msgspec

from .resources import GIB, ResourceRequest

UCR_PER_CREDIT = 1_000_000
_US_PER_S = 1_000_000


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """The price card, in micro-credits a second."""

    core_ucr_per_s: int = 100_000
    gib_ucr_per_s: int = 0
    gpu_ucr_per_s: int = 1_000_000

    def rate_ucr_per_s(self, request: ResourceRequest) -> int:
        """Return what ``request`` costs a second, rounded up to whole micro-credits."""
        milli_cores = round(request.cores * 1000)
        micro = self.core_ucr_per_s * milli_cores * GIB
        micro += self.gib_ucr_per_s * request.memory_bytes * 1000
        micro += self.gpu_ucr_per_s * request.gpus * 1000 * GIB
        return -(-micro // (1000 * GIB))


def hold_ucr(rate_ucr_per_s: int, timeout_s: float) -> int:
    """Return the hold for a job that may run ``timeout_s`` seconds: rate times time, rounded up."""
    timeout_us = math.ceil(timeout_s * _US_PER_S)
    return -(-rate_ucr_per_s * timeout_us // _US_PER_S)


def charge_ucr(rate_ucr_per_s: int, elapsed_us: int, hold: int) -> int:
    """Return the charge for ``elapsed_us`` microseconds: rounded down, never above ``hold``."""
    return min(hold, rate_ucr_per_s * max(0, elapsed_us) // _US_PER_S)


def to_credits(ucr: int) -> float:
    """Return ``ucr`` in credits, for JSON and screens only."""
    return ucr / UCR_PER_CREDIT


def from_credits(amount: float) -> int:
    """Return an amount of the REST API, in credits, in whole micro-credits."""
    return round(amount * UCR_PER_CREDIT)


def format_credits(ucr: int) -> str:
    """Return ``ucr`` for people: two decimals, six where that would hide the amount.

    >>> format_credits(6_000_000), format_credits(1_234), format_credits(0)
    ('6.00', '0.001234', '0.00')
    """
    sign, size = ("-" if ucr < 0 else ""), abs(ucr)
    whole, rest = divmod(size, UCR_PER_CREDIT)
    if 0 < size < UCR_PER_CREDIT // 100:
        return f"{sign}{whole}.{rest:06d}"
    cents = (size + UCR_PER_CREDIT // 200) // (UCR_PER_CREDIT // 100)
    return f"{sign}{cents // 100:,}.{cents % 100:02d}"
