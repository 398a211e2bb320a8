"""What the self-test makes of what a job has found, and what it remembers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from gridx.disk import shared_bytes, tmp_bytes, work_bytes
from gridx.errors import SandboxError
from gridx.resources import Check
from worker.check import Report, Row, table
from worker.sandbox.base import Promise
from worker.sandbox.limits import promises
from worker.sandbox.self_test import (
    HINTS,
    REQUEST,
    hint_of,
    judge,
    key_of,
    refuse,
)

SMALL = tmp_bytes(REQUEST.memory_bytes)
# As a container of runc on cgroup v2 tells it.
FOUND: dict[str, Any] = {
    "uid": 200000,
    "gid": 200000,
    "groups": [],
    "status": {"CapEff": "0000000000000000", "CapBnd": "0000000000000000", "Seccomp": "2"},
    "first": {"NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "1"},
    "rlimits": {"nofile": 1024, "fsize": 256 << 20, "core": 0, "msgqueue": 0},
    "oom_score_adj": 500.0,
    "interfaces": ["lo"],
    "connect": 101,
    "denied": {"unshare": 1, "io_uring_setup": 38},
    "supervisor": 13,
    "processes": 2,
    "cgroup": {
        "memory_bytes": float(REQUEST.memory_bytes),
        "swap_bytes": None,  # a kernel without swap has no such file
        "pids": 128.0,
        "cores": 1.0,
    },
    "root_is_read_only": True,
    "root_write": 30,
    "writable": ["/work", "/tmp", "/dev/shm"],
    "inputs": [],
    "inputs_are_read_only": True,
    "inputs_write": 30,
    **{
        name: {
            "bytes": size,
            "noexec": True,
            "nosuid": True,
            "nodev": True,
            "write": 0,
            "many": [16382, 28],
            "filled": [size, 28],
        }
        for name, size in (
            ("work", work_bytes(REQUEST.memory_bytes)),
            ("tmp", SMALL),
            ("shm", shared_bytes(REQUEST.memory_bytes)),
        )
    },
}


def found(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(FOUND), **changes}


def broken(facts: dict[str, Any], runtime: str = "") -> set[str]:
    return {check.name for check in judge(facts, REQUEST, runtime=runtime) if not check.kept}


def test_what_a_good_engine_gives_passes() -> None:
    assert broken(FOUND) == set()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"uid": 0, "gid": 0}, "own user"),
        ({"groups": [999]}, "own user"),
        ({"status": {"CapEff": "00", "CapBnd": "00000000a80425fb"}}, "no capabilities"),
        ({"first": {"NoNewPrivs": "0", "Seccomp": "2"}}, "no new privileges"),
        ({"first": {"NoNewPrivs": "1", "Seccomp": "0"}}, "engine's system call filter"),
        ({"denied": {"unshare": 0}}, "own system call filter"),
        ({"root_is_read_only": False}, "read-only root"),
        ({"writable": ["/work", "/tmp", "/data"]}, "read-only root"),
        ({"interfaces": ["eth0", "lo"]}, "no network"),
        ({"connect": 0}, "no network"),
        ({"oom_score_adj": 0.0}, "ends first"),
        ({"supervisor": 0}, "supervisor closed to the job"),
        ({"processes": 100}, "own processes only"),
        ({"inputs_are_read_only": False}, "inputs read-only"),
        ({"inputs": ["secret"]}, "inputs of other jobs"),
        ({"work": {"write": 13}}, "disk limit"),
        ({"cgroup": {**FOUND["cgroup"], "memory_bytes": None}}, "memory limit"),
        ({"cgroup": {**FOUND["cgroup"], "swap_bytes": float("inf")}}, "no swap above it"),
        ({"cgroup": {**FOUND["cgroup"], "pids": float("inf")}}, "process limit"),
        ({"cgroup": {**FOUND["cgroup"], "cores": 2.0}}, "CPU limit"),
        ({"rlimits": {**FOUND["rlimits"], "core": -1}}, "limits of a process"),
    ],
)
def test_each_thing_that_is_missing_is_named(changes: dict[str, Any], name: str) -> None:
    assert name in broken(found(**changes))


def test_gvisor_differs_where_it_is_known_to_and_says_so() -> None:
    told = found(
        supervisor=0,
        root_is_read_only=False,  # of none of these it tells
        inputs_are_read_only=False,
        work={**FOUND["work"], "noexec": False, "many": [20000, 0]},
        first={},
        oom_score_adj=0.0,
        cgroup=dict.fromkeys(FOUND["cgroup"]),
    )
    assert broken(told, "runsc") == set()
    assert {"memory limit", "supervisor closed to the job"} <= broken(told, "runc")
    details = {check.name: check.detail for check in judge(told, REQUEST, runtime="runsc")}
    assert "open under gVisor" in details["supervisor closed to the job"]
    assert "gVisor does not show it" in details["memory limit"]
    assert "count as memory" in details["number of files"]
    assert "inputs read-only" in broken(found(inputs_write=0), "runsc")
    assert "no network" in broken(found(interfaces=["eth0"]), "runsc")


def test_every_check_and_every_promise_has_its_own_way_out() -> None:
    names = [check.name for check in judge(FOUND, REQUEST)]
    names += [promise.name for promise in promises({})]
    names += ["answers", "killed in time", "out of memory is seen"]
    assert set(names) <= set(HINTS)


def test_a_refusal_names_each_and_says_what_to_do_once() -> None:
    refuse([Check(name="answers", kept=True)])
    checks: list[Check | Promise] = [
        Check(name="memory limit", kept=False, detail="cannot be read"),
        Check(name="process limit", kept=False, detail="cannot be read"),
        Promise(name="no swap above it", kept=False),
    ]
    with pytest.raises(SandboxError) as caught:
        refuse(checks)
    assert "memory limit (cannot be read), process limit" in caught.value.message
    assert "no swap above it (off)" in caught.value.message
    assert caught.value.hint.count("Delegate=") == 1
    assert "swapaccount=1" in caught.value.hint


# Recorded: `docker info` of a rootless engine on a machine with cgroup v1, where it has none.
ROOTLESS_V1 = {
    "OSType": "linux",
    "CgroupDriver": "none",
    "CgroupVersion": "1",
    "MemoryLimit": False,
    "SwapLimit": False,
    "PidsLimit": False,
    "CpuCfsQuota": False,
    "CpuCfsPeriod": False,
    "SecurityOptions": ["name=seccomp,profile=default", "name=rootless"],
}
ROOTLESS_V2 = {
    **ROOTLESS_V1,
    "CgroupDriver": "systemd",
    "CgroupVersion": "2",
    "MemoryLimit": True,
    "SwapLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
    "CpuCfsPeriod": True,
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"],
}


def test_a_rootless_engine_needs_control_groups_that_were_given_to_it() -> None:
    with pytest.raises(SandboxError, match="memory limit") as caught:
        refuse(promises(ROOTLESS_V1))
    assert "Delegate=" in caught.value.hint
    refuse(promises(ROOTLESS_V2))


# ---------------------------------------------------------------- remembered


def test_the_key_changes_with_whatever_could_change_the_answer() -> None:
    info = {"ID": "a", "ServerVersion": "20.10", "KernelVersion": "6.1"}
    same: dict[str, Any] = {"image": "sha256:1", "runtime": "", "options": {"Memory": 1}}
    keys = {
        key_of(info, **same),
        key_of({**info, "ServerVersion": "27.0"}, **same),
        key_of({**info, "KernelVersion": "6.2"}, **same),
        key_of({**info, "ID": "b"}, **same),
        key_of(info, **{**same, "image": "sha256:2"}),
        key_of(info, **{**same, "runtime": "runsc"}),
        key_of(info, **{**same, "options": {"Memory": 2}}),
    }
    assert len(keys) == 7
    assert key_of({**info, "Containers": 7}, **same) == key_of(info, **same)


# ---------------------------------------------------------------- for people


def test_the_table_is_as_wide_as_the_terminal_and_says_what_to_do() -> None:
    rows = (
        Row(name="engine", kept=True, detail="answers, version 20.10.24"),
        Row(name="memory limit", kept=False, detail="off", hint=hint_of("memory limit")),
    )
    text = table(Report(fit=False, sandbox="docker", rows=rows), 90)
    lines = text.splitlines()
    assert lines[0].split() == ["ok", "engine", "answers,", "version", "20.10.24"]
    assert lines[1].startswith("  NO  memory limit")
    assert "Delegate=cpu" in text
    assert lines[-1] == "This machine is not fit yet."
    assert max(map(len, lines)) <= 90


def test_the_page_says_of_each_check_what_to_do() -> None:
    root = Path(__file__).resolve().parents[3]
    page = (root / "docs" / "reference" / "self-test.md").read_text(encoding="utf-8")
    names = [check.name for check in judge(FOUND, REQUEST)]
    for name in [*names, "answers", "killed in time", "out of memory is seen"]:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
        assert row.endswith(f"| {hint_of(name).strip()} |"), name
