"""The commands against a real grid: coordinator, worker, process sandbox."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gridx_command import COMMAND, Up, environment, gridx


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    home = tmp_path_factory.mktemp("grid")
    with Up(home / "up", "--sandbox", "process", env=environment(home)) as up:
        assert up.url, up.err
        yield up


@pytest.fixture
def env(grid: Up, tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path, GRIDX_URL=grid.url)


def submit(env: dict[str, str], code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return gridx("submit", "-", *options, env=env, stdin=code)


def test_submit_shows_what_a_terminal_would_and_leaves_with_the_jobs_code(
    env: dict[str, str],
) -> None:
    done = submit(env, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    assert done.stdout == "out\n"
    assert done.stderr.startswith("err\n")
    assert "failed on" in done.stderr
    assert "cost 0.00, balance 100.00" in done.stderr  # one's own worker costs nothing
    assert done.returncode == 7


def test_a_file_is_submitted_and_its_traceback_is_on_stderr(
    env: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "hello.py"
    path.write_text("print('é')\nraise ValueError('no')\n", encoding="utf-8")
    done = gridx("submit", str(path), env=env)
    assert done.stdout == "é\n"
    assert "ValueError: no" in done.stderr
    assert done.returncode == 1


def test_a_job_past_its_time_limit_says_so(env: dict[str, str]) -> None:
    done = submit(env, "import time; time.sleep(60)", "--timeout", "1s")
    assert done.returncode == 124
    assert "--timeout" in done.stderr


def test_an_interrupt_cancels_the_job_and_says_what_it_cost(env: dict[str, str]) -> None:
    code = "import time\nprint('begun', flush=True)\ntime.sleep(60)"
    process = subprocess.Popen(
        [*COMMAND, "submit", "-"],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(code)
        process.stdin.close()
        process.stdin = None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "cancelled" in err
    assert "cost 0.00" in err


def test_a_detached_job_can_be_followed_and_listed(env: dict[str, str]) -> None:
    done = submit(env, "import time\nfor i in range(3): print(i); time.sleep(0.1)", "--detach")
    job_id = done.stdout.strip()
    assert job_id.startswith("job_")
    assert f"gridx logs -f {job_id}" in done.stderr
    followed = gridx("logs", "-f", job_id, env=env)
    assert (followed.stdout, followed.returncode) == ("0\n1\n2\n", 0)
    again = gridx("logs", job_id, env=env)
    assert (again.stdout, again.stderr, again.returncode) == ("0\n1\n2\n", "", 0)
    listed = gridx("jobs", env=env).stdout.splitlines()
    assert listed[0].split()[:3] == ["JOB", "STATUS", "AGE"]
    assert listed[1].split()[:2] == [job_id, "completed"]
    newest = json.loads(gridx("jobs", "--json", "--all", env=env).stdout)[0]
    assert (newest["job_id"], newest["status"]) == (job_id, "completed")


def test_a_running_job_is_cancelled_by_its_id(env: dict[str, str]) -> None:
    job_id = submit(env, "import time; time.sleep(60)", "--detach").stdout.strip()
    done = gridx("cancel", job_id, env=env)
    assert done.returncode == 0
    assert done.stdout.startswith("cancelled")
    again = gridx("cancel", job_id, env=env)
    assert (again.returncode, again.stderr) == (0, "It had ended before: cancelled.\n")


def test_somebody_without_credits_is_told_what_is_missing(env: dict[str, str]) -> None:
    done = submit(env, "print(1)", "--timeout", "2h")
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "720.00" in done.stderr  # one core, two hours


def test_an_unknown_job_is_an_error_with_a_way_out(env: dict[str, str]) -> None:
    for command in ("logs", "cancel"):
        done = gridx(command, "job_" + "0" * 32, env=env)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert "gridx jobs" in done.stderr


def test_balance_workers_and_status_are_for_people_and_for_programs(env: dict[str, str]) -> None:
    assert gridx("balance", env=env).stdout == "ada: 100.00 free, 0.00 held, 100.00 in all\n"
    assert json.loads(gridx("balance", "ada", "--json", env=env).stdout)["balance"] == 100.0
    head, row, *_ = gridx("workers", env=env).stdout.splitlines()
    assert head.split()[:4] == ["WORKER", "OWNER", "STATUS", "TAKES"]
    assert row.split()[1:4] == ["ada", "online", "own"]
    (worker,) = json.loads(gridx("workers", "--json", env=env).stdout)
    assert worker["capability"]["sandbox"] == "process"
    assert "1 online" in gridx("status", env=env).stdout
    assert json.loads(gridx("status", "--json", env=env).stdout)["workers_online"] == 1


def test_login_is_remembered_and_the_doctor_says_where_from(
    grid: Up, env: dict[str, str], tmp_path: Path
) -> None:
    bare = {key: value for key, value in env.items() if not key.startswith("GRIDX_")}
    done = gridx("login", grid.url, "--user", "ada", env=bare)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "config" / "gridx" / "config.toml"
    assert str(file) in done.stdout
    assert file.stat().st_mode & 0o077 == 0
    assert gridx("balance", env=bare).stdout.startswith("ada: ")
    report = gridx("doctor", env=bare)
    assert report.returncode == 0, report.stdout
    assert f"address        {grid.url}, from: file {file}" in report.stdout
    assert "1 online: " in report.stdout


def test_the_doctor_names_what_needs_care(env: dict[str, str]) -> None:
    nobody = {**env, "GRIDX_URL": "http://127.0.0.1:9"}
    report = gridx("doctor", env=nobody)
    assert report.returncode == 1
    assert "CARE  coordinator" in report.stdout
    assert "gridx up" in report.stdout
    stranger = gridx("doctor", "--user", "bob", env=env)  # the only worker is not his
    assert stranger.returncode == 1
    assert "CARE  workers" in stranger.stdout
    wrong = gridx("doctor", "--json", env={**env, "GRIDX_URL": "ftp://x"})
    assert wrong.returncode == 1
    assert {row["check"]: row["state"] for row in json.loads(wrong.stdout)}["settings"] == "care"


def test_the_doctor_shows_a_lender_what_the_worker_finds(env: dict[str, str]) -> None:
    nowhere = {**env, "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    report = gridx("doctor", "--lender", env=nowhere)
    assert report.returncode == 1
    assert "CARE  lending: engine" in report.stdout
    assert "No Docker engine answers" in report.stdout
    rows = json.loads(gridx("doctor", "--lender", "--json", env=nowhere).stdout)
    assert {row["check"]: row["state"] for row in rows}["lending: engine"] == "care"
    assert "lending" not in gridx("doctor", env=nowhere).stdout


def test_a_reader_that_leaves_is_no_traceback(env: dict[str, str]) -> None:
    command = f"{' '.join(COMMAND)} jobs --json --all | head -1"
    done = subprocess.run(
        ["sh", "-c", command], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr
