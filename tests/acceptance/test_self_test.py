"""The self-test against a real engine: it passes, and each limit that is dropped is refused.

The engine cannot be broken on purpose, so what it is asked for is: a container without one
option is what an engine gives that ignores the option.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gridx.errors import SandboxError
from gridx.ids import new_worker_id
from tests.support.second_engine import SecondEngine
from worker.sandbox import docker, limits
from worker.sandbox.docker import DockerEngine
from worker.sandbox.self_test import hint_of

pytestmark = pytest.mark.docker

Options = dict[str, Any]
Change = Callable[[Options], None]


def host(**fields: Any) -> Change:
    """Return a change of the HostConfig; a field of None is dropped."""

    def change(options: Options) -> None:
        for name, value in fields.items():
            options["HostConfig"].pop(name)
            if value is not None:
                options["HostConfig"][name] = value

    return change


def tmpfs(folder: str, old: str, new: str = "") -> Change:
    """Return a change of the options of one tmpfs."""

    def change(options: Options) -> None:
        mounts = options["HostConfig"]["Tmpfs"]
        mounts[folder] = ",".join(
            new if word.startswith(old) else word
            for word in mounts[folder].split(",")
            if new or not word.startswith(old)
        )

    return change


def no_shm(options: Options) -> None:
    del options["HostConfig"]["Tmpfs"]["/dev/shm"]


def no_memory(options: Options) -> None:
    for name in ("Memory", "MemorySwap"):
        del options["HostConfig"][name]


def the_hosts_network(options: Options) -> None:
    options["NetworkDisabled"] = False
    options["HostConfig"]["NetworkMode"] = "host"


def no_user(options: Options) -> None:
    options["User"] = "0:0"


def all_slots(options: Options) -> None:
    mount = options["HostConfig"]["Mounts"][0]
    mount["Source"] = str(Path(mount["Source"]).parent)


def writable_inputs(options: Options) -> None:
    options["HostConfig"]["Mounts"][0]["ReadOnly"] = False


DROPPED: dict[str, tuple[Change, str]] = {
    "user": (no_user, "own user"),
    "capabilities": (host(CapDrop=None), "no capabilities"),
    "no-new-privileges": (host(SecurityOpt=None), "no new privileges"),
    "seccomp": (
        host(SecurityOpt=["no-new-privileges:true", "seccomp=unconfined"]),
        "engine's system call filter",
    ),
    "read-only root": (host(ReadonlyRootfs=None), "read-only root"),
    "size of /work": (tmpfs("/work", "size="), "disk limit"),
    "size of /tmp": (tmpfs("/tmp", "size="), "temporary folder"),
    "noexec of /work": (tmpfs("/work", "noexec", "exec"), "disk limit"),
    "inodes": (tmpfs("/work", "nr_inodes="), "number of files"),
    "/dev/shm": (no_shm, "shared memory"),
    "network": (the_hosts_network, "no network"),
    "memory": (no_memory, "memory limit"),
    "swap": (host(MemorySwap=None), "no swap above it"),
    "pids": (host(PidsLimit=None), "process limit"),
    "cpu": (host(NanoCpus=None), "CPU limit"),
    "ulimits": (host(Ulimits=None), "limits of a process"),
    "oom score": (host(OomScoreAdj=None), "ends first"),
    "inputs writable": (writable_inputs, "inputs read-only"),
    "inputs of all": (all_slots, "inputs of other jobs"),
}


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    """Let every container that is started from now on be asked for with the change."""

    def apply(how: Change) -> None:
        def changed(*arguments: Any, **named: Any) -> Options:
            options = limits.container_options(*arguments, **named)
            how(options)
            return options

        monkeypatch.setattr(docker, "container_options", changed)

    return apply


async def test_a_passed_self_test_is_announced_and_remembered(
    docker_api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "self-test.json"
    first = DockerEngine(worker_id=new_worker_id(), self_test=record)
    try:
        await first.prepare()
    finally:
        await first.close()
    checks = first.isolation.checks
    assert len(checks) >= 20
    assert [check for check in checks if not check.kept] == []

    async def never(engine: DockerEngine) -> None:
        raise AssertionError("it was remembered")

    monkeypatch.setattr(DockerEngine, "self_test", never)
    again = DockerEngine(worker_id=new_worker_id(), self_test=record)
    try:
        await again.prepare()
        assert again.isolation.checks == checks
    finally:
        await again.close()


@pytest.mark.parametrize("name", DROPPED)
async def test_a_worker_refuses_when_its_engine_ignores(
    docker_api: Any, tmp_path: Path, change: Callable[[Change], None], name: str
) -> None:
    how, check = DROPPED[name]
    change(how)
    record = tmp_path / "self-test.json"
    engine = DockerEngine(worker_id=new_worker_id(), self_test=record)
    try:
        with pytest.raises(SandboxError) as caught:
            await engine.prepare()
    finally:
        await engine.close()
    assert check in caught.value.message
    assert hint_of(check) in caught.value.hint
    assert not record.exists()
    broken = {each.name for each in engine.isolation.checks if not each.kept}
    assert check in broken


async def test_a_container_that_does_not_even_start_is_a_refusal(
    docker_api: Any, tmp_path: Path, change: Callable[[Change], None]
) -> None:
    change(host(Init=True))  # then the supervisor is not PID 1, and will not go on
    engine = DockerEngine(worker_id=new_worker_id(), self_test=tmp_path / "self-test.json")
    try:
        with pytest.raises(SandboxError, match="ended before it was ready"):
            await engine.prepare()
    finally:
        await engine.close()
    label = {"label": f"gridx.worker={engine._worker_id}"}
    assert docker_api.containers(all=True, filters=label) == []


async def test_under_gvisor_the_known_differences_pass_and_are_told(
    second: SecondEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "runsc" in second.runtimes(), "gVisor is not installed here: apt-get install runsc"
    monkeypatch.setenv("DOCKER_HOST", second.host)
    record = tmp_path / "self-test.json"
    engine = DockerEngine(worker_id=new_worker_id(), runtime="runsc", self_test=record)
    try:
        await engine.prepare()
    finally:
        await engine.close()
    details = {check.name: check.detail for check in engine.isolation.checks}
    assert "under gVisor" in details["supervisor closed to the job"]
    assert record.exists()


async def test_the_check_command_is_for_people_and_for_programs(docker_api: Any) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "worker.main", "check", *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    people, programs = await asyncio.gather(
        asyncio.to_thread(run), asyncio.to_thread(run, "--json")
    )
    assert people.returncode == 0, people.stdout + people.stderr
    assert people.stdout.endswith("This machine is fit.\n")
    assert "  ok  memory limit" in people.stdout
    report = json.loads(programs.stdout)
    assert report["fit"] is True
    assert {"answers", "no network", "killed in time"} <= {row["name"] for row in report["rows"]}
