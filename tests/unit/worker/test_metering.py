"""A reading of the sandbox, held against the worker's clock."""

from __future__ import annotations

import asyncio
import math

import pytest

from gridx.errors import SandboxError
from gridx.resources import ResourceRequest, Usage
from worker.sandbox.metering import (
    EngineStats,
    HostReading,
    checked_usage,
    reading_of_stats,
    seen_from_outside,
)


def check(said: Usage, host_wall_s: float, *, cores: float = 1.0, held_s: float = 0.0) -> Usage:
    request = ResourceRequest(cores=cores)
    return checked_usage(said, host_wall_s=host_wall_s, request=request, held_s=held_s)


def test_a_plausible_reading_stands() -> None:
    said = Usage(wall_s=9.9, cpu_s=9.0, peak_memory_bytes=5, source="cgroup")
    assert check(said, 10.0) == said


@pytest.mark.parametrize("wall_s", [0.0, 5.0, 11.0, -1.0, math.nan, math.inf])
def test_a_wall_time_that_the_clock_does_not_know_is_replaced(wall_s: float) -> None:
    assert check(Usage(wall_s=wall_s), 10.0).wall_s == 10.0


def test_time_in_which_nobody_read_is_not_charged() -> None:
    assert check(Usage(wall_s=4.0), 10.0, held_s=6.0).wall_s == 4.0


@pytest.mark.parametrize(
    ("cpu_s", "cores", "expected_s"),
    [(30.0, 2.0, 22.0), (-1.0, 1.0, 0.0), (math.nan, 1.0, 0.0), (math.inf, 1.0, 0.0)],
)
def test_more_cpu_time_than_there_was_is_cut(cpu_s: float, cores: float, expected_s: float) -> None:
    assert check(Usage(wall_s=10.0, cpu_s=cpu_s), 10.0, cores=cores).cpu_s == pytest.approx(
        expected_s
    )


def test_more_memory_than_the_limit_and_gpu_time_without_a_gpu_are_cut() -> None:
    checked = check(Usage(wall_s=10.0, peak_memory_bytes=1 << 50, gpu_s=9.0), 10.0)
    assert (checked.peak_memory_bytes, checked.gpu_s) == (ResourceRequest().memory_bytes, 0.0)


def test_a_gpu_is_at_work_no_longer_than_the_job() -> None:
    request = ResourceRequest(gpus=2)
    said = Usage(wall_s=10.0, gpu_s=99.0)
    assert checked_usage(said, host_wall_s=10.0, request=request).gpu_s == 20.0


# ---------------------------------------------------------------- from outside


def test_what_is_read_outside_is_what_counts_whatever_the_inside_says() -> None:
    said = Usage(wall_s=2.0, cpu_s=0.0, peak_memory_bytes=1, source="cgroup")
    before, after = HostReading(1.5, 20, 0), HostReading(3.0, 170, 0)
    assert seen_from_outside(said, before, after, source="host") == Usage(
        wall_s=2.0, cpu_s=1.5, peak_memory_bytes=170, source="host"
    )


def test_a_kill_for_memory_that_the_host_saw_is_told() -> None:
    before, after = HostReading(1.0, 20, 1), HostReading(1.0, 170, 2)
    assert seen_from_outside(Usage(), before, after, source="host").out_of_memory


@pytest.mark.parametrize(
    ("before", "after"), [(None, HostReading(1.0)), (HostReading(1.0), None), (None, None)]
)
def test_a_container_that_has_gone_leaves_the_reading_of_the_inside(
    before: HostReading | None, after: HostReading | None
) -> None:
    said = Usage(cpu_s=1.0, source="cgroup")
    assert seen_from_outside(said, before, after, source="host") == said


def test_where_the_host_counts_no_peak_the_inside_tells_it() -> None:
    usage = seen_from_outside(
        Usage(peak_memory_bytes=7), HostReading(0.0), HostReading(1.0), source="host"
    )
    assert (usage.peak_memory_bytes, usage.source) == (7, "host")


def test_the_engines_statistics_are_read_in_both_versions() -> None:
    v1 = {
        "cpu_stats": {"cpu_usage": {"total_usage": 1_500_000_000}},
        "memory_stats": {"usage": 5, "max_usage": 9},
    }
    v2 = {
        "cpu_stats": {"cpu_usage": {"total_usage": 1_500_000_000}},
        "memory_stats": {"usage": 5},
    }
    assert reading_of_stats(v1) == HostReading(1.5, 9)
    assert reading_of_stats(v2) == HostReading(1.5, 5)
    assert reading_of_stats({"cpu_stats": {}, "memory_stats": {}}) is None


async def test_the_statistics_are_sampled_beside_the_job_and_keep_the_highest_peak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.sandbox.metering.STATS_PAUSE_S", 0.0)
    answers: asyncio.Queue[HostReading | None] = asyncio.Queue()
    asked = asyncio.Event()

    async def ask() -> HostReading | None:
        if answers.empty():
            asked.set()
        return await answers.get()

    meter = EngineStats(ask)
    assert meter.read() is None
    answers.put_nowait(HostReading(0.5, 20))  # while it waits for its job
    while meter.read() is None:
        await asyncio.sleep(0)
    meter.begin()
    answers.put_nowait(HostReading(1.0, 90))
    answers.put_nowait(HostReading(2.0, 40))
    asked.clear()
    await asked.wait()
    assert meter.read() == HostReading(2.0, 90)
    meter.close()


async def test_an_engine_that_fails_ends_the_sampling() -> None:
    async def ask() -> HostReading | None:
        raise SandboxError("The engine is gone.")

    meter = EngineStats(ask)
    await asyncio.sleep(0)
    assert meter.read() is None
    meter.close()


def test_statistics_that_are_late_do_not_lower_what_the_inside_says() -> None:
    said = Usage(cpu_s=0.7, peak_memory_bytes=50, source="rusage")
    usage = seen_from_outside(said, HostReading(1.0, 20), HostReading(1.2, 90), source="stats")
    assert (usage.cpu_s, usage.peak_memory_bytes, usage.source) == (0.7, 90, "stats")
