"""Kernel calls that no cell needs, by their numbers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.hostile_cells import HostileCells
from worker.runtime.syscalls import DENIED, machine

pytestmark = pytest.mark.docker

TARGET = machine()
ON_X86_64 = TARGET.has_x32
NUMBERS = {
    name: row[TARGET.column] for name, row in DENIED.items() if row[TARGET.column] is not None
}
# Where the call without arguments would do nothing or do harm.
ARGUMENTS: dict[str, list[int]] = {
    "ptrace": [16, 1],  # PTRACE_ATTACH to PID 1
    "process_vm_readv": [1],
    "io_uring_setup": [8],
    "keyctl": [0, -3],
    "perf_event_open": [0, 0, -1, -1],
    "syslog": [10],
    "iopl": [3],
    "kcmp": [1, 1],
    "pidfd_getfd": [3, 0],
    "unshare": [0x10000000],
    "swapon": [0],
    "modify_ldt": [0],
}
NEW_NAMESPACE = {
    "user": 0x10000000,
    "network": 0x40000000,
    "processes": 0x20000000,
    "mounts": 0x00020000,
    "interprocess": 0x08000000,
    "names": 0x04000000,
    "control groups": 0x02000000,
}
# What only the engine's own profile refuses: an unusual personality.
PERSONALITY = (135, 92)[TARGET.column]


@pytest.fixture(scope="module")
def calls(cells: HostileCells) -> dict[str, Any]:
    """What the kernel answers to each of them."""
    return cells.probe(
        f"""
import mmap, stat, subprocess
denied = {{name: kernel(number, *({ARGUMENTS!r}.get(name, []) + [0] * 6)[:6])
          for name, number in {NUMBERS!r}.items()}}
unshared = {{name: kernel({NUMBERS["unshare"]}, flag) for name, flag in {NEW_NAMESPACE!r}.items()}}
cloned = {{name: kernel({TARGET.clone}, flag | 17, 0, 0, 0, 0)
          for name, flag in {NEW_NAMESPACE!r}.items()}}
def old_machine():
    code = mmap.mmap(-1, 4096, prot=7)  # mov eax, 20 (getpid); int 0x80; ret
    code.write(bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3]))
    if os.fork() == 0:
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
        os._exit(0)
    return os.WTERMSIG(os.wait()[1])
def status(pid):
    rows = (line.partition(":") for line in read(f"/proc/{{pid}}/status").splitlines())
    return {{name: value.strip() for name, _, value in rows}}
setuid = [os.path.join(folder, name) for top in ("/usr/bin", "/usr/sbin", "/usr/lib", "/opt")
          for folder, _, names in os.walk(top) for name in names
          if os.lstat(os.path.join(folder, name)).st_mode & stat.S_ISUID]
def as_root():
    try:
        return subprocess.run(["su", "-c", "id -u"], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL).stdout
    except OSError as error:
        return ""
say(
    denied=denied, unshared=unshared, cloned=cloned, clone3=kernel({TARGET.clone3}, 0, 0),
    x32=kernel(0x40000000 | 39) if {ON_X86_64} else "EPERM",
    old_machine=old_machine() if {ON_X86_64} else 31,
    personality=kernel({PERSONALITY}, 0x40000),
    setuid=setuid, as_root=as_root(), become_root=tried(os.setuid, 0),
    group=tried(os.setgid, 0), groups=tried(os.setgroups, [0]),
    clock=tried(time.clock_settime, time.CLOCK_REALTIME, 1.0), now=time.time(),
    own=status("self"), first=status(1),
)
"""
    )


@pytest.mark.guards("runtime: system call filter")
@pytest.mark.parametrize("name", NUMBERS)
def test_a_call_of_the_list_is_refused(calls: dict[str, Any], name: str) -> None:
    assert calls["denied"][name] == "EPERM"


@pytest.mark.parametrize("namespace", NEW_NAMESPACE)
@pytest.mark.parametrize("how", ["unshared", "cloned"])
def test_no_namespace_is_made(calls: dict[str, Any], how: str, namespace: str) -> None:
    assert calls[how][namespace] == "EPERM"


def test_clone3_looks_as_if_the_kernel_had_none(calls: dict[str, Any]) -> None:
    assert calls["clone3"] == "ENOSYS"


@pytest.mark.guards("runtime: system call filter")
def test_the_same_calls_have_no_other_numbers(calls: dict[str, Any]) -> None:
    assert calls["x32"] == "EPERM"
    assert calls["old_machine"] in (31, 11)  # SIGSYS; SIGSEGV where the kernel has no such calls


@pytest.mark.guards("seccomp")
def test_the_engines_own_filter_stays_below_ours(calls: dict[str, Any]) -> None:
    assert calls["personality"] == "EPERM"
    assert calls["first"]["Seccomp"] == "2"
    assert calls["own"]["Seccomp"] == "2"
    assert calls["own"].get("Seccomp_filters", "2") == "2"  # Linux 5.9 and later says how many


@pytest.mark.guards("CapDrop", "Privileged")
@pytest.mark.parametrize("process", ["own", "first"])
@pytest.mark.parametrize("which", ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"])
def test_there_is_no_capability(calls: dict[str, Any], process: str, which: str) -> None:
    assert int(calls[process][which], 16) == 0


@pytest.mark.guards("SecurityOpt")
@pytest.mark.parametrize("process", ["first", "own"])
def test_no_program_gives_other_rights(calls: dict[str, Any], process: str) -> None:
    # The job's process sets it too, for its filter; that PID 1 has it is the engine's doing.
    assert calls[process]["NoNewPrivs"] == "1"


def test_setuid_programs_do_nothing(calls: dict[str, Any]) -> None:
    assert calls["as_root"] != "0\n"
    assert calls["become_root"] == calls["group"] == calls["groups"] == "EPERM"
    assert set(calls["own"]["Uid"].split()) != {"0"}


def test_the_clock_is_read_and_not_set(calls: dict[str, Any]) -> None:
    assert calls["clock"] == "EPERM"
    assert calls["now"] > 1.7e9


@pytest.mark.guards("User")
def test_every_id_of_a_job_is_of_the_workers_range(calls: dict[str, Any]) -> None:
    ids = {
        *calls["own"]["Uid"].split(),
        *calls["own"]["Gid"].split(),
        *calls["own"]["Groups"].split(),
    }
    assert len(ids) == 1
    assert int(ids.pop()) >= 200_000
