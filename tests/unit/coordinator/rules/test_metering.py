"""What a worker meters is believed inside what the coordinator saw itself."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.rules.metering import MOST_BYTES, bound, largest_gpus_bytes
from gridx.resources import GIB, MIB, ResourceRequest, Usage

REQUEST = ResourceRequest(cores=2, memory_bytes=GIB, gpus=1)
HONEST = Usage(
    wall_s=9.5,
    cpu_s=18.0,
    peak_memory_bytes=700 * MIB,
    out_of_memory=True,
    input_bytes=10,
    output_bytes=20,
    dropped_bytes=30,
    gpu_s=4.0,
    gpu_memory_peak_bytes=3 * GIB,
    frozen_s=5.0,
    source="host",
)


def bounded(usage: Usage, **more: object) -> Usage:
    given = {"own_s": 10.0, "own_frozen_s": 6.0, "request": REQUEST, "gpu_memory_bytes": 16 * GIB}
    return bound(usage, **{**given, **more})  # type: ignore[arg-type]


def test_what_can_be_is_left_as_it_is() -> None:
    assert bounded(HONEST) == HONEST


@pytest.mark.parametrize(
    ("field", "said", "kept"),
    [
        ("wall_s", 11.0, 10.0),
        ("cpu_s", 1e9, 9.5 * 2 * 1.1),
        ("peak_memory_bytes", 64 * GIB, GIB + 16 * MIB),
        ("gpu_s", 100.0, 9.5),
        ("gpu_memory_peak_bytes", 1 << 60, 16 * GIB),
        ("frozen_s", 100.0, 6.0),
        ("input_bytes", 1 << 62, MOST_BYTES),
        ("output_bytes", -1, 0),
        ("dropped_bytes", -(1 << 62), 0),
        ("peak_memory_bytes", -5, 0),
        ("wall_s", -1.0, 0.0),
        ("source", "x" * 10_000, "none"),
        ("source", "cgroup", "cgroup"),
    ],
)
def test_what_cannot_be_becomes_the_nearest_that_can(
    field: str, said: object, kept: object
) -> None:
    usage = bounded(msgspec.structs.replace(HONEST, **{field: said}))
    assert (
        getattr(usage, field) == pytest.approx(kept) if field != "source" else usage.source == kept
    )


@pytest.mark.parametrize("said", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["wall_s", "cpu_s", "gpu_s", "frozen_s"])
def test_what_is_no_number_is_nothing(field: str, said: float) -> None:
    assert getattr(bounded(msgspec.structs.replace(HONEST, **{field: said})), field) == 0.0


def test_a_job_without_gpus_used_none() -> None:
    usage = bounded(HONEST, request=ResourceRequest(cores=2), gpu_memory_bytes=0)
    assert (usage.gpu_s, usage.gpu_memory_peak_bytes) == (0.0, 0)


def test_a_clock_that_went_back_gives_nothing() -> None:
    usage = bounded(HONEST, own_s=-3.0, own_frozen_s=-1.0)
    assert (usage.wall_s, usage.cpu_s, usage.gpu_s, usage.frozen_s) == (0, 0, 0, 0)


def test_the_largest_cards_are_those_that_a_job_may_have_had() -> None:
    assert largest_gpus_bytes([8 * GIB, 80 * GIB, 16 * GIB], 2) == 96 * GIB
    assert largest_gpus_bytes([], 2) == 0
    assert largest_gpus_bytes([-1, 1 << 60], 2) == 1 << 40


@given(
    st.builds(
        Usage,
        wall_s=st.floats(),
        cpu_s=st.floats(),
        peak_memory_bytes=st.integers(-(2**63), 2**63 - 1),
        gpu_s=st.floats(),
        gpu_memory_peak_bytes=st.integers(-(2**63), 2**63 - 1),
        frozen_s=st.floats(),
        output_bytes=st.integers(-(2**63), 2**63 - 1),
    )
)
def test_whatever_is_said_stays_inside(usage: Usage) -> None:
    kept = bounded(usage)
    assert 0 <= kept.wall_s <= 10
    assert 0 <= kept.cpu_s <= kept.wall_s * 2 * 1.1
    assert 0 <= kept.gpu_s <= kept.wall_s
    assert 0 <= kept.frozen_s <= 6
    assert 0 <= kept.peak_memory_bytes <= GIB + 16 * MIB
    assert 0 <= kept.gpu_memory_peak_bytes <= 16 * GIB
    assert 0 <= kept.output_bytes <= MOST_BYTES
    assert bounded(kept) == kept
    msgspec.json.decode(msgspec.json.encode(kept), type=Usage)
