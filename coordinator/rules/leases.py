"""When a lease begins, ends, goes on, and what its end means. A lease is a live attempt."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import msgspec

from gridx.schemas import Reason

_US_PER_S = 1_000_000


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """What the database knows of a live attempt's time, in microseconds.

    ``lease_us`` is None while its worker is connected: beats stay in memory. ``due_us`` is a
    limit for connected workers too.
    """

    claimed_us: int
    started_us: int | None = None
    lease_us: int | None = None
    heard_us: int | None = None
    due_us: int
    cancel_us: int | None = None
    frozen_until_us: int | None = None  # it stands still until then at most; None: it goes on


class EndOfLease(StrEnum):
    """Why a lease is over."""

    VANISHED = "worker_lost"
    NEVER_STARTED = "never_started"
    OVERRUN = "overrun"
    FORGOTTEN = "forgotten"
    CANCEL_UNANSWERED = "cancel_unanswered"
    FROZEN = "frozen"


SENTENCES: Final = {
    EndOfLease.VANISHED: "its worker was not heard of any more",
    EndOfLease.NEVER_STARTED: "its worker did not start it in time",
    EndOfLease.OVERRUN: "its worker did not end it at its time limit",
    EndOfLease.FORGOTTEN: "its worker no longer has it",
    EndOfLease.CANCEL_UNANSWERED: "its worker did not answer the request to stop it",
    EndOfLease.FROZEN: "its lender paused it for longer than a job may stand still",
}


def after(now_us: int, seconds: float) -> int:
    """Return the time ``seconds`` after ``now_us``, in microseconds."""
    return now_us + int(seconds * _US_PER_S)


def due_when_granted(now_us: int, starting_limit_s: float) -> int:
    """Return by when a lease that is granted now must have started."""
    return after(now_us, starting_limit_s)


def due_when_started(started_us: int, timeout_s: float, overrun_s: float) -> int:
    """Return by when an attempt that started must have reported."""
    return after(started_us, timeout_s + overrun_s)


def due_while_moving(
    lease: Lease, now_us: int, *, timeout_s: float, overrun_s: float, transfer_limit_s: float
) -> int:
    """Return by when an attempt must have gone on whose worker moves large data for it now.

    A slow line is no reason to give a job up, but a worker cannot hold one for ever: all in all
    it gets ``transfer_limit_s`` more.
    """
    since_us = lease.claimed_us if lease.started_us is None else lease.started_us
    latest_us = after(since_us, timeout_s + overrun_s + transfer_limit_s)
    return max(lease.due_us, min(after(now_us, overrun_s), latest_us))


def find_end(lease: Lease, now_us: int) -> EndOfLease | None:
    """Return why ``lease`` is over, or None while it stands."""
    if lease.lease_us is not None and lease.lease_us <= now_us:
        return EndOfLease.VANISHED
    if lease.frozen_until_us is not None and lease.cancel_us is None:
        # Its limits stand still with it, and move when it goes on.
        return EndOfLease.FROZEN if lease.frozen_until_us <= now_us else None
    if lease.due_us > now_us:
        return None
    if lease.cancel_us is not None:
        return EndOfLease.CANCEL_UNANSWERED
    return EndOfLease.NEVER_STARTED if lease.started_us is None else EndOfLease.OVERRUN


def paid_until(lease: Lease, now_us: int) -> int:
    """Return up to when a cancelled attempt is paid that will not report any more.

    Its worker was last heard then, or was asked to stop then, whichever came first.
    """
    known = [now_us, lease.heard_us, lease.cancel_us]
    return min(at for at in known if at is not None)


def reason_for_loss(why: EndOfLease, tries: int) -> Reason:
    """Return what the user is told when a job ends because its ``tries`` attempts were lost."""
    times = "once" if tries == 1 else f"{tries} times"
    return Reason(
        code="worker_lost",
        message=f"The job was tried {times}; the last time {SENTENCES[why]}.",
        hint="Run it again; `gridx workers` shows who is online. Nothing was charged.",
    )


class Adoption(msgspec.Struct, frozen=True):
    """Which attempts of a worker that came back go on, which it must drop, which it has lost."""

    adopted: tuple[tuple[str, int], ...]
    stop: tuple[tuple[str, int], ...]
    lost: tuple[tuple[str, int], ...]


def adopt(named: Iterable[tuple[str, int]], live: Iterable[tuple[str, int]]) -> Adoption:
    """Compare what a worker says that it holds with the live attempts on record for it.

    Each attempt is (job id, number). Named and live: adopted. Named only: it must stop.
    Live only: the worker began anew and has forgotten it.
    """
    said, known = dict.fromkeys(named), dict.fromkeys(live)
    return Adoption(
        tuple(ref for ref in said if ref in known),
        tuple(ref for ref in said if ref not in known),
        tuple(ref for ref in known if ref not in said),
    )
