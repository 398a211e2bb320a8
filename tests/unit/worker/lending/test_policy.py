"""What holds a machine back, in which order, and when it is lent again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridx.resources import PauseReason
from worker.lending.hours import parse_hours
from worker.lending.policy import (
    COOLER_C,
    SHORTEST_S,
    Commands,
    Decision,
    OnPause,
    Readings,
    Rules,
    Trail,
    decide,
)

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)  # a Tuesday
ACTIVE = Rules(pause_when_active=True, idle_for_s=300)


class Clock:
    """A policy over time, with its trail."""

    def __init__(self, rules: Rules) -> None:
        self.rules, self.trail, self.now = rules, Trail(), NOW

    def at(self, after_s: float, readings: Readings, commands: Commands = Commands()) -> Decision:  # noqa: B008
        self.now = NOW + timedelta(seconds=after_s)
        decision, self.trail = decide(
            self.rules, readings, commands, self.trail, now=self.now, zone=UTC
        )
        return decision

    def reason(self, after_s: float, **readings: object) -> PauseReason | None:
        pause = self.at(after_s, Readings(**readings)).pause  # type: ignore[arg-type]
        return pause.reason if pause is not None else None


def once(
    rules: Rules = Rules(),  # noqa: B008
    commands: Commands = Commands(),  # noqa: B008
    **readings: object,
) -> Decision:
    return decide(rules, Readings(**readings), commands, Trail(), now=NOW, zone=UTC)[0]  # type: ignore[arg-type]


def test_a_machine_that_says_nothing_is_lent() -> None:
    decision = once(Rules(pause_when_active=True, max_cpu_temp_c=1, max_gpu_temp_c=1))
    assert decision == Decision()


@pytest.mark.parametrize(
    ("rules", "readings", "reason"),
    [
        (Rules(), {"on_battery": True}, PauseReason.BATTERY),
        (Rules(), {"on_battery": False}, None),
        (Rules(pause_on_battery=False), {"on_battery": True}, None),
        (Rules(), {"cpu_temperature_c": 89.9}, None),
        (Rules(), {"cpu_temperature_c": 90.0}, PauseReason.CPU_HOT),
        (Rules(max_cpu_temp_c=None), {"cpu_temperature_c": 120.0}, None),
        (Rules(), {"gpu_temperature_c": 85.0}, PauseReason.GPU_HOT),
        (Rules(max_gpu_temp_c=70), {"gpu_temperature_c": 71.0}, PauseReason.GPU_HOT),
        (Rules(), {"owner_idle_s": 0.0}, None),  # not asked for
        (ACTIVE, {"owner_idle_s": 0.0}, PauseReason.ACTIVE),
        (ACTIVE, {"owner_idle_s": 299.0}, PauseReason.ACTIVE),
        (ACTIVE, {"owner_idle_s": 300.0}, None),
        (Rules(), {"engine_problem": "no engine"}, PauseReason.ENGINE),
        (Rules(hours=parse_hours("13-14")), {}, PauseReason.HOURS),
        (Rules(hours=parse_hours("11-13")), {}, None),
    ],
)
def test_each_rule_holds_back_by_itself(
    rules: Rules, readings: dict[str, object], reason: PauseReason | None
) -> None:
    pause = once(rules, **readings).pause  # type: ignore[arg-type]
    assert (pause.reason if pause else None) is reason
    assert pause is None or pause.message.endswith(".")


def test_the_owners_word_goes_before_everything_and_the_owner_at_work_comes_last() -> None:
    rules = Rules(hours=parse_hours("13-14"), pause_when_active=True)
    everything = {
        "engine_problem": "no engine",
        "on_battery": True,
        "cpu_temperature_c": 99.0,
        "gpu_temperature_c": 99.0,
        "owner_idle_s": 1.0,
    }
    seen = []
    commands = Commands(is_paused=True, is_draining=True)
    pause = once(rules, commands, **everything).pause
    assert pause is not None
    seen.append(pause.reason)
    commands = Commands(is_draining=True)
    for without in ("hours", *everything, "draining"):
        pause = once(rules, commands, **everything).pause
        assert pause is not None
        seen.append(pause.reason)
        if without == "hours":
            rules = Rules(pause_when_active=True)
        else:
            everything.pop(without, None)
    assert seen == [
        PauseReason.ASKED,
        PauseReason.HOURS,
        PauseReason.ENGINE,
        PauseReason.BATTERY,
        PauseReason.CPU_HOT,
        PauseReason.GPU_HOT,
        PauseReason.ACTIVE,
        PauseReason.DRAINING,
    ]


def test_a_hot_machine_is_lent_again_when_it_is_five_degrees_cooler_and_a_minute_has_passed() -> (
    None
):
    clock = Clock(Rules(max_cpu_temp_c=80))
    hot = PauseReason.CPU_HOT
    assert clock.reason(0, cpu_temperature_c=80.0) is hot
    assert clock.reason(100, cpu_temperature_c=79.0) is hot
    assert clock.reason(200, cpu_temperature_c=80 - COOLER_C + 0.1) is hot
    assert clock.reason(210, cpu_temperature_c=80 - COOLER_C) is hot
    assert clock.reason(200 + SHORTEST_S - 1, cpu_temperature_c=60.0) is hot
    assert clock.reason(200 + SHORTEST_S, cpu_temperature_c=60.0) is None
    assert clock.reason(300, cpu_temperature_c=79.0) is None  # from below it is not too hot


def test_a_sensor_that_falls_silent_does_not_hold_back_for_ever() -> None:
    clock = Clock(Rules())
    assert clock.reason(0, gpu_temperature_c=90.0) is PauseReason.GPU_HOT
    assert clock.reason(10) is PauseReason.GPU_HOT
    assert clock.reason(SHORTEST_S) is None


def test_a_plug_that_is_loose_does_not_make_it_flap() -> None:
    clock = Clock(Rules())
    reasons = [clock.reason(10 * turn, on_battery=turn % 3 == 0) for turn in range(20)]
    assert set(reasons) == {PauseReason.BATTERY}
    assert clock.reason(180 + SHORTEST_S, on_battery=False) is None


def test_the_owner_is_away_after_as_long_as_was_set() -> None:
    clock = Clock(ACTIVE)
    assert clock.reason(0, owner_idle_s=10.0) is PauseReason.ACTIVE
    assert clock.reason(280, owner_idle_s=290.0) is PauseReason.ACTIVE
    assert clock.reason(290, owner_idle_s=300.0) is None
    assert clock.reason(291, owner_idle_s=0.5) is PauseReason.ACTIVE


def test_an_owner_who_was_seen_and_cannot_be_seen_any_more_is_waited_for_as_long() -> None:
    clock = Clock(ACTIVE)
    assert clock.reason(0, owner_idle_s=0.0) is PauseReason.ACTIVE
    assert clock.reason(299) is PauseReason.ACTIVE
    assert clock.reason(300) is None


def test_programs_of_the_owner_count_when_they_are_busy_twice() -> None:
    clock = Clock(ACTIVE)
    assert clock.reason(0, others_cpu=0.9) is None
    assert clock.reason(5, others_cpu=0.1) is None
    assert clock.reason(10, others_cpu=0.5) is None
    assert clock.reason(15, others_cpu=0.6) is PauseReason.ACTIVE
    assert clock.reason(314, others_cpu=0.0) is PauseReason.ACTIVE
    assert clock.reason(315, others_cpu=0.0) is None


def test_a_clock_that_was_put_back_makes_no_pause_longer() -> None:
    clock = Clock(ACTIVE)
    assert clock.reason(100_000, owner_idle_s=0.0) is PauseReason.ACTIVE
    assert clock.reason(0) is PauseReason.ACTIVE
    assert clock.reason(300) is None


def test_a_pause_that_was_asked_for_ends_by_itself_at_its_time() -> None:
    until = NOW + timedelta(hours=2)
    commands = Commands(is_paused=True, paused_until=until, jobs=OnPause.FINISH)
    decision = once(commands=commands)
    assert decision.pause is not None and decision.pause.until == until
    assert decision.jobs is OnPause.FINISH
    assert decision.next_change == until
    assert commands.at(until) == Commands()


def test_a_pause_treats_the_jobs_as_set_unless_it_says_otherwise() -> None:
    rules = Rules(on_pause=OnPause.HAND_BACK)
    assert once(rules, Commands(is_paused=True)).jobs is OnPause.HAND_BACK
    asked = Commands(is_paused=True, jobs=OnPause.FREEZE)
    assert once(rules, asked).jobs is OnPause.FREEZE
    assert once(rules, on_battery=True).jobs is OnPause.HAND_BACK
    assert once(rules, engine_problem="gone").jobs is OnPause.FINISH
    assert once(rules, Commands(is_draining=True)).jobs is OnPause.FINISH


def test_a_worker_that_drains_goes_on_doing_so_while_something_else_holds_it_back() -> None:
    decision = once(commands=Commands(is_draining=True), on_battery=True)
    assert decision.is_draining and decision.jobs is OnPause.FREEZE


def test_a_snoozed_gpu_is_withdrawn_until_its_time() -> None:
    until = NOW + timedelta(hours=1)
    commands = Commands(snoozed={"GPU-b": None, "GPU-a": until})
    decision = once(commands=commands)
    assert decision.pause is None
    assert decision.withdrawn_gpus == ("GPU-a", "GPU-b")
    assert decision.next_change == until
    assert commands.at(until).snoozed == {"GPU-b": None}


def test_outside_its_hours_it_says_when_it_is_lent_again() -> None:
    decision = once(Rules(hours=parse_hours("mon-fri 18:00-08:00")))
    assert decision.pause is not None
    assert decision.pause.until == decision.next_change == NOW.replace(hour=18)
    assert "mon-fri 18:00-08:00" in decision.pause.message


_READINGS = st.builds(
    Readings,
    on_battery=st.none() | st.booleans(),
    cpu_temperature_c=st.none() | st.floats(20, 110),
    gpu_temperature_c=st.none() | st.floats(20, 110),
    owner_idle_s=st.none() | st.floats(0, 2000),
    others_cpu=st.none() | st.floats(0, 1),
)


@given(st.lists(_READINGS, min_size=2, max_size=40))
@settings(max_examples=100, deadline=None)
def test_whatever_is_read_no_pause_of_a_reading_is_shorter_than_a_minute(
    readings: list[Readings],
) -> None:
    clock = Clock(Rules(pause_when_active=True, idle_for_s=60))
    began: float | None = None
    for turn, reading in enumerate(readings):
        # The time since a touch can only be what has passed, or less.
        pause = clock.at(5.0 * turn, reading).pause
        if pause is None and began is not None:
            bad = any(
                other.on_battery
                or (other.cpu_temperature_c or 0) >= 90
                or (other.gpu_temperature_c or 0) >= 85
                for other in readings[int(began // 5) : turn]
            )
            assert not bad or 5.0 * turn - began >= SHORTEST_S
            began = None
        elif pause is not None and began is None:
            began = 5.0 * turn
