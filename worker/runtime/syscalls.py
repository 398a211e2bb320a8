"""The system calls that a job may not make: a classic BPF program on top of the engine's own.

The engine's default profile differs between its releases (20.10 still allows ``io_uring`` and
AF_VSOCK sockets), so the child installs this deny list itself, before it reads the first byte
of a job. Filters stack and cannot be taken off.

Numbers: ``asm/unistd_64.h`` (x86-64) and ``asm-generic/unistd.h`` (aarch64) of Linux 6.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from typing import Final, NamedTuple

from gridx.errors import SandboxError

DENIED: Final[dict[str, tuple[int | None, int | None]]] = {
    # name: (x86-64, aarch64); None where that machine has no such call
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "userfaultfd": (323, 282),
    "memfd_secret": (447, 447),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "syslog": (103, 116),
    "lookup_dcookie": (212, 18),
    "vhangup": (153, 58),
    "nfsservctl": (180, 42),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
}
ALLOWED_SOCKET_FAMILIES: Final = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
NAMESPACE_FLAGS: Final = 0x7E020000  # CLONE_NEW{CGROUP,UTS,IPC,USER,PID,NET} and CLONE_NEWNS

RET_KILL_PROCESS: Final = 0x80000000
RET_ALLOW: Final = 0x7FFF0000
RET_EPERM: Final = 0x00050000 | errno.EPERM
RET_ENOSYS: Final = 0x00050000 | errno.ENOSYS

_LOAD_WORD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# struct seccomp_data: nr, arch, instruction_pointer, args[6]; the low word of an argument
# comes first on both machines.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_X32_BIT = 0x40000000  # x86-64 only: the same calls under other numbers

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_SECCOMP_SET_MODE_FILTER, _FILTER_FLAG_TSYNC = 1, 1


class Machine(NamedTuple):
    """What the program must know of a processor."""

    audit_arch: int
    column: int  # of DENIED
    socket: int
    clone: int
    clone3: int
    seccomp: int
    has_x32: bool


MACHINES: Final = {
    "x86_64": Machine(0xC000003E, 0, 41, 56, 435, 317, True),
    "aarch64": Machine(0xC00000B7, 1, 198, 220, 435, 277, False),
}


class Instruction(NamedTuple):
    """One instruction of classic BPF, as in ``struct sock_filter``."""

    code: int
    jump_true: int
    jump_false: int
    value: int


def machine(name: str | None = None) -> Machine:
    """Return the table of this machine, or of the one called ``name``.

    Raises:
        SandboxError: there is no table for it, so nothing may run there.
    """
    name = os.uname().machine if name is None else name
    try:
        return MACHINES[name]
    except KeyError:
        raise SandboxError(
            f"There is no system call table for {name!r}.",
            hint=f"Lend a machine of one of these kinds: {', '.join(MACHINES)}.",
        ) from None


def program(target: Machine) -> list[Instruction]:
    """Return the filter for ``target``.

    Denied with EPERM: the calls of ``DENIED``, sockets of other families, new namespaces.
    ``clone3`` gives ENOSYS, because its flags lie in memory where no filter can look; the C
    library then uses ``clone``. A foreign architecture is killed.
    """
    denied = sorted({row[target.column] for row in DENIED.values()} - {None}, key=lambda n: n or 0)
    code = [
        Instruction(_LOAD_WORD, 0, 0, _ARCHITECTURE),
        Instruction(_JUMP_EQUAL, 1, 0, target.audit_arch),
        Instruction(_RETURN, 0, 0, RET_KILL_PROCESS),
        Instruction(_LOAD_WORD, 0, 0, _NUMBER),
    ]
    if target.has_x32:
        code += [
            Instruction(_JUMP_AT_LEAST, 0, 1, _X32_BIT),
            Instruction(_RETURN, 0, 0, RET_EPERM),
        ]
    tail = [
        Instruction(_JUMP_EQUAL, 0, 1, target.clone3),
        Instruction(_RETURN, 0, 0, RET_ENOSYS),
        Instruction(_JUMP_EQUAL, 0, 4, target.clone),
        Instruction(_LOAD_WORD, 0, 0, _FIRST_ARGUMENT),
        Instruction(_JUMP_ANY_BIT, 0, 1, NAMESPACE_FLAGS),
        Instruction(_RETURN, 0, 0, RET_EPERM),
        Instruction(_RETURN, 0, 0, RET_ALLOW),
        Instruction(_JUMP_EQUAL, 0, len(ALLOWED_SOCKET_FAMILIES) + 2, target.socket),
        Instruction(_LOAD_WORD, 0, 0, _FIRST_ARGUMENT),
        *(
            Instruction(_JUMP_EQUAL, len(ALLOWED_SOCKET_FAMILIES) - at, 0, family)
            for at, family in enumerate(ALLOWED_SOCKET_FAMILIES)
        ),
        Instruction(_RETURN, 0, 0, RET_EPERM),
        Instruction(_RETURN, 0, 0, RET_ALLOW),
    ]
    # Every denied number jumps over the rest of the list and the tail, to one last instruction.
    for at, number in enumerate(denied):
        assert number is not None
        code.append(Instruction(_JUMP_EQUAL, len(denied) - at - 1 + len(tail), 0, number))
    return [*code, *tail, Instruction(_RETURN, 0, 0, RET_EPERM)]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def set_dumpable(dumpable: bool) -> None:
    """Let others of this uid look into this process (ptrace, /proc/PID/fd), or not."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable))


def become_subreaper() -> None:
    """Let orphans among this process's descendants become its children, as under PID 1."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, however that comes."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def install() -> None:
    """Put the filter on every thread of this process, for good.

    Raises:
        SandboxError: this machine has no table, or the kernel refused the filter.
    """
    target = machine()
    code = b"".join(struct.pack("=HBBI", *step) for step in program(target))
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _libc.syscall.restype = ctypes.c_long
    answer = _libc.syscall(
        ctypes.c_long(target.seccomp),
        ctypes.c_long(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_long(_FILTER_FLAG_TSYNC),
        ctypes.byref(filter_),
    )
    if answer != 0:
        reason = os.strerror(ctypes.get_errno()) if answer < 0 else f"thread {answer} refused it"
        raise SandboxError(f"The system call filter could not be installed: {reason}.")
