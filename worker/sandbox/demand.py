"""How many sandboxes of one image and size are worth keeping warm.

Arrivals and the durations of starts go in, numbers come out; whoever calls brings the time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

KEPT_S: Final = 300.0  # what is used repeatedly stays warm for so long after its last use
RATE_WINDOW_S: Final = 15.0  # an arrival counts for this long, less and less
FORGOTTEN_PER_S: Final = 0.02  # a rate below this is none
BURST_HALF_LIFE_S: Final = 60.0
FIRST_REFILL_S: Final = 0.3  # a start takes about so long, until one was measured
REFILL_WEIGHT: Final = 0.2  # of the newest start in their mean


def warm_size(*, burst: int, rate_per_s: float, refill_s: float) -> int:
    """Return how many warm sandboxes let such arrivals wait for none.

    Args:
        burst: jobs that come at once.
        rate_per_s: jobs a second, on average.
        refill_s: from the start of a sandbox until it is warm. Counted twice: a start that
            begins when one is taken, and one that waits for another before it.

    >>> warm_size(burst=2, rate_per_s=3.0, refill_s=0.2)
    4
    """
    return math.ceil(burst + rate_per_s * refill_s * 2)


class Demand:
    """What was asked for of one image and size, as it fades.

    Args:
        resting: so many are wanted when nobody asks; 0 for what is not the default.
    """

    def __init__(self, *, resting: int = 0) -> None:
        self._resting = resting
        self._weight = 0.0  # of the arrivals, each worth 1 when it came
        self._at_s = 0.0  # when it was that much
        self._refill_s = FIRST_REFILL_S
        self._latest: deque[float] = deque()  # arrivals within one refill
        self._burst, self._burst_at_s = 0.0, 0.0
        self._is_repeated = False
        self.last_s: float | None = None  # when somebody asked, the last time

    @property
    def refill_s(self) -> float:
        """How long a start takes, on average."""
        return self._refill_s

    def asked(self, now_s: float) -> None:
        """Count one job that came."""
        self._is_repeated = self.was_asked_lately(now_s)
        self._weight = self._weight_at(now_s) + 1.0
        self._at_s = self.last_s = now_s
        self._latest.append(now_s)
        while self._latest[0] < now_s - self._refill_s:
            self._latest.popleft()
        if len(self._latest) >= self._burst_at(now_s):
            self._burst, self._burst_at_s = float(len(self._latest)), now_s

    def started(self, took_s: float) -> None:
        """Count one sandbox that was started."""
        self._refill_s += (took_s - self._refill_s) * REFILL_WEIGHT

    def was_asked_lately(self, now_s: float) -> bool:
        """Return whether somebody asked in the last five minutes."""
        return self.last_s is not None and now_s - self.last_s <= KEPT_S

    def rate_per_s(self, now_s: float) -> float:
        """Return how many jobs come a second, on average over the last while."""
        rate_per_s = self._weight_at(now_s) / RATE_WINDOW_S
        return rate_per_s if rate_per_s >= FORGOTTEN_PER_S else 0.0

    def wanted(self, now_s: float) -> int:
        """Return how many should be warm now, were there room for all."""
        if not self._resting and not (self._is_repeated and self.was_asked_lately(now_s)):
            return 0
        burst = max(self._resting, 1, round(self._burst_at(now_s)))
        return warm_size(burst=burst, rate_per_s=self.rate_per_s(now_s), refill_s=self._refill_s)

    def _weight_at(self, now_s: float) -> float:
        return self._weight * math.exp((self._at_s - now_s) / RATE_WINDOW_S)

    def _burst_at(self, now_s: float) -> float:
        return self._burst * math.exp2((self._burst_at_s - now_s) / BURST_HALF_LIFE_S)


def share(wanted: Sequence[int], most: int) -> list[int]:
    """Return how many of each are kept, ``most`` together.

    Args:
        wanted: the favourite first. Each gets one before any gets two.
        most: of all together.

    >>> share([4, 2, 1], 5)
    [3, 1, 1]
    """
    kept = [0] * len(wanted)
    left = most
    for index, count in enumerate(wanted):
        kept[index] = min(count, 1, left)
        left -= kept[index]
    for index, count in enumerate(wanted):
        more = min(count - kept[index], left)
        kept[index] += more
        left -= more
    return kept


def reserved(kept: int, *, resting: int, step: int = 4) -> int:
    """Return for how many warm sandboxes memory is set aside: in steps, so that what is
    announced does not change with every job.

    >>> [reserved(kept, resting=2) for kept in (0, 2, 3, 5)]
    [2, 2, 4, 8]
    """
    return resting if kept <= resting else math.ceil(kept / step) * step
