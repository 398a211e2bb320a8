"""Jobs that stand still while their lender pauses: what time that is worth, and how much there is.

Times are microseconds by the coordinator's clock. What an attempt stood still is not paid, and
its limits move by as much; all in all it may stand still for ``max_frozen_s``.
"""

from __future__ import annotations

from typing import Final

import msgspec

_US_PER_S = 1_000_000


class Frozen(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an attempt's standing still. ``since_us`` is None while it goes on."""

    since_us: int | None = None
    until_us: int | None = None  # it is given up then
    before_us: int = 0  # how long it had stood still before ``since_us``


NOT_FROZEN: Final = Frozen()


def given_up_at(frozen: Frozen, now_us: int, max_frozen_s: float) -> int:
    """Return until when an attempt may stand still that stops now."""
    return now_us + max(0, int(max_frozen_s * _US_PER_S) - frozen.before_us)


def stands_us(frozen: Frozen, now_us: int, *, begun_us: int | None = None) -> int:
    """Return how long it stands still this time; ``begun_us``: of something that began then."""
    if frozen.since_us is None:
        return 0
    end_us = now_us if frozen.until_us is None else min(now_us, frozen.until_us)
    since_us = frozen.since_us if begun_us is None else max(frozen.since_us, begun_us)
    return max(0, end_us - since_us)


def stood_us(frozen: Frozen, now_us: int) -> int:
    """Return how long it has stood still all in all."""
    return frozen.before_us + stands_us(frozen, now_us)
