"""What is charged for a call."""

from __future__ import annotations

import os
import resource

import pytest

from worker.runtime.metering import Reading, field, process_cpu_s, process_peak_bytes, used

RUSAGE = resource.struct_rusage((1.5, 0.5, 2048, *([0] * 13)))


def test_the_warm_up_is_not_charged() -> None:
    before = Reading(10.0, 3.0, 50, 0)
    after = Reading(12.5, 3.75, 99, 0)
    usage = used(before, after, [], warm_cpu_s=0.0, input_bytes=7)
    assert (usage.wall_s, usage.cpu_s, usage.peak_memory_bytes) == (2.5, 0.75, 99)
    assert (usage.input_bytes, usage.source, usage.out_of_memory) == (7, "cgroup", False)


def test_without_a_cgroup_the_reaped_processes_tell() -> None:
    before = after = Reading(0.0, None, None, None)
    usage = used(before, after, [RUSAGE, RUSAGE], warm_cpu_s=0.5, input_bytes=0)
    assert (usage.cpu_s, usage.peak_memory_bytes, usage.source) == (3.5, 2 << 20, "rusage")


def test_a_risen_counter_means_out_of_memory() -> None:
    before, after = Reading(0.0, 0.0, 0, 1), Reading(0.0, 0.0, 0, 2)
    assert used(before, after, [], warm_cpu_s=0.0, input_bytes=0).out_of_memory
    assert not used(before, before, [], warm_cpu_s=0.0, input_bytes=0).out_of_memory


@pytest.mark.parametrize(
    ("name", "data", "value"),
    [
        (b"oom_kill", b"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 3),  # v1
        (b"oom_kill", b"low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n", 1),  # v2
        (b"usage_usec", b"usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n", 1500),
    ],
)
def test_counters_are_read_from_both_versions_of_cgroups(
    name: bytes, data: bytes, value: float
) -> None:
    assert field(name)(data) == value


def test_a_file_without_the_counter_is_no_source() -> None:
    with pytest.raises(ValueError, match="oom_kill"):
        field(b"oom_kill")(b"oom 1\n")


def test_a_process_that_lives_tells_its_largest_memory_and_its_time() -> None:
    assert process_peak_bytes(os.getpid()) > 1 << 20
    assert process_cpu_s(os.getpid()) > 0


def test_a_process_that_has_gone_has_no_memory_to_tell() -> None:
    assert process_peak_bytes(1 << 30) == 0
