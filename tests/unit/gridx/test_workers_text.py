"""The table of workers, for a terminal of 100 columns."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from gridx.resources import (
    GIB,
    Accepts,
    Capability,
    Gpu,
    Image,
    Isolation,
    Pause,
    PauseReason,
)
from gridx.schemas import WorkerView
from gridx.workers_text import pause_text, runs_text, workers_text


def image(name: str, python: str = "") -> Image:
    return Image(name=name, digest="", language="python" if python else name, python=python)


LAB = WorkerView(
    worker_id="w_1",
    name="lab-of-a-very-long-name",
    owner="somebody-with-a-name",
    status="online",
    capability=Capability(
        cores=32,
        memory_bytes=125 * GIB + GIB // 2,
        slots=32,
        sandbox="docker",
        images=(
            image("gridx/python:3.11-a", "3.11"),
            image("gridx/python:3.12-b", "3.12"),
            image("bash"),
            image("node"),
            image("gridx/torch:3.12-c", "3.12"),
        ),
        gpus=tuple(
            Gpu(uuid=str(n), name="NVIDIA A100-SXM4-80GB", memory_bytes=80 * GIB) for n in range(4)
        ),
        environments=True,
        isolation=Isolation(runtime="runsc"),
    ),
    running=120,
    free_cores=31.5,
    free_memory_bytes=100 * GIB,
)


def test_the_widest_table_fits_into_100_columns() -> None:
    text = workers_text([LAB])
    assert max(map(len, text.splitlines())) <= 100
    head, row, runs = text.splitlines()
    assert runs == ("lab-of-a-very-long-name runs python 3.11 3.12, bash, node, torch 3.12 +pip.")
    assert head.split() == [
        "WORKER", "OWNER", "STATUS", "TAKES", "RUNS", "CORES", "MEMORY", "GPUS", "SANDBOX", "JOBS",
    ]  # fmt: skip
    for words in ("online", "anyone", "python 3.11 3.12", "4 A100", "runsc", "120"):
        assert words in row


def test_a_paused_worker_says_why_and_until_when() -> None:
    pause = Pause(
        reason=PauseReason.HOURS,
        message="Outside the hours in which it is lent.",
        until=datetime(2026, 11, 24, 18, 0, tzinfo=UTC),
    )
    offer = msgspec.structs.replace(LAB.capability, pause=pause, accepts=Accepts.MINE)
    worker = msgspec.structs.replace(LAB, name="lab", status="paused", capability=offer)
    _, row, _, last = workers_text([worker]).splitlines()
    assert "paused" in row
    assert "own" in row
    assert last == (
        "lab is paused: Outside the hours in which it is lent. Until 2026-11-24 18:00 UTC."
    )
    assert pause_text(msgspec.structs.replace(worker, status="offline")) == ""


def test_those_that_are_online_come_first() -> None:
    away = msgspec.structs.replace(LAB, name="a", status="offline")
    here = msgspec.structs.replace(LAB, name="b")
    lines = workers_text([away, here]).splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["b", "a"]


def test_some_users_are_counted_and_a_plain_process_is_its_owners() -> None:
    some = msgspec.structs.replace(LAB.capability, accepts=Accepts.USERS, users=("a", "b"))
    assert "2 users" in workers_text([msgspec.structs.replace(LAB, capability=some)])
    process = msgspec.structs.replace(LAB.capability, sandbox="process", isolation=None, gpus=())
    row = workers_text([msgspec.structs.replace(LAB, capability=process)]).splitlines()[1]
    assert row.split()[-2] == "process"
    assert " own " in row


def test_minors_of_one_family_stand_together() -> None:
    assert runs_text(LAB.capability.images) == "python 3.11 3.12, bash, node, torch 3.12"
