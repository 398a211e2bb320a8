"""``gridx up``: two programs in one terminal, and nothing of them left after it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.support.gridx_command import Up, environment


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path)


@pytest.fixture
def up(tmp_path: Path, env: dict[str, str]) -> Iterator[Up]:
    with Up(tmp_path / "grid", "--sandbox", "process", env=env) as running:
        yield running


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def of_its_sessions(pids: list[int]) -> list[int]:
    """Every process of the sessions that these processes lead: their sandboxes too."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                session = int((folder / "stat").read_text().rpartition(")")[2].split()[3])
            except OSError:
                continue
            if session in pids:
                found.append(int(folder.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_both_programs_and_leaves_nothing(up: Up, number: signal.Signals) -> None:
    assert up.ready_line.startswith("ready http=http://"), up.err
    assert up.addresses["ws"].endswith("/ws/worker")
    children = up.children()
    assert sorted(children) == ["coordinator.main", "worker.main"]
    workers = requests.get(f"{up.url}/workers", timeout=10).json()["workers"]
    assert [(worker["status"], worker["owner"]) for worker in workers] == [("online", "ada")]
    leaders = list(children.values())
    assert up.stop(number) == 0
    assert not any(map(is_alive, leaders))
    assert of_its_sessions(leaders) == []
    port = int(up.url.rpartition(":")[2])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize(
    ("dying", "other"),
    [("worker.main", "coordinator.main"), ("coordinator.main", "worker.main")],
)
def test_a_program_that_dies_ends_the_other_and_shows_its_last_lines(
    up: Up, dying: str, other: str
) -> None:
    children = up.children()
    os.kill(children[dying], signal.SIGKILL)
    assert up.process.wait(60) == 1
    up.stop()
    err = "".join(up.err)
    name = dying.partition(".")[0]
    assert f"the last lines of the {name}:" in err
    assert f"error: The {name} ended by itself (killed by SIGKILL)." in err
    assert not is_alive(children[other])


def test_a_port_that_is_taken_is_said_with_the_coordinators_own_words(
    tmp_path: Path, env: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        up = Up(tmp_path / "grid", "--http-port", port, "--sandbox", "process", env=env)
        assert up.ready_line == ""
        assert up.process.wait(60) == 1
        up.stop()
    err = "".join(up.err)
    assert "error: The coordinator ended by itself" in err
    assert port in err


def test_without_an_engine_auto_takes_processes_with_a_notice(
    tmp_path: Path, env: dict[str, str]
) -> None:
    nowhere = {**env, "DOCKER_HOST": f"unix://{tmp_path}/no.sock"}
    with Up(tmp_path / "grid", env=nowhere) as up:
        assert up.url
        assert up.stop() == 0
    assert "NOTICE: no Docker engine here" in "".join(up.err)


def test_started_again_it_knows_its_user_and_its_jobs(tmp_path: Path, env: dict[str, str]) -> None:
    folder = tmp_path / "grid"
    with Up(folder, "--sandbox", "process", env=env) as first:
        reply = requests.post(
            f"{first.url}/jobs", json={"user_id": "ada", "code": "print(1)"}, timeout=10
        )
        job_id = reply.json()["job_id"]
        first.stop()
    with Up(folder, "--sandbox", "process", env=env) as second:
        jobs = requests.get(f"{second.url}/jobs?user_id=ada", timeout=10).json()["jobs"]
        assert [job["job_id"] for job in jobs] == [job_id]
