"""What a job finds around itself: read and tried from inside, and told as plain values.

Nothing but the standard library and nothing relative, because the worker's self-test sends this
file's own text into a sandbox as a job. What the values mean is decided outside, in
``worker/sandbox/self_test.py``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import socket
from collections.abc import Callable
from typing import Any, Final

CGROUP: Final = "/sys/fs/cgroup"
_PIECE: Final = bytes(4 << 20)
_MOST_FILES: Final = 20_000
_NETLINK, _VSOCK = 16, 40
_NAMED: Final = ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Seccomp_filters")
_LIMITS: Final = {
    "nofile": resource.RLIMIT_NOFILE,
    "fsize": resource.RLIMIT_FSIZE,
    "core": resource.RLIMIT_CORE,
    "nproc": resource.RLIMIT_NPROC,
    "as": resource.RLIMIT_AS,
    "msgqueue": 12,  # RLIMIT_MSGQUEUE, which the module does not name
}
_NUMBERS: Final = {"x86_64": (272, 425), "aarch64": (97, 425)}  # unshare, io_uring_setup


def facts(work: str = "/work", inputs: str = "/in", *, most_bytes: int = 0) -> dict[str, Any]:
    """Return what this process is, may and sees.

    Args:
        work: the folder that it may write to.
        inputs: the folder of its inputs.
        most_bytes: a folder that says that it is no larger is filled, to see whether that is so.
    """
    found: dict[str, Any] = {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": sorted(set(os.getgroups()) - {os.getgid()}),
        "status": status(text_of("/proc/self/status") or ""),
        "first": status(text_of("/proc/1/status") or ""),  # before it gave up anything itself
        "rlimits": {name: resource.getrlimit(number)[0] for name, number in _LIMITS.items()},
        "oom_score_adj": _number(text_of("/proc/self/oom_score_adj")),
        "hostname": socket.gethostname(),
        "interfaces": interfaces(text_of("/proc/self/net/dev") or ""),
        "connect": _errno(_connect),
        "denied": denied(),
        "supervisor": _errno(_look_into_the_first),
        "processes": len([name for name in os.listdir("/proc") if name.isdecimal()]),
        "cgroup": cgroup_limits(lambda path: text_of(f"{CGROUP}/{path}")),
        "root_is_read_only": bool(os.statvfs("/").f_flag & os.ST_RDONLY),
        "root_write": _errno(lambda: _touch("/gridx-probe")),
        "writable": [
            path
            for path in writable_mounts(text_of("/proc/self/mountinfo") or "")
            if os.path.isdir(path) and os.access(path, os.W_OK)
        ],
        "inputs": _tried(lambda: sorted(os.listdir(inputs))),
        "inputs_are_read_only": _tried(lambda: bool(os.statvfs(inputs).f_flag & os.ST_RDONLY)),
        "inputs_write": _errno(lambda: _touch(os.path.join(inputs, "new"))),
    }
    for name, folder in (("work", work), ("tmp", "/tmp"), ("shm", "/dev/shm")):
        found[name] = _folder(folder, most_bytes=most_bytes)
    return found


def text_of(path: str) -> str | None:
    """Return the text of ``path``, or None where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def status(text: str) -> dict[str, str]:
    """Return the lines of a ``/proc/PID/status`` that tell what the process may do."""
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in lines if name in _NAMED}


def cgroup_limits(read: Callable[[str], str | None]) -> dict[str, float | None]:
    """Return the limits of a control group; None: not readable, infinite: none is set.

    Args:
        read: returns the text of a file below the group's folder, of version 1 or 2, or None.
    """
    if read("cgroup.controllers") is not None or read("memory.max") is not None:
        cpu = (read("cpu.max") or "").split()
        memory, swap = _number(read("memory.max")), _number(read("memory.swap.max"))
        quota, period = (_number(cpu[0]), _number(cpu[1])) if len(cpu) == 2 else (None, None)
        pids = _number(read("pids.max"))
    else:
        memory = _number(read("memory/memory.limit_in_bytes"))
        both = _number(read("memory/memory.memsw.limit_in_bytes"))
        swap = None if both is None or memory is None else both - memory
        quota = _number(read("cpu/cpu.cfs_quota_us"))
        period = _number(read("cpu/cpu.cfs_period_us"))
        pids = _number(read("pids/pids.max"))
    if quota is not None and quota < 0:
        quota = float("inf")
    return {
        "memory_bytes": memory,
        "swap_bytes": swap,
        "pids": pids,
        "cores": quota / period if quota is not None and period else None,
    }


def interfaces(table: str) -> list[str]:
    """Return the network interfaces of ``/proc/net/dev``."""
    return sorted(line.partition(":")[0].strip() for line in table.splitlines() if ":" in line)


def writable_mounts(mountinfo: str) -> list[str]:
    """Return the mount points of ``/proc/self/mountinfo`` that are not read-only."""
    found = set()
    for line in mountinfo.splitlines():
        words, _, source = line.partition(" - ")
        fields, of_file_system = words.split(), source.split()
        if len(fields) < 6 or len(of_file_system) < 3:
            continue
        options = {*fields[5].split(","), *of_file_system[2].split(",")}
        if "ro" not in options:
            found.add(fields[4])
    return sorted(found)


def denied() -> dict[str, int]:
    """Try calls that a job may not make; return the error of each, 0 where it went through."""
    libc = ctypes.CDLL(None, use_errno=True)
    unshare, io_uring = _NUMBERS.get(os.uname().machine, (-1, -1))

    def call(number: int, *arguments: object) -> int:
        ctypes.set_errno(0)
        answer: int = libc.syscall(ctypes.c_long(number), *arguments)
        return ctypes.get_errno() if answer < 0 else 0

    return {
        "unshare": call(unshare, ctypes.c_long(0)),
        "io_uring_setup": call(io_uring, ctypes.c_long(1), None),
        "netlink": _errno(lambda: socket.socket(_NETLINK, socket.SOCK_RAW).close()),
        "vsock": _errno(lambda: socket.socket(_VSOCK, socket.SOCK_STREAM).close()),
    }


def _folder(path: str, *, most_bytes: int) -> dict[str, Any]:
    try:
        stat = os.statvfs(path)
        found: dict[str, Any] = {
            "bytes": stat.f_frsize * stat.f_blocks,
            "files": stat.f_files,
            "noexec": bool(stat.f_flag & os.ST_NOEXEC),
            "nosuid": bool(stat.f_flag & os.ST_NOSUID),
            "nodev": bool(stat.f_flag & os.ST_NODEV),
            "write": _errno(lambda: _touch(os.path.join(path, "gridx-probe"))),
        }
        if not found["write"] and most_bytes:
            found["many"] = _many(path)
            if found["bytes"] <= most_bytes:
                found["filled"] = _fill(path)
        return found
    except OSError as error:
        return {"write": error.errno}


def _fill(folder: str) -> list[int]:
    """Write until it fails; return how many bytes went in and the error, 0 for none."""
    path, size = os.path.join(folder, "gridx-fill"), 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        while size < 1 << 30:
            size += os.write(fd, _PIECE)
    except OSError as error:
        return [size, error.errno or 0]
    finally:
        os.close(fd)
        os.unlink(path)
    return [size, 0]


def _many(folder: str) -> list[int]:
    """Make names until it fails; return how many there were and the error, 0 for none."""
    inside, count = os.path.join(folder, "gridx-many"), 0
    os.mkdir(inside)
    first = os.path.join(inside, "0")
    _touch(first, keep=True)
    try:
        while count < _MOST_FILES:
            count += 1
            os.link(first, f"{inside}/{count}")  # as many inodes as files, in a third of the time
    except OSError as error:
        return [count, error.errno or 0]
    finally:
        for name in os.listdir(inside):
            os.unlink(f"{inside}/{name}")
        os.rmdir(inside)
    return [count, 0]


def _touch(path: str, *, keep: bool = False) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    if not keep:
        os.unlink(path)


def _look_into_the_first() -> None:
    # Root may list the folder everywhere; what is in it is another matter.
    for name in os.listdir("/proc/1/fd"):
        os.readlink(f"/proc/1/fd/{name}")


def _connect() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent: there is a route, or there is none


def _errno(act: Callable[[], object]) -> int:
    try:
        act()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _tried(act: Callable[[], Any]) -> Any:
    with contextlib.suppress(OSError):
        return act()
    return None


def _number(text: str | None) -> float | None:
    if text is None or not text.strip():
        return None
    return float("inf") if text.strip() == "max" else float(text)
