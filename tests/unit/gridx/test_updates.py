from __future__ import annotations

import datetime as dt

import pytest

from gridx.errors import (
    JobCancelled,
    JobError,
    JobFailed,
    RemoteCrash,
    RemoteOutOfMemory,
    RemoteTimeout,
    WorkerLost,
)
from gridx.schemas import JobView, Limits, Reason
from gridx.states import Cause
from gridx.updates import job_error


def ended(status: str, reason: Reason | None = None) -> JobView:
    return JobView(
        job_id="job_" + "0" * 32,
        user_id="ada",
        status=status,
        language="python",
        kind="script",
        limits=Limits(),
        reserved=6.0,
        cost=0.0,
        attempt=1,
        exit_code=3,
        reason=reason,
        created_at=dt.datetime(2026, 11, 24, tzinfo=dt.UTC),
    )


@pytest.mark.parametrize(
    ("status", "code", "cls"),
    [
        ("failed", Cause.ERROR, JobFailed),
        ("failed", "job_failed", JobFailed),
        ("failed", Cause.TIMEOUT, RemoteTimeout),
        ("failed", Cause.OUT_OF_MEMORY, RemoteOutOfMemory),
        ("failed", Cause.CRASHED, RemoteCrash),
        ("failed", Cause.SANDBOX_FAILED, WorkerLost),
        ("failed", "worker_lost", WorkerLost),
        ("failed", "from_the_future", JobError),
        ("cancelled", "whatever", JobCancelled),
    ],
)
def test_the_reason_of_an_end_is_its_error(status: str, code: str, cls: type[JobError]) -> None:
    error = job_error(ended(status, Reason(code=code, message="So.", hint="Then.")))
    assert type(error) is cls
    assert str(error) == "So. Then."
    assert error.details["exit_code"] == 3


def test_an_end_without_a_reason_still_says_something() -> None:
    error = job_error(ended("failed"))
    assert isinstance(error, JobFailed)
    assert "failed" in error.message
    assert error.hint == JobFailed.default_hint
    assert isinstance(job_error(ended("cancelled")), JobCancelled)


def test_a_completed_job_has_no_error() -> None:
    assert job_error(ended("completed")) is None
