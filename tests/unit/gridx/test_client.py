"""What a client does not send to a coordinator that would leave it out without a word."""

from __future__ import annotations

from typing import Any

import pytest

from gridx.client import _check_release
from gridx.credits import Rates
from gridx.errors import NotBuilt
from gridx.protocol import PROTOCOL, ClientWelcome
from gridx.resources import GIB
from gridx.schemas import JobRequest, Limits


def welcome(protocol: int) -> ClientWelcome:
    return ClientWelcome(user="ada", protocol=protocol, balance_ucr=0, held_ucr=0, rates=Rates())


@pytest.mark.parametrize(
    "more",
    [
        {"image": "torch"},
        {"pip": ("polars",)},
        {"limits": Limits(gpus=1, gpu_model="A100")},
        {"limits": Limits(disk_bytes=GIB)},
    ],
)
def test_an_older_coordinator_is_named_before_anything_is_sent(more: dict[str, Any]) -> None:
    job = JobRequest(code="1", **more)
    with pytest.raises(NotBuilt, match="older release: it chooses no image, GPU model or disk"):
        _check_release(welcome(2), job, None, ())
    _check_release(welcome(PROTOCOL), job, None, ())


def test_a_plain_job_goes_to_every_coordinator() -> None:
    _check_release(welcome(1), JobRequest(code="1", limits=Limits(gpus=1)), None, ())
