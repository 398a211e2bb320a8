"""What a job finds around itself, from recorded files: control groups of both versions."""

from __future__ import annotations

import math

import pytest

from worker.runtime.facts import cgroup_limits, interfaces, status, writable_mounts

# Recorded in a container of 256 MiB, one core, 128 processes, no swap.
VERSION_1 = {
    "memory/memory.limit_in_bytes": "268435456\n",
    "memory/memory.memsw.limit_in_bytes": "268435456\n",
    "cpu/cpu.cfs_quota_us": "100000\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "pids/pids.max": "128\n",
}
VERSION_2 = {
    "cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma\n",
    "memory.max": "268435456\n",
    "memory.swap.max": "0\n",
    "cpu.max": "100000 100000\n",
    "pids.max": "128\n",
}
LIMITS = {"memory_bytes": 268435456.0, "swap_bytes": 0.0, "pids": 128.0, "cores": 1.0}


@pytest.mark.parametrize("files", [VERSION_1, VERSION_2], ids=["v1", "v2"])
def test_the_limits_of_both_versions_are_read_alike(files: dict[str, str]) -> None:
    assert cgroup_limits(files.get) == LIMITS


def test_a_rootless_engine_without_delegation_has_no_limit_to_be_read() -> None:
    delegated_nothing = {"cgroup.controllers": "\n"}
    assert set(cgroup_limits(delegated_nothing.get).values()) == {None}


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({**VERSION_2, "memory.max": "max\n"}, "memory_bytes"),
        ({**VERSION_2, "memory.swap.max": "max\n"}, "swap_bytes"),
        ({**VERSION_2, "pids.max": "max\n"}, "pids"),
        ({**VERSION_2, "cpu.max": "max 100000\n"}, "cores"),
        ({**VERSION_1, "cpu/cpu.cfs_quota_us": "-1\n"}, "cores"),
        ({**VERSION_1, "pids/pids.max": "max\n"}, "pids"),
    ],
)
def test_a_limit_that_is_not_set_is_infinite(files: dict[str, str], name: str) -> None:
    assert cgroup_limits(files.get) == {**LIMITS, name: math.inf}


def test_swap_of_version_1_is_what_lies_above_the_memory() -> None:
    files = {**VERSION_1, "memory/memory.memsw.limit_in_bytes": str(512 << 20)}
    assert cgroup_limits(files.get)["swap_bytes"] == 256 << 20


def test_a_mount_is_writable_when_neither_it_nor_its_file_system_is_read_only() -> None:
    recorded = (
        "600 500 0:50 / / ro,relatime master:1 - overlay overlay rw,lowerdir=/x\n"
        "601 600 0:51 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw\n"
        "602 600 0:52 / /work rw,nosuid,nodev,noexec - tmpfs tmpfs rw,size=524288k\n"
        "603 600 0:53 / /sys/fs/cgroup rw,nosuid - cgroup cgroup ro\n"
        "604 600 8:1 /slots/a /in ro,relatime - ext4 /dev/root rw\n"
    )
    assert writable_mounts(recorded) == ["/proc", "/work"]


def test_interfaces_and_status_are_read_as_the_kernel_writes_them() -> None:
    table = (
        "Inter-|   Receive\n face |bytes\n    lo:       0       0\n  eth0: 1 1\n"  # two head lines
    )
    assert interfaces(table) == ["eth0", "lo"]
    assert status("Name:\tpython3\nCapEff:\t0000\nNoNewPrivs:\t1\nSeccomp:\t2\n") == {
        "CapEff": "0000",
        "NoNewPrivs": "1",
        "Seccomp": "2",
    }
