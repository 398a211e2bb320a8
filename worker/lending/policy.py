"""Whether this machine takes jobs now. Pure: rules, readings, commands and the time go in.

What holds it back, in this order: its owner's word, the hours, the engine, battery, heat, and
the owner at work. Nothing flaps: a machine that was too hot is lent again when it is five
degrees below its ceiling, one whose owner works when nobody has touched it for as long as was
set, and no reading's pause is shorter than a minute. A source that a machine does not have says
None, and holds nothing back.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum
from typing import Final

import msgspec

from gridx.resources import Pause, PauseReason

from .hours import Hours

COOLER_C: Final = 5.0  # below the ceiling, until the machine is lent again
SHORTEST_S: Final = 60.0  # after a reading was last too bad
BUSY_SHARE: Final = 0.5  # of the processor that the owner's programs use: somebody is at work
DEFAULT_IDLE_FOR_S: Final = 300.0
DEFAULT_CPU_CEILING_C: Final = 90.0
DEFAULT_GPU_CEILING_C: Final = 85.0


class OnPause(StrEnum):
    """What becomes of the jobs that run when a pause begins."""

    FINISH = "finish"  # they run to their end
    FREEZE = "freeze"  # they stand still, and are handed back when that lasts too long
    HAND_BACK = "hand-back"  # another worker runs them, from their beginning


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What the lender has set."""

    hours: Hours | None = None  # None: always
    pause_when_active: bool = False
    idle_for_s: float = DEFAULT_IDLE_FOR_S
    pause_on_battery: bool = True
    max_cpu_temp_c: float | None = DEFAULT_CPU_CEILING_C
    max_gpu_temp_c: float | None = DEFAULT_GPU_CEILING_C
    on_pause: OnPause = OnPause.FREEZE


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine says. None: it does not."""

    on_battery: bool | None = None
    battery: float | None = None  # [0, 1]
    cpu_temperature_c: float | None = None  # the hottest
    gpu_temperature_c: float | None = None  # the hottest
    owner_idle_s: float | None = None  # since somebody touched it
    others_cpu: float | None = None  # [0, 1] of it, used by programs of its people
    engine_problem: str | None = None  # why no sandbox can be started


class Commands(msgspec.Struct, frozen=True, kw_only=True):
    """What the lender said since, and has not taken back. Times in UTC; None is "until told"."""

    is_paused: bool = False
    paused_until: datetime | None = None
    jobs: OnPause | None = None  # of that pause; None: as set
    is_draining: bool = False
    snoozed: dict[str, datetime | None] = {}  # GPUs by UUID

    def at(self, now: datetime) -> Commands:
        """Return what is left of them at ``now``."""
        is_over = self.paused_until is not None and self.paused_until <= now
        snoozed = {
            gpu: until for gpu, until in self.snoozed.items() if until is None or until > now
        }
        if is_over:
            return Commands(is_draining=self.is_draining, snoozed=snoozed)
        return msgspec.structs.replace(self, snoozed=snoozed)


class Trail(msgspec.Struct, frozen=True, kw_only=True):
    """What the policy remembers from one decision to the next."""

    bad_at: dict[PauseReason, datetime] = {}  # when a reading was last too bad
    was_busy: bool = False  # the owner's programs, at the reading before


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What holds now."""

    pause: Pause | None = None
    jobs: OnPause = OnPause.FINISH  # while it is paused
    is_draining: bool = False  # stop when nothing runs any more
    withdrawn_gpus: tuple[str, ...] = ()
    next_change: datetime | None = None  # it is known to change then, UTC


def decide(
    rules: Rules,
    readings: Readings,
    commands: Commands,
    trail: Trail,
    *,
    now: datetime,
    zone: tzinfo,
) -> tuple[Decision, Trail]:
    """Return what holds at ``now``, and what to remember of it.

    Args:
        rules: what the lender has set.
        readings: what the machine says now.
        commands: what the lender said since.
        trail: what the last decision left; ``Trail()`` at first.
        now: aware.
        zone: the lender's, for the hours.
    """
    commands = commands.at(now)
    trail = _follow(rules, readings, trail, now)
    changes = [moment for moment in commands.snoozed.values() if moment is not None]
    hours_change = rules.hours.next_change(now, zone) if rules.hours is not None else None
    if hours_change is not None:
        changes.append(hours_change)
    if commands.paused_until is not None:
        changes.append(commands.paused_until)
    pause, jobs = _pause(rules, readings, commands, trail, hours_change, now=now, zone=zone)
    return (
        Decision(
            pause=pause,
            jobs=jobs,
            is_draining=commands.is_draining,
            withdrawn_gpus=tuple(sorted(commands.snoozed)),
            next_change=min(changes, default=None),
        ),
        trail,
    )


def _pause(
    rules: Rules,
    readings: Readings,
    commands: Commands,
    trail: Trail,
    hours_change: datetime | None,
    *,
    now: datetime,
    zone: tzinfo,
) -> tuple[Pause | None, OnPause]:
    if commands.is_paused:
        asked = Pause(
            reason=PauseReason.ASKED,
            message="The owner has paused it.",
            until=commands.paused_until,
        )
        return asked, commands.jobs or rules.on_pause
    if rules.hours is not None and not rules.hours.is_open(now, zone):
        outside = Pause(
            reason=PauseReason.HOURS,
            message=f"It is lent at other hours ({rules.hours.text}).",
            until=hours_change,
        )
        return outside, rules.on_pause
    if readings.engine_problem is not None:
        # What runs has its sandbox: it may well come to its end.
        return (
            Pause(reason=PauseReason.ENGINE, message="Its sandboxes cannot be started."),
            OnPause.FINISH,
        )
    for reason, message in _MESSAGES.items():
        if reason in trail.bad_at:
            return Pause(reason=reason, message=message), rules.on_pause
    if commands.is_draining:
        return (
            Pause(reason=PauseReason.DRAINING, message="It stops when its jobs have ended."),
            OnPause.FINISH,
        )
    return None, OnPause.FINISH


_MESSAGES: Final[Mapping[PauseReason, str]] = {
    PauseReason.BATTERY: "The machine runs on its battery.",
    PauseReason.CPU_HOT: "Its processor is too hot.",
    PauseReason.GPU_HOT: "Its GPU is too hot.",
    PauseReason.ACTIVE: "The owner is using the machine.",
}


def _follow(rules: Rules, readings: Readings, trail: Trail, now: datetime) -> Trail:
    """Return when each reading was last too bad, without those that are good again."""
    # A clock that was put back makes no pause longer.
    bad_at = {reason: min(at, now) for reason, at in trail.bad_at.items()}
    busy = readings.others_cpu is not None and readings.others_cpu >= BUSY_SHARE
    last_touch = _last_touch(readings, trail, bad_at.get(PauseReason.ACTIVE), now, busy=busy)
    for reason, is_bad, lasts_s in (
        (PauseReason.BATTERY, rules.pause_on_battery and readings.on_battery is True, SHORTEST_S),
        (
            PauseReason.CPU_HOT,
            _is_hot(
                readings.cpu_temperature_c,
                rules.max_cpu_temp_c,
                was_hot=PauseReason.CPU_HOT in bad_at,
            ),
            SHORTEST_S,
        ),
        (
            PauseReason.GPU_HOT,
            _is_hot(
                readings.gpu_temperature_c,
                rules.max_gpu_temp_c,
                was_hot=PauseReason.GPU_HOT in bad_at,
            ),
            SHORTEST_S,
        ),
    ):
        if is_bad:
            bad_at[reason] = now
        elif reason in bad_at and (now - bad_at[reason]).total_seconds() >= lasts_s:
            del bad_at[reason]
    if last_touch is not None:
        bad_at[PauseReason.ACTIVE] = last_touch
    at = bad_at.get(PauseReason.ACTIVE)
    is_long_ago = at is not None and (now - at).total_seconds() >= rules.idle_for_s
    if is_long_ago or not rules.pause_when_active:
        bad_at.pop(PauseReason.ACTIVE, None)
    return Trail(bad_at=bad_at, was_busy=busy)


def _last_touch(
    readings: Readings, trail: Trail, known: datetime | None, now: datetime, *, busy: bool
) -> datetime | None:
    """Return when the owner was last at work, as far as that is known."""
    touches = [known] if known is not None else []
    if readings.owner_idle_s is not None:
        touches.append(now - timedelta(seconds=max(0.0, readings.owner_idle_s)))
    if busy and trail.was_busy:  # twice: one reading may be a backup's
        touches.append(now)
    return max(touches, default=None)


def _is_hot(temperature_c: float | None, ceiling_c: float | None, *, was_hot: bool) -> bool:
    if temperature_c is None or ceiling_c is None:
        return False
    return temperature_c >= ceiling_c or (was_hot and temperature_c > ceiling_c - COOLER_C)
