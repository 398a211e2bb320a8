"""What a call used: readings of this container's own cgroup, else what wait4 tells.

The engine's statistics take a second a call, so the supervisor reads the files itself; a
container sees its own cgroup at ``/sys/fs/cgroup``, read-only, with v1 and with v2.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from gridx.resources import KIB, Usage

_CGROUP: Final = "/sys/fs/cgroup"


class Reading(NamedTuple):
    """One look at the counters. ``None`` where there is no such file."""

    monotonic_s: float
    cpu_s: float | None
    peak_memory_bytes: int | None
    oom_kills: int | None


class _CounterFile:
    """A file of the cgroup that stays open: one pread a reading."""

    def __init__(self, path: str, parse: Callable[[bytes], float]) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._parse = parse
        self.read()  # a file that cannot be read or parsed is no source

    def read(self) -> float:
        return self._parse(os.pread(self._fd, 4096, 0))


def field(name: bytes) -> Callable[[bytes], float]:
    """Return a parser for the line ``name value`` of a flat-keyed file."""

    def parse(data: bytes) -> float:
        for line in data.splitlines():
            key, _, value = line.partition(b" ")
            if key == name:
                return float(value)
        raise ValueError(name)

    return parse


def _first(*candidates: tuple[str, Callable[[bytes], float], float]) -> Callable[[], float] | None:
    """Return a reader of the first file that exists, scaled; None where there is none."""
    for path, parse, scale in candidates:
        try:
            source = _CounterFile(f"{_CGROUP}/{path}", parse)
        except (OSError, ValueError):
            continue
        return lambda: source.read() * scale
    return None


class Meter:
    """Reads the counters of the container that this process lives in.

    Args:
        own_cgroup: False outside a container, where the files count the whole machine.
    """

    def __init__(self, *, own_cgroup: bool) -> None:
        self._cpu = self._peak = self._oom = None
        if own_cgroup:
            self._cpu = _first(
                ("cpu.stat", field(b"usage_usec"), 1e-6),
                ("cpuacct/cpuacct.usage", float, 1e-9),
            )
            self._peak = _first(
                ("memory.peak", float, 1),
                ("memory/memory.max_usage_in_bytes", float, 1),
            )
            self._oom = _first(
                ("memory.events", field(b"oom_kill"), 1),
                ("memory/memory.oom_control", field(b"oom_kill"), 1),
            )

    @property
    def source(self) -> str:
        """What ``Usage.source`` will say."""
        return "rusage" if self._cpu is None else "cgroup"

    def read(self) -> Reading:
        """Return the counters now."""
        return Reading(
            time.monotonic(),
            self._cpu() if self._cpu else None,
            int(self._peak()) if self._peak else None,
            int(self._oom()) if self._oom else None,
        )


def process_cpu_s(pid: int) -> float:
    """Return the CPU seconds of a live process: its own clock, see clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def process_peak_bytes(pid: int) -> int:
    """Return the largest memory that a live process has had; 0 when that cannot be read."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * KIB
    except (OSError, ValueError, IndexError):
        pass
    return 0


def used(
    before: Reading,
    after: Reading,
    reaped: Sequence[resource.struct_rusage],
    *,
    warm_cpu_s: float,
    input_bytes: int,
    frozen_s: float = 0.0,
) -> Usage:
    """Return what was used between two readings.

    Args:
        reaped: of the job's process and its strays, for what the cgroup does not tell.
        warm_cpu_s: what the job's process had used before it got the job.
        input_bytes: what the job brought along.
        frozen_s: for so long everything stood still in between.
    """
    cpu_s = sum(usage.ru_utime + usage.ru_stime for usage in reaped) - warm_cpu_s
    peak_bytes = max((usage.ru_maxrss * KIB for usage in reaped), default=0)
    from_cgroup = before.cpu_s is not None and after.cpu_s is not None
    if before.cpu_s is not None and after.cpu_s is not None:
        cpu_s = after.cpu_s - before.cpu_s
    return Usage(
        wall_s=max(0.0, after.monotonic_s - before.monotonic_s - frozen_s),
        frozen_s=frozen_s,
        cpu_s=max(cpu_s, 0.0),
        peak_memory_bytes=after.peak_memory_bytes or peak_bytes,
        out_of_memory=was_out_of_memory(before, after),
        input_bytes=input_bytes,
        source="cgroup" if from_cgroup else "rusage",
    )


def was_out_of_memory(before: Reading, after: Reading) -> bool:
    """Return whether the kernel killed something of this container for its memory limit."""
    if before.oom_kills is None or after.oom_kills is None:
        return False
    return after.oom_kills > before.oom_kills
