"""Namespaces of its own for a sandbox that is a plain process: what a container would bring.

Entered by the supervisor before it does anything else, by what the kernel lets this user do: as
root, or through a user namespace. Nothing here is required: the worker tries at start what it
gets (``worker/sandbox/process.py``), and says what it does not get.

Sources: ``namespaces(7)``, ``mount_setattr(2)``, ``capabilities(7)``; numbers from
``linux/sched.h``, ``linux/mount.h`` and ``asm/unistd.h`` (the same on x86-64 and aarch64).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from . import syscalls

FLAGS: Final = {
    "user": 0x10000000,
    "mount": 0x00020000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
}
TMP_BYTES: Final = 64 << 20
FILES: Final = 16384
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20, 0x1000, 0x4000, 1 << 18
_SAFE: Final = _MS_NOSUID | _MS_NODEV
_SYS_MOUNT_SETATTR, _AT_RECURSIVE, _AT_FDCWD = 442, 0x8000, -100
_MOUNT_ATTR_RDONLY: Final = 1
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_PR_CAPBSET_DROP, _LAST_CAPABILITY, _CAPABILITY_VERSION_3 = 24, 63, 0x20080522
_PRIVATE: Final = ("/tmp", "/var/tmp", "/dev/shm")

_libc = ctypes.CDLL(None, use_errno=True)


class Places(NamedTuple):
    """What of the machine's files the sandbox has."""

    work: str  # the job's own folder, which alone stays writable besides /tmp
    work_bytes: int = TMP_BYTES  # its size: a file system in memory
    keep: tuple[str, ...] = ()  # readable, also where they lie below what is hidden
    hide: tuple[str, ...] = ()  # empty for the job


def enter(names: Sequence[str], places: Places) -> None:
    """Leave this machine's namespaces for new ones; with "pid", return in their first process.

    The process that was called stays behind, waits for the first one and ends as it does.

    Raises:
        OSError: the kernel refuses; what was entered stays entered, so try again in a new process.
        ValueError: a name is unknown.
    """
    if unknown := set(names) - set(FLAGS):
        raise ValueError(f"no such namespaces: {sorted(unknown)}")
    if not names:
        return
    uid, gid = os.getuid(), os.getgid()
    _check(_libc.unshare(sum(FLAGS[name] for name in names)), "unshare")
    if "user" in names:
        # As oneself: the job's files belong to who started it, and root here is root nowhere.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    if "uts" in names:
        socket.sethostname("job")
    if "net" in names:
        _raise_loopback()
    if "mount" in names:
        _arrange(places)
    if "pid" in names:
        _become_first(mounts="mount" in names)
    _drop_capabilities()


def _become_first(*, mounts: bool) -> None:
    pid = os.fork()
    if pid:
        # Descriptors of the protocol are the first process's alone, or its end is not seen.
        os.closerange(3, 1 << 16)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    syscalls.die_with_parent()
    if mounts:
        # Without its own /proc a process here would not find itself.
        _mount("proc", "/proc", "proc", _MS_RDONLY | _MS_NOEXEC | _SAFE)


def _arrange(places: Places) -> None:
    """Make the machine read-only, /tmp private, and let what is hidden be empty."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    _check(
        _libc.syscall(
            ctypes.c_long(_SYS_MOUNT_SETATTR),
            ctypes.c_long(_AT_FDCWD),
            ctypes.c_char_p(b"/"),
            ctypes.c_long(_AT_RECURSIVE),
            ctypes.c_char_p(attributes),
            ctypes.c_long(len(attributes)),
        ),
        "mount_setattr",
    )
    work = os.path.realpath(places.work)
    kept = [path for path in map(os.path.realpath, places.keep) if os.path.exists(path)]
    held = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in (*_outermost(kept), work)}
    # First what is private, with what is kept below it; then what is hidden, which may lie in
    # something that was just shown again.
    for folders, mode in ((_PRIVATE, 0o1777), (places.hide, 0o755)):
        covered = [path for path in map(os.path.realpath, folders) if os.path.isdir(path)]
        covered = [path for path in _outermost(covered) if path != "/"]
        for path in covered:
            _tmpfs(path, TMP_BYTES, mode=mode)
        for path, fd in held.items():
            if path != work and any(_is_below(path, cover) for cover in covered):
                _show(path, fd)
        if any(_is_below(work, cover) for cover in covered):
            _show(work, held[work])
        if mode != 0o1777:
            for path in covered:
                _mount(None, path, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _SAFE)
    for fd in held.values():
        os.close(fd)
    _tmpfs(work, places.work_bytes, mode=0o700)
    os.chdir(work)


def _show(path: str, fd: int) -> None:
    """Mount what ``fd`` holds at ``path``, which lies below something that is covered now."""
    source = f"/proc/self/fd/{fd}"
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    elif not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
    _mount(source, path, None, _MS_BIND)  # read-only, as what it is made of has become


def _outermost(paths: Iterable[str]) -> list[str]:
    """Return ``paths`` without those that lie below another one, in order."""
    found: list[str] = []
    for path in sorted(set(paths)):
        if not any(_is_below(path, other) for other in found):
            found.append(path)
    return found


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _tmpfs(path: str, size_bytes: int, *, mode: int) -> None:
    data = f"size={size_bytes},nr_inodes={FILES},mode={mode:o}"
    _mount("tmpfs", path, "tmpfs", _SAFE, data)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    words = (None if word is None else word.encode() for word in (source, target, kind))
    _check(
        _libc.mount(*words, ctypes.c_ulong(flags), None if data is None else data.encode()),
        f"mount {target}",
    )


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request)
        flags = struct.unpack_from("H", answer, 16)[0] | _IFF_UP
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags))


def _drop_capabilities() -> None:
    """Give up every capability in the new namespaces, for good."""
    for capability in range(_LAST_CAPABILITY):
        _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)  # there may be fewer
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "capset")


def _check(answer: int, what: str) -> None:
    if answer != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def readable_places() -> list[str]:
    """Return where this interpreter and its packages are: what a job has to be able to read."""
    own = Path(__file__).resolve().parents[2]
    found = [
        str(own),
        sys.prefix,
        sys.base_prefix,
        sys.exec_prefix,
        os.path.dirname(sys.executable),
    ]
    found += [path for path in sys.path if path and os.path.exists(path)]
    return [path for path in dict.fromkeys(map(os.path.realpath, found)) if path != "/"]
