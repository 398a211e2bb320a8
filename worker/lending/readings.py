"""What this machine says about itself and its owner. A source that is missing says None.

Each source is a small object with one ``read``; what it reads from (a command's output, psutil,
a GPU library) is given to it, so that recordings of other machines can be read as well.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import psutil

from .policy import Readings

_log = logging.getLogger(__name__)

COMMAND_TIMEOUT_S: Final = 3.0
MISSED: Final = 3  # a command that failed so often is not asked again
# Of psutil's chips, those of a processor; every one else is a disk, a card or a guess.
CPU_CHIPS: Final = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal", "cpu-thermal")
CPU_LABELS: Final = re.compile(r"package|tctl|tdie|tccd|core|cpu", re.IGNORECASE)
PLAUSIBLE_C: Final = (1.0, 150.0)
LOGIN_UIDS: Final = range(501 if sys.platform == "darwin" else 1000, 60000)

Command = Callable[[Sequence[str]], str]


class Source(Protocol):
    """One thing that a machine may be able to say."""

    def read(self) -> float | None:
        """Return it, or None where it cannot be had."""
        ...


# ---------------------------------------------------------------- power and heat


def _nothing() -> None:
    return None


class Battery:
    """The battery, by psutil."""

    def __init__(self, read: Callable[[], Any] | None = None) -> None:
        # psutil has it on some systems only
        known: Any = getattr(psutil, "sensors_battery", None)
        self._read: Callable[[], Any] = read or known or _nothing

    def read(self) -> tuple[bool | None, float | None]:
        """Return whether the machine runs on it, and how full it is, in [0, 1]."""
        try:
            found = self._read()
        except (OSError, RuntimeError, ValueError):
            return None, None  # a driver that answers nonsense is no battery
        if found is None:
            return None, None
        plugged = found.power_plugged
        return None if plugged is None else not plugged, found.percent / 100


class CpuTemperature:
    """The hottest sensor of the processor, in degrees Celsius, by psutil."""

    def __init__(self, read: Callable[[], Mapping[str, Sequence[Any]]] | None = None) -> None:
        known: Any = getattr(psutil, "sensors_temperatures", None)
        self._read: Callable[[], Any] = read or known or dict

    def read(self) -> float | None:
        try:
            chips = self._read()
        except (OSError, RuntimeError, ValueError):
            return None
        found = [
            float(sensor.current)
            for chip, sensors in chips.items()
            for sensor in sensors
            if sensor.current is not None and _is_of_processor(chip, sensor.label or "")
        ]
        low_c, high_c = PLAUSIBLE_C
        return max((one for one in found if low_c <= one <= high_c), default=None)


def _is_of_processor(chip: str, label: str) -> bool:
    name = chip.lower()
    if name in CPU_CHIPS:
        return not label or CPU_LABELS.search(label) is not None
    # Some laptops have the processor among the sensors of their maker's chip.
    return name in ("thinkpad", "dell_smm", "asus") and label.strip().lower() in ("cpu", "package")


# ---------------------------------------------------------------- the owner


class LogindIdle:
    """How long the desktop sessions of this machine have been idle, by systemd-logind."""

    def __init__(
        self, command: Command | None = None, now_s: Callable[[], float] = time.time
    ) -> None:
        self._command = _Patient(command or _run)
        self._now_s = now_s

    def read(self) -> float | None:
        listed = self._command.ask(("loginctl", "list-sessions", "--no-legend", "--no-pager"))
        names = [line.split()[0] for line in listed.splitlines() if line.split()]
        if not names:
            return None
        shown = self._command.ask(
            (
                *("loginctl", "show-session", *names),
                *("-p", "Type", "-p", "Class", "-p", "State"),
                *("-p", "IdleHint", "-p", "IdleSinceHint", "-p", "Remote"),
            )
        )
        idle = [
            one
            for session in shown.split("\n\n")
            if (one := self._idle_s(_properties(session))) is not None
        ]
        return min(idle, default=None)

    def _idle_s(self, session: Mapping[str, str]) -> float | None:
        is_desktop = session.get("Type") in DESKTOPS and session.get("Class", "user") == "user"
        if not is_desktop or session.get("State") == "closing":
            return None
        if session.get("State") != "active":
            return None  # another is in front of it
        if session.get("IdleHint") == "no":
            return 0.0
        try:
            since_s = int(session.get("IdleSinceHint", "")) / 1e6
        except ValueError:
            return None
        return max(0.0, self._now_s() - since_s) if since_s else None


DESKTOPS: Final = ("x11", "wayland", "mir")


def _properties(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


class TerminalIdle:
    """How long nobody has typed in a terminal: logins by psutil, and when each was last read."""

    def __init__(
        self,
        users: Callable[[], Iterable[Any]] | None = None,
        read_at_s: Callable[[str], float] | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._users = users or psutil.users
        self._read_at_s = read_at_s or (lambda path: Path(path).stat().st_atime)
        self._now_s = now_s

    def read(self) -> float | None:
        idle = []
        try:
            found = list(self._users())
        except (OSError, RuntimeError):
            return None
        for user in found:
            terminal = user.terminal or ""
            if not terminal or terminal.startswith(":"):
                continue  # a screen, which says nothing here
            try:
                at_s = self._read_at_s(f"/dev/{terminal.removeprefix('/dev/')}")
            except OSError:
                continue
            idle.append(max(0.0, self._now_s() - at_s))
        return min(idle, default=None)


class MacIdle:
    """How long nobody has touched a Mac: HIDIdleTime of ``ioreg``, in nanoseconds."""

    def __init__(self, command: Command | None = None) -> None:
        self._command = _Patient(command or _run)

    def read(self) -> float | None:
        said = self._command.ask(("ioreg", "-c", "IOHIDSystem", "-d", "4"))
        found = [int(text) / 1e9 for text in re.findall(r'"HIDIdleTime"\s*=\s*(\d+)', said)]
        return min(found, default=None)


class WindowsIdle:
    """How long nobody has touched a Windows machine: GetLastInputInfo."""

    def __init__(self, ticks_ms: Callable[[], tuple[int, int]] | None = None) -> None:
        """
        Args:
            ticks_ms: returns the tick of the last input and the tick now, 32 bits each.
        """
        self._ticks_ms = ticks_ms or _windows_ticks_ms

    def read(self) -> float | None:
        try:
            last_ms, now_ms = self._ticks_ms()
        except (OSError, AttributeError):
            return None
        return ((now_ms - last_ms) & 0xFFFFFFFF) / 1000  # the counter starts again after 49 days


def _windows_ticks_ms() -> tuple[int, int]:
    import ctypes

    class LastInput(ctypes.Structure):
        _fields_ = (("size", ctypes.c_uint), ("tick", ctypes.c_uint))

    windows: Any = getattr(ctypes, "windll")  # noqa: B009 (there on Windows only)
    last = LastInput(size=ctypes.sizeof(LastInput))
    if not windows.user32.GetLastInputInfo(ctypes.byref(last)):
        raise OSError("GetLastInputInfo")
    return last.tick, windows.kernel32.GetTickCount()


class OthersCpu:
    """The share of this machine's processors that programs of its people use.

    Only programs that were there at both looks are counted, of users that log in and not below
    this worker: what a container uses belongs to a job, and what the system does for itself is
    no sign of an owner. So it says too little rather than too much.
    """

    def __init__(
        self,
        processes: Callable[[], Iterable[Any]] | None = None,
        now_s: Callable[[], float] = time.monotonic,
        cores: int | None = None,
    ) -> None:
        self._processes = processes or _processes_of_people
        self._now_s = now_s
        self._cores = cores or psutil.cpu_count() or 1
        self._at_s: float | None = None
        self._used_s: dict[tuple[int, float], float] = {}

    def read(self) -> float | None:
        now_s = self._now_s()
        used_s = {}
        for process in self._processes():
            info = process.info
            times, uids = info.get("cpu_times"), info.get("uids")
            if times is not None and (uids is None or uids.real in LOGIN_UIDS):
                used_s[info["pid"], info["create_time"]] = times.user + times.system
        before, self._used_s = self._used_s, used_s
        passed_s = 0.0 if self._at_s is None else now_s - self._at_s
        self._at_s = now_s
        if passed_s <= 0:
            return None
        grown_s: float = sum(
            max(0.0, used - before[key]) for key, used in used_s.items() if key in before
        )
        return min(1.0, grown_s / passed_s / self._cores)


def _processes_of_people() -> list[Any]:
    try:
        own = {process.pid for process in psutil.Process().children(recursive=True)}
    except psutil.Error:
        own = set()
    own.add(os.getpid())
    wanted = ["pid", "create_time", "cpu_times", *(["uids"] if hasattr(os, "getuid") else [])]
    return [one for one in psutil.process_iter(wanted) if one.pid not in own]


def has_desktop(
    environment: Mapping[str, str] = os.environ,
    platform: str = sys.platform,
    command: Command | None = None,
) -> bool:
    """Return whether somebody may sit at this machine's own screen."""
    if platform in ("darwin", "win32"):
        return True
    if environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"):
        return True
    return LogindIdle(command).read() is not None


# ---------------------------------------------------------------- all together


class Machine:
    """Everything that the policy asks of this machine."""

    def __init__(
        self,
        *,
        battery: Battery,
        cpu_temperature: Source,
        gpu_temperature: Source,
        idle: Sequence[Source],
        others_cpu: Source | None,
    ) -> None:
        """
        Args:
            battery: of it.
            cpu_temperature: in degrees Celsius.
            gpu_temperature: likewise, the hottest.
            idle: seconds since somebody touched it, one for each way of knowing.
            others_cpu: share of its processors in [0, 1]; None where it does not matter.
        """
        self._battery = battery
        self._cpu_temperature = cpu_temperature
        self._gpu_temperature = gpu_temperature
        self._idle = idle
        self._others_cpu = others_cpu

    def read(self) -> Readings:
        """Return what it says now. Takes up to a few seconds where commands are slow."""
        on_battery, battery = self._battery.read()
        idle = [one for source in self._idle if (one := source.read()) is not None]
        return Readings(
            on_battery=on_battery,
            battery=battery,
            cpu_temperature_c=self._cpu_temperature.read(),
            gpu_temperature_c=self._gpu_temperature.read(),
            owner_idle_s=min(idle, default=None),
            others_cpu=None if self._others_cpu is None else self._others_cpu.read(),
        )


class Reads:
    """A source that is a function."""

    def __init__(self, read: Callable[[], float | None]) -> None:
        self.read = read


def this_machine(gpu_temperature: Source, *, watches_owner: bool) -> Machine:
    """Return the sources that this machine has.

    Args:
        gpu_temperature: degrees Celsius of its hottest GPU.
        watches_owner: whether somebody's work at it matters.
    """
    idle: list[Source] = []
    if watches_owner:
        if sys.platform == "darwin":
            idle = [MacIdle(), TerminalIdle()]
        elif sys.platform == "win32":
            idle = [WindowsIdle()]
        else:
            idle = [LogindIdle(), TerminalIdle()]
    return Machine(
        battery=Battery(),
        cpu_temperature=CpuTemperature(),
        gpu_temperature=gpu_temperature,
        idle=idle,
        others_cpu=OthersCpu() if watches_owner else None,
    )


def local_zone(environment: Mapping[str, str] = os.environ) -> tzinfo:
    """Return this machine's time zone with its summer time; a fixed offset where it has no name."""
    named = environment.get("TZ", "").lstrip(":")
    link = Path("/etc/localtime")
    if not named and link.is_symlink():
        named = str(link.resolve()).partition("zoneinfo/")[2]
    try:
        if named:
            return ZoneInfo(named)
        with link.open("rb") as file:
            return ZoneInfo.from_file(file, key="local")
    except (OSError, ValueError, ZoneInfoNotFoundError):
        fixed = datetime.now().astimezone().tzinfo
        return fixed or UTC


class _Patient:
    """Asks a command, and gives it up when it is not there or fails again and again."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._failures = 0

    def ask(self, words: Sequence[str]) -> str:
        """Return what it prints; "" where it cannot be asked."""
        if self._failures >= MISSED:
            return ""
        try:
            said = self._command(words)
        except (OSError, subprocess.SubprocessError) as error:
            self._failures = MISSED if isinstance(error, FileNotFoundError) else self._failures + 1
            _log.info(
                "a source of readings is missing",
                extra={"action": "readings", "command": words[0], "reason": str(error)},
            )
            return ""
        self._failures = 0
        return said


def _run(words: Sequence[str]) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        words,
        check=True,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        env=environment,
        stdin=subprocess.DEVNULL,
    ).stdout
