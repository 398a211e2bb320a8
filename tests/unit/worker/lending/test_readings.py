"""What other machines have said, read as it would be there: recordings, not this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from worker.lending.readings import (
    Battery,
    CpuTemperature,
    LogindIdle,
    Machine,
    MacIdle,
    OthersCpu,
    Reads,
    TerminalIdle,
    WindowsIdle,
    has_desktop,
    local_zone,
)

NOW_S = 1_790_000_000.0

# `loginctl list-sessions --no-legend` of a laptop with GNOME, an ssh login and the greeter
SESSIONS = """\
      2 1000 anna seat0 tty2
      7 1000 anna       pts/1
     c1  120 gdm  seat0 tty1
"""


def shown(idle: str, since_us: int, *, kind: str = "wayland", state: str = "active") -> str:
    """Return what `loginctl show-session 2 7 c1 -p ...` prints."""
    return (
        f"Remote=no\nType={kind}\nClass=user\nState={state}\nIdleHint={idle}\n"
        f"IdleSinceHint={since_us}\n\n"
        "Remote=yes\nType=tty\nClass=user\nState=active\nIdleHint=no\nIdleSinceHint=0\n\n"
        "Remote=no\nType=wayland\nClass=greeter\nState=online\nIdleHint=no\nIdleSinceHint=0\n"
    )


class Recording:
    """Answers commands from a recording, and counts."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, words: Sequence[str]) -> str:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def sensor(label: str, current: float | None) -> Any:
    return SimpleNamespace(label=label, current=current, high=100.0, critical=100.0)


# ---- battery and heat


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (None, (None, None)),  # a server
        (SimpleNamespace(percent=80, secsleft=9000, power_plugged=False), (True, 0.8)),
        (SimpleNamespace(percent=100, secsleft=-2, power_plugged=True), (False, 1.0)),
        (SimpleNamespace(percent=50, secsleft=-1, power_plugged=None), (None, 0.5)),
    ],
)
def test_a_battery_says_whether_it_is_in_use(found: Any, says: object) -> None:
    assert Battery(lambda: found).read() == says


def test_a_driver_that_fails_is_no_battery() -> None:
    def fails() -> Any:
        raise FileNotFoundError("/sys/class/power_supply/BAT0/energy_now")

    assert Battery(fails).read() == (None, None)


@pytest.mark.parametrize(
    ("chips", "hottest"),
    [
        ({}, None),  # a virtual machine
        (
            {  # an Intel laptop: the disk is hotter than the processor, and does not count
                "coretemp": [
                    sensor("Package id 0", 61.0),
                    sensor("Core 0", 58.0),
                    sensor("Core 1", 63.0),
                ],
                "nvme": [sensor("Composite", 77.0)],
                "acpitz": [sensor("", 27.8)],
            },
            63.0,
        ),
        (
            {
                "k10temp": [sensor("Tctl", 71.5), sensor("Tccd1", 66.0)],
                "amdgpu": [sensor("edge", 80)],
            },
            71.5,
        ),
        ({"cpu_thermal": [sensor("", 48.3)]}, 48.3),  # a Raspberry Pi
        ({"coretemp": [sensor("Core 0", None), sensor("Core 1", 0.0)]}, None),
        ({"thinkpad": [sensor("CPU", 55.0), sensor("GPU", 90.0)]}, 55.0),
        ({"coretemp": [sensor("Core 0", 65261.85)]}, None),  # a sensor that is gone
    ],
)
def test_the_hottest_sensor_of_the_processor_counts(
    chips: dict[str, list[Any]], hottest: float | None
) -> None:
    assert CpuTemperature(lambda: chips).read() == hottest


# ---- the owner


def test_a_desktop_that_is_in_use_is_not_idle() -> None:
    assert LogindIdle(Recording(SESSIONS, shown("no", 0)), lambda: NOW_S).read() == 0.0


def test_a_desktop_is_idle_since_logind_says_so() -> None:
    since_us = int((NOW_S - 420) * 1e6)
    idle = LogindIdle(Recording(SESSIONS, shown("yes", since_us)), lambda: NOW_S).read()
    assert idle == pytest.approx(420)


@pytest.mark.parametrize(
    "answer",
    [
        shown("no", 0, kind="tty"),  # a login, but no desktop
        shown("no", 0, state="closing"),
        shown("yes", 0),  # no time is told
        "",
    ],
)
def test_a_machine_without_a_desktop_in_use_says_nothing(answer: str) -> None:
    assert LogindIdle(Recording(SESSIONS, answer), lambda: NOW_S).read() is None


def test_a_machine_without_sessions_says_nothing() -> None:
    assert LogindIdle(Recording("")).read() is None


def test_without_logind_nobody_asks_again_and_again() -> None:
    missing = Recording(FileNotFoundError("loginctl"))
    source = LogindIdle(missing)
    assert [source.read() for _ in range(5)] == [None] * 5
    assert missing.asked == 1
    failing = Recording(subprocess.CalledProcessError(1, "loginctl"))
    source = LogindIdle(failing)
    assert [source.read() for _ in range(9)] == [None] * 9
    assert failing.asked == 3


def test_a_terminal_is_idle_since_it_was_last_read() -> None:
    users = [
        SimpleNamespace(name="anna", terminal="pts/0"),
        SimpleNamespace(name="anna", terminal="tty2"),
        SimpleNamespace(name="anna", terminal=":0"),
        SimpleNamespace(name="bert", terminal=None),
        SimpleNamespace(name="carl", terminal="pts/9"),  # its terminal is gone
    ]
    read_at_s = {"/dev/pts/0": NOW_S - 50, "/dev/tty2": NOW_S - 4000}

    def read_at(path: str) -> float:
        try:
            return read_at_s[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    assert TerminalIdle(lambda: users, read_at, lambda: NOW_S).read() == 50
    assert TerminalIdle(list, read_at, lambda: NOW_S).read() is None


def test_a_mac_tells_nanoseconds_since_a_touch() -> None:
    said = """\
    +-o IOHIDSystem  <class IOHIDSystem, id 0x1000004a3, registered, matched, active, busy 0>
        {
          "HIDParameters" = {"HIDClickTime"=500000000,"HIDMouseAcceleration"=45056}
          "HIDIdleTime" = 2718281828459
          "IOUserClientClass" = "IOHIDUserClient"
        }
"""
    assert MacIdle(Recording(said)).read() == pytest.approx(2718.281828)
    assert MacIdle(Recording("{}")).read() is None
    assert MacIdle(Recording(FileNotFoundError("ioreg"))).read() is None


def test_windows_counts_from_the_last_input_over_the_end_of_its_counter() -> None:
    assert WindowsIdle(lambda: (1000, 61_000)).read() == 60
    assert WindowsIdle(lambda: (2**32 - 1000, 4000)).read() == 5

    def elsewhere() -> tuple[int, int]:
        raise AttributeError("windll")

    assert WindowsIdle(elsewhere).read() is None


def process(pid: int, uid: int, cpu_s: float, created: float = 1.0) -> Any:
    return SimpleNamespace(
        info={
            "pid": pid,
            "create_time": created,
            "cpu_times": SimpleNamespace(user=cpu_s, system=0.0),
            "uids": SimpleNamespace(real=uid),
        }
    )


def test_only_programs_of_people_that_go_on_count_as_the_owners_work() -> None:
    looks = [
        [process(1, 0, 900), process(10, 1000, 100), process(20, 200_000, 50)],
        [
            process(1, 0, 990),  # the system's own
            process(10, 1000, 106),  # six seconds of ten, on four cores
            process(20, 200_000, 90),  # a job in a container
            process(30, 1000, 30, created=9.0),  # it was not there before
        ],
        [process(10, 1000, 5, created=15.0)],  # another one under the same number
    ]
    moments = iter((0.0, 10.0, 20.0))
    source = OthersCpu(lambda: looks.pop(0), lambda: next(moments), cores=4)
    assert source.read() is None  # nothing to compare with
    assert source.read() == pytest.approx(6 / 10 / 4)
    assert source.read() == 0.0


@pytest.mark.parametrize(
    ("environment", "platform", "answers", "has_one"),
    [
        ({}, "darwin", [""], True),
        ({}, "win32", [""], True),
        ({"DISPLAY": ":0"}, "linux", [""], True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", [""], True),
        ({}, "linux", [SESSIONS, shown("no", 0)], True),
        ({}, "linux", [SESSIONS, shown("no", 0, kind="tty")], False),
        ({}, "linux", [FileNotFoundError("loginctl")], False),
    ],
)
def test_a_server_has_no_desktop(
    environment: dict[str, str], platform: str, answers: list[Any], has_one: bool
) -> None:
    assert has_desktop(environment, platform, Recording(*answers)) is has_one


def test_a_machine_that_says_nothing_has_nothing_but_nones() -> None:
    silent = Machine(
        battery=Battery(lambda: None),
        cpu_temperature=Reads(lambda: None),
        gpu_temperature=Reads(lambda: None),
        idle=[Reads(lambda: None)],
        others_cpu=None,
    )
    said = silent.read()
    assert set(msgspec_values(said)) == {None}


def test_the_newest_touch_of_any_source_counts() -> None:
    machine = Machine(
        battery=Battery(lambda: None),
        cpu_temperature=Reads(lambda: 50.0),
        gpu_temperature=Reads(lambda: 60.0),
        idle=[Reads(lambda: 500.0), Reads(lambda: None), Reads(lambda: 20.0)],
        others_cpu=Reads(lambda: 0.25),
    )
    said = machine.read()
    assert (said.owner_idle_s, said.others_cpu) == (20.0, 0.25)
    assert (said.cpu_temperature_c, said.gpu_temperature_c) == (50.0, 60.0)


def test_the_zone_is_one_that_knows_of_summer_time() -> None:
    zone = local_zone({"TZ": ":Europe/Berlin"})
    summer, winter = (datetime(2026, month, 1, tzinfo=UTC) for month in (7, 12))
    assert summer.astimezone(zone).utcoffset() != winter.astimezone(zone).utcoffset()
    assert local_zone({"TZ": "Nowhere/Land"}) is not None
    assert local_zone({}) is not None


def msgspec_values(readings: Any) -> list[Any]:
    return [getattr(readings, name) for name in readings.__struct_fields__]
