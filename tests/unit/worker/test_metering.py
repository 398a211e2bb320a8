"""A reading of the sandbox, held against the worker's clock."""

from __future__ import annotations

import math

import pytest

from gridx.resources import ResourceRequest, Usage
from worker.sandbox.metering import checked_usage


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
