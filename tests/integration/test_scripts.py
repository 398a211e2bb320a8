"""The scripts behind `make`: the engine that they find or start, and the docs that they check."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
docker_engine = load_script("docker_engine")
check_docs = load_script("check_docs")

NOBODY = "unix:///nowhere/docker.sock"


def run_engine(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "docker_engine.py"), *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture
def private(tmp_path: Path) -> Iterator[docker_engine.Private]:
    """Places of its own; the state lies on a short path, because socket paths have a limit."""
    with tempfile.TemporaryDirectory(prefix="gx-") as state:
        own = docker_engine.Private(data=tmp_path / "data", state=Path(state) / "e")
        try:
            yield own
        finally:
            docker_engine.stop_private(own)


# ---------------------------------------------------------------- the engine


@pytest.mark.docker
def test_the_engine_that_answers_is_the_one_that_is_used() -> None:
    done = run_engine("run", "--", "sh", "-c", "echo host=$DOCKER_HOST")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"host={os.environ.get('DOCKER_HOST', '')}\n"
    assert "starting" not in done.stderr


@pytest.mark.docker
def test_the_exit_code_is_the_commands_own() -> None:
    assert run_engine("run", "--", "sh", "-c", "exit 7").returncode == 7
    assert run_engine("run", "--", "sh", "-c", "kill -TERM $$").returncode == 128 + 15


def test_where_installing_is_forbidden_it_says_what_to_type_and_fails() -> None:
    done = run_engine("run", "--", "true", DOCKER_HOST=NOBODY, GRIDX_NO_INSTALL="1")
    assert done.returncode == docker_engine.EX_UNAVAILABLE
    assert "No Docker engine answers." in done.stderr
    assert "docs/howto/install-docker.md" in done.stderr
    assert done.stdout == ""


def test_a_private_engine_serves_one_command_and_is_gone_after_it(
    private: docker_engine.Private, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", NOBODY)
    if not docker_engine.may_start():  # not root, or not Debian: then it must refuse
        with pytest.raises(docker_engine.EngineUnavailable), docker_engine.using_engine(private):
            pass
        return
    with docker_engine.using_engine(private) as host:
        assert host == private.host
        assert docker_engine.why_unusable(host) is None
        with docker_engine.using_engine(private) as second:  # shared, not started twice
            assert second == host
        assert docker_engine.why_unusable(host) is None
    assert private.pid() is None
    assert not private.state.exists()
    assert docker_engine.why_unusable(private.host) == "No Docker engine answers"


def test_an_engine_that_cannot_limit_a_container_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class EngineWithoutLimits:
        def info(self) -> dict[str, object]:
            return {"OSType": "linux", "MemoryLimit": False, "PidsLimit": True, "CpuCfsQuota": True}

        def close(self) -> None:
            pass

    monkeypatch.setattr(docker_engine, "engine_client", lambda **_: EngineWithoutLimits())
    assert "cannot limit memory" in docker_engine.why_unusable(None)


def test_a_pid_that_belongs_to_another_program_is_left_alone(
    private: docker_engine.Private,
) -> None:
    private.state.mkdir(parents=True)
    private.pidfile.write_text(str(os.getpid()))
    assert private.pid() is None
    docker_engine.stop_private(private)  # and this test goes on


# ---------------------------------------------------------------- the docs


def test_every_link_of_the_docs_leads_somewhere() -> None:
    assert list(check_docs.complaints(ROOT)) == []


def test_a_dead_link_a_missing_heading_and_a_missing_target_are_found(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("test: setup\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("async def test_that_is_there() -> None: ...\n")
    (tmp_path / "README.md").write_text(
        "# One\n[a](gone.md) [b](#one) [c](#two) [d](https://far.test) `make test` `make tea`\n"
        "`tests/test_a.py` `tests/test_a.py::test_that_is_there` `tests/test_a.py::test_gone`\n"
        "`tests/test_b.py`\n"
    )
    assert list(check_docs.complaints(tmp_path)) == [
        "README.md: gone.md does not exist",
        "README.md: #two has no such heading",
        "README.md: the Makefile has no target tea",
        "README.md: tests/test_a.py has no test test_gone",
        "README.md: tests/test_b.py does not exist",
    ]
