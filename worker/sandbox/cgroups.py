"""A container's counters, read from the host's own cgroup files, version 1 or 2.

What a job cannot reach cannot be forged by it: under a runtime whose supervisor is not safe
from its job, these are the numbers that count. The path is looked up once, from the kernel's
own tables, because it differs between cgroup drivers; then the files stay open, and a reading
is one pread for each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from ..runtime.metering import field
from .metering import HostReading

_PROC: Final = Path("/proc")
_UNIFIED: Final = ""  # what stands in the place of a controller for cgroup v2


class Mount(NamedTuple):
    """One place where this process sees a hierarchy of control groups."""

    controllers: frozenset[str]  # of version 1; empty for version 2
    root: str  # the group that is the mount point
    folder: Path


def parse_mounts(mountinfo: str) -> list[Mount]:
    """Return the hierarchies in the text of ``/proc/self/mountinfo``, see proc(5)."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(kind) < 3:
            continue
        root, folder = _unescaped(fields[3]), Path(_unescaped(fields[4]))
        if kind[0] == "cgroup2":
            found.append(Mount(frozenset(), root, folder))
        elif kind[0] == "cgroup":
            found.append(Mount(frozenset(kind[2].split(",")), root, folder))
    return found


def parse_membership(cgroup: str) -> dict[str, str]:
    """Return the group of a process for each controller, "" for version 2, from the text of
    ``/proc/PID/cgroup``."""
    groups = {}
    for line in cgroup.splitlines():
        _, _, rest = line.partition(":")
        controllers, found, group = rest.partition(":")
        if found:
            groups.update(dict.fromkeys(controllers.split(","), group))
    return groups


def find_folder(controller: str, group: str, mounts: list[Mount]) -> Path | None:
    """Return the folder of ``group``, or None where this process cannot see it.

    Args:
        controller: "memory", "cpuacct"; "" for version 2.
        group: as ``parse_membership`` gives it.
        mounts: as ``parse_mounts`` gives them.
    """
    if "/../" in f"{group}/":
        return None  # above the root of this process's own namespace
    for mount in mounts:
        is_it = controller in mount.controllers if controller else not mount.controllers
        if not is_it:
            continue
        root = mount.root.rstrip("/")
        if group == root or group.startswith(f"{root}/"):
            return mount.folder / group[len(root) :].lstrip("/")
    return None


def find_folders(
    cgroup: str, mountinfo: str, *, container: str
) -> tuple[Path | None, Path | None, bool]:
    """Return the folders with a container's CPU and memory counters, and whether they are of
    version 2; None where there is none.

    Args:
        cgroup: the text of ``/proc/PID/cgroup`` of the container's PID 1.
        mountinfo: the text of ``/proc/self/mountinfo``.
        container: its id, which is part of the path with each driver. An engine on another
            machine gives the id of a process that is not its container's here.
    """
    mounts = parse_mounts(mountinfo)
    groups = {
        controller: group
        for controller, group in parse_membership(cgroup).items()
        if container in group
    }
    cpu, memory = (
        find_folder(controller, groups[controller], mounts) if controller in groups else None
        for controller in ("cpuacct", "memory")
    )
    if cpu is not None or memory is not None or _UNIFIED not in groups:
        return cpu, memory, False
    folder = find_folder(_UNIFIED, groups[_UNIFIED], mounts)
    return folder, folder, True


class _Counter:
    """A file that stays open: one pread a reading."""

    def __init__(self, path: Path, parse: Callable[[bytes], float], scale: float = 1.0) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self.can_write = True
        except OSError:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.can_write = False
        self._parse, self._scale = parse, scale
        try:
            self.read()
        except (OSError, ValueError):
            self.close()
            raise

    def read(self) -> float:
        return self._parse(os.pread(self._fd, 4096, 0)) * self._scale

    def reset(self) -> None:
        # Version 1 takes 0. So does version 2 from kernel 6.12 on, for this open file alone;
        # an older kernel has no write at all, and the peak is that since the container began.
        if self.can_write:
            try:
                os.write(self._fd, b"0\n")
            except OSError:
                self.can_write = False

    def close(self) -> None:
        os.close(self._fd)


_FILES: Final[Mapping[bool, tuple[tuple[str, Callable[[bytes], float], float], ...]]] = {
    False: (
        ("cpuacct.usage", float, 1e-9),
        ("memory.max_usage_in_bytes", float, 1.0),
        ("memory.oom_control", field(b"oom_kill"), 1.0),
    ),
    True: (
        ("cpu.stat", field(b"usage_usec"), 1e-6),
        ("memory.peak", float, 1.0),  # from kernel 5.19 on
        ("memory.events", field(b"oom_kill"), 1.0),
    ),
}


class CgroupMeter:
    """The open counters of one container.

    Raises:
        OSError: its CPU time cannot be read.
    """

    source = "host"

    def __init__(self, cpu: Path, memory: Path | None, *, is_v2: bool) -> None:
        cpu_file, peak_file, oom_file = _FILES[is_v2]
        self._is_open = True
        self._cpu = _open(cpu, *cpu_file)
        if self._cpu is None:
            raise FileNotFoundError(f"{cpu / cpu_file[0]} cannot be read.")
        self._peak = None if memory is None else _open(memory, *peak_file)
        self._oom = None if memory is None else _open(memory, *oom_file)

    @classmethod
    def of_process(cls, pid: int, container: str, *, proc: Path = _PROC) -> CgroupMeter | None:
        """Return the meter of a container, or None where the host's files cannot be read.

        Args:
            pid: of its PID 1, as this machine counts.
            container: its id.
            proc: where the kernel's tables are.
        """
        try:
            cgroup = (proc / str(pid) / "cgroup").read_text()
            mountinfo = (proc / "self" / "mountinfo").read_text()
            cpu, memory, is_v2 = find_folders(cgroup, mountinfo, container=container)
            return None if cpu is None else cls(cpu, memory, is_v2=is_v2)
        except (OSError, ValueError):
            return None

    def begin(self) -> None:
        """Let the peak of the memory count from now on, where the kernel allows that."""
        if self._peak is not None and self._is_open:
            self._peak.reset()

    def read(self) -> HostReading | None:
        """Return the counters now; None when the container is gone."""
        if not self._is_open or self._cpu is None:
            return None
        try:
            return HostReading(
                self._cpu.read(),
                None if self._peak is None else int(self._peak.read()),
                None if self._oom is None else int(self._oom.read()),
            )
        except (OSError, ValueError):
            return None  # the group vanishes with the last process

    def close(self) -> None:
        """Let go of the files."""
        if self._is_open:
            self._is_open = False
            for counter in (self._cpu, self._peak, self._oom):
                if counter is not None:
                    counter.close()


def _open(
    folder: Path, name: str, parse: Callable[[bytes], float], scale: float
) -> _Counter | None:
    try:
        return _Counter(folder / name, parse, scale)
    except (OSError, ValueError):
        return None


def _unescaped(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
