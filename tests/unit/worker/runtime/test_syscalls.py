"""The system call filter, run by an interpreter of classic BPF in plain Python."""

from __future__ import annotations

import errno

import pytest

from gridx.errors import SandboxError
from worker.runtime.syscalls import (
    ALLOWED_SOCKET_FAMILIES,
    DENIED,
    MACHINES,
    NAMESPACE_FLAGS,
    RET_ALLOW,
    RET_ENOSYS,
    RET_EPERM,
    RET_KILL_PROCESS,
    Machine,
    machine,
    program,
)

both_machines = pytest.mark.parametrize("target", MACHINES.values(), ids=MACHINES)
denied_calls = [
    pytest.param(target, row[target.column], id=f"{name}-{call}")
    for name, target in MACHINES.items()
    for call, row in DENIED.items()
    if row[target.column] is not None
]
# Calls that IPython, numpy, subprocess, asyncio, sqlite3 and multiprocessing make all the time.
NEEDED = {
    "x86_64": {"read": 0, "write": 1, "mmap": 9, "fork": 57, "execve": 59, "futex": 202,
               "openat": 257, "memfd_create": 319, "wait4": 61, "epoll_wait": 232},
    "aarch64": {"read": 63, "write": 64, "mmap": 222, "execve": 221, "futex": 98,
                "openat": 56, "memfd_create": 279, "wait4": 260, "epoll_pwait": 22},
}  # fmt: skip


def verdict(target: Machine, number: int, argument: int = 0, audit_arch: int | None = None) -> int:
    """Return what the filter answers for one call, as the kernel would run it."""
    words = {
        0: number,
        4: target.audit_arch if audit_arch is None else audit_arch,
        16: argument & 0xFFFFFFFF,
    }
    code = program(target)
    accumulator, at = 0, 0
    for _ in range(len(code)):
        step = code[at]
        match step.code:
            case 0x20:
                accumulator = words[step.value]
                at += 1
            case 0x06:
                return step.value
            case 0x15 | 0x35 | 0x45:
                true = {
                    0x15: accumulator == step.value,
                    0x35: accumulator >= step.value,
                    0x45: bool(accumulator & step.value),
                }[step.code]
                at += 1 + (step.jump_true if true else step.jump_false)
            case _:
                raise AssertionError(f"unknown instruction {step}")
    raise AssertionError("the filter did not return")


@pytest.mark.parametrize(("target", "number"), denied_calls)
def test_a_call_on_the_list_is_refused(target: Machine, number: int) -> None:
    assert verdict(target, number) == RET_EPERM


@both_machines
def test_every_call_that_is_not_on_the_list_passes(target: Machine) -> None:
    denied = {row[target.column] for row in DENIED.values()}
    special = {target.socket, target.clone, target.clone3}
    assert all(
        verdict(target, number) == RET_ALLOW
        for number in range(600)
        if number not in denied | special
    )


@pytest.mark.parametrize(
    ("name", "call"), [(name, call) for name, calls in NEEDED.items() for call in calls]
)
def test_what_python_needs_is_allowed(name: str, call: str) -> None:
    assert verdict(MACHINES[name], NEEDED[name][call]) == RET_ALLOW


@both_machines
@pytest.mark.parametrize("family", range(50))
def test_sockets_are_of_three_families(target: Machine, family: int) -> None:
    expected = RET_ALLOW if family in ALLOWED_SOCKET_FAMILIES else RET_EPERM
    assert verdict(target, target.socket, family) == expected


@both_machines
@pytest.mark.parametrize("bit", range(32))
def test_clone_makes_processes_and_threads_but_no_namespace(target: Machine, bit: int) -> None:
    expected = RET_EPERM if NAMESPACE_FLAGS >> bit & 1 else RET_ALLOW
    assert verdict(target, target.clone, 1 << bit) == expected


@both_machines
def test_a_thread_of_the_c_library_can_be_made(target: Machine) -> None:
    assert verdict(target, target.clone, 0x3D0F00) == RET_ALLOW


@both_machines
def test_clone3_looks_as_if_the_kernel_did_not_have_it(target: Machine) -> None:
    assert verdict(target, target.clone3) == RET_ENOSYS
    assert RET_ENOSYS & 0xFFFF == errno.ENOSYS


# AUDIT_ARCH_* of linux/audit.h: what the processors of the table can run beside their own code.
FOREIGN = {
    "i386": 0x40000003,
    "arm": 0x40000028,
    "arm, big end first": 0x00000028,
    "x86_64": 0xC000003E,
    "aarch64": 0xC00000B7,
    "none at all": 0,
}


@both_machines
@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_architecture_is_killed_whatever_it_calls(target: Machine, name: str) -> None:
    if FOREIGN[name] == target.audit_arch:
        assert verdict(target, 0) == RET_ALLOW
        return
    calls = {0, target.socket, target.clone, target.clone3, 0x40000000}
    answers = {verdict(target, number, audit_arch=FOREIGN[name]) for number in calls}
    assert answers == {RET_KILL_PROCESS}


def test_the_other_numbers_of_x86_64_are_refused() -> None:
    x86_64 = MACHINES["x86_64"]
    numbers = [row[0] for row in DENIED.values() if row[0] is not None]
    for number in (0, 1, 39, 511, 547, x86_64.socket, x86_64.clone3, *numbers):
        assert verdict(x86_64, 0x40000000 | number) == RET_EPERM
    assert verdict(x86_64, 0xFFFFFFFF) == RET_EPERM


@both_machines
def test_every_row_of_the_list_is_in_the_program(target: Machine) -> None:
    """Counted, so that a row that lost its number for one machine is found."""
    rows = [row for row in DENIED.values() if row[target.column] is not None]
    compared = {step.value for step in program(target) if step.code == 0x15}
    assert {row[target.column] for row in rows} <= compared
    # What x86-64 alone has: the ports, and the tables of segments.
    assert len(DENIED) - len(rows) == (0 if target.has_x32 else 3)


@both_machines
def test_an_argument_is_compared_by_the_word_that_the_kernel_reads(target: Machine) -> None:
    """Both machines put the lower half first; a family with rubbish above it is the family."""
    assert verdict(target, target.socket, 0xDEAD_0000_0000 | 16) == RET_EPERM
    assert verdict(target, target.socket, 0xDEAD_0000_0000 | 2) == RET_ALLOW
    assert verdict(target, target.clone, 0xDEAD_0000_0000 | 0x10000000) == RET_EPERM


@both_machines
def test_jumps_fit_their_byte_and_the_program_its_limit(target: Machine) -> None:
    code = program(target)
    assert len(code) <= 4096
    assert all(0 <= step.jump_true < 256 and 0 <= step.jump_false < 256 for step in code)


def test_a_machine_without_a_table_is_refused_with_a_way_out() -> None:
    with pytest.raises(SandboxError, match="riscv64") as refusal:
        machine("riscv64")
    assert "x86_64" in refusal.value.hint
