"""What a lender is shown, line by line."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from gridx.protocol import AttemptRef
from gridx.resources import GIB, Accepts, Gpu, Pause, PauseReason
from worker.lending.command import COMMANDS, lines, parser
from worker.lending.control import GpuStatus, JobStatus, Status
from worker.lending.policy import OnPause, Readings

STATUS = Status(
    worker_id="worker_1",
    name="attic",
    user="alice",
    coordinator="ws://grid:8080/ws/worker",
    is_connected=True,
    version="1",
    pid=7,
    cores=4,
    memory_bytes=8 * GIB,
    slots=8,
    warm_sandboxes=2,
)


def shown(**changes: object) -> str:
    return "\n".join(lines(msgspec.structs.replace(STATUS, **changes)))


def test_an_idle_worker_on_a_machine_that_tells_nothing() -> None:
    assert lines(STATUS) == [
        "worker    attic of alice, pid 7",
        "grid      connected to ws://grid:8080/ws/worker",
        "lending   yes",
        "offers    4 cores, 8 GiB, 8 jobs at a time, to anyone; hours: always",
        "jobs      none; 2 warm sandboxes",
        "machine   tells nothing of battery, heat or its owner",
    ]


def test_a_pause_is_shown_with_its_reason() -> None:
    pause = Pause(
        reason=PauseReason.HOURS,
        message="It is lent at other hours (9-17).",
        until=datetime(2026, 11, 25, 9, tzinfo=UTC),
    )
    said = shown(pause=pause, is_draining=True, is_connected=False)
    assert "lending   paused (hours): It is lent at other hours (9-17). Until " in said
    assert said.count("It stops when its jobs have ended.") == 1
    assert "NOT connected to" in said


def test_jobs_gpus_people_and_readings_are_shown() -> None:
    said = shown(
        note="Paused.",
        accepts=Accepts.USERS,
        users=("bob",),
        jobs=(
            JobStatus(
                ref=AttemptRef(job_id="job_1", attempt=1), user="bob", running_s=3, is_frozen=True
            ),
            JobStatus(
                ref=AttemptRef(job_id="job_2", attempt=1), user="bob", running_s=75, is_session=True
            ),
        ),
        gpus=(
            GpuStatus(
                gpu=Gpu(uuid="GPU-a", name="A100", memory_bytes=40 * GIB),
                is_snoozed=True,
                snoozed_until=datetime(2026, 11, 25, 9, tzinfo=UTC),
            ),
        ),
        readings=Readings(
            on_battery=True, battery=0.5, cpu_temperature_c=61.4, owner_idle_s=60, others_cpu=0.25
        ),
    )
    assert said.startswith("Paused.\n")
    assert "to alice, bob;" in said
    assert "job_1 of bob, 3.0 s, stands still" in said
    assert "session   job_2 of bob, 1m15s" in said
    assert "A100, 40 GiB, GPU-a, snoozes until" in said
    assert "on battery, 50%, processor 61 °C" in said
    assert "its people's programs use 25%" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    assert "--data-dir" in parser(command).format_help()


def test_a_pause_takes_a_time_and_what_becomes_of_jobs() -> None:
    given = parser("pause").parse_args(["--for", "2h", "--jobs", "hand-back"])
    assert (given.for_s, given.jobs) == (7200.0, OnPause.HAND_BACK)
    with pytest.raises(SystemExit):
        parser("pause").parse_args(["--for", "soon"])
