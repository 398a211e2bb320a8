from __future__ import annotations

import pytest

from gridx.resources import GIB, KIB, MIB, Capability, ResourceRequest, format_bytes
from gridx.schemas import Limits


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (MIB, "1 MiB"),
        (8 * GIB, "8 GiB"),
        (1.5 * GIB, "1.5 GiB"),
        (2048 * GIB, "2 TiB"),
        (5000 * GIB, "4.9 TiB"),
        (KIB, "1 KiB"),
    ],
)
def test_sizes_are_shown_in_the_largest_binary_unit(size: float, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(("sandbox", "own"), [("docker", False), ("process", True)])
def test_only_a_docker_sandbox_takes_the_jobs_of_strangers(sandbox: str, own: bool) -> None:
    offer = Capability(cores=2, memory_bytes=GIB, slots=4, sandbox=sandbox)
    assert offer.own_jobs_only is own


def test_the_limits_of_a_job_name_the_resources_of_its_sandbox() -> None:
    limits = Limits(timeout_s=5, cpus=2, memory_bytes=3 * GIB, gpus=1)
    assert limits.request() == ResourceRequest(cores=2, memory_bytes=3 * GIB, gpus=1)
    assert Limits().request() == ResourceRequest()
