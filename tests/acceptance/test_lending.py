"""A lender's pause with real containers and the real three programs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gridx.states import Cause
from tests.support.programs import Coordinator, Worker, wait_for
from tests.support.sandbox_contract import read_to_exit
from worker.lending.control import Ask, Status, ask_worker
from worker.lending.policy import OnPause
from worker.runtime.frames import Cancel, Events, Run
from worker.sandbox.base import DEFAULT_REQUEST, Sandbox
from worker.sandbox.docker import DockerEngine

pytestmark = pytest.mark.docker
OPTIONS = ("--warm", "1", "--cores", "2", "--memory", "4G", "--pause-when-active", "off")
# In small steps: of a sleep, the time in which it stands still counts as well.
THREE_SECONDS = "import time\nfor at in range(30):\n    time.sleep(0.1)\nprint('three seconds')"
SPINS = "import os\nos.fork()\nprint('on', flush=True)\nwhile True: pass"


async def begun(sandbox: Sandbox, code: str, timeout_s: float = 60.0) -> None:
    """Start a script and return when it has said something."""
    await sandbox.send(Run(kind="script", code=code, timeout_s=timeout_s))
    async with asyncio.timeout(60):
        while not isinstance(await sandbox.receive(), Events):
            pass


@pytest.fixture
async def cpu_s(docker_api: Any, engine: DockerEngine) -> Callable[[Sandbox], float]:
    """Return what the machine's kernel has counted for a container, all its processes together."""

    def read(sandbox: Sandbox) -> float:
        pid = docker_api.inspect_container(sandbox.id)["State"]["Pid"]
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        groups = {
            name: where
            for _, names, where in (line.split(":", 2) for line in lines)
            for name in names.split(",")
        }
        if "cpuacct" in groups:
            path = Path("/sys/fs/cgroup/cpuacct" + groups["cpuacct"]) / "cpuacct.usage"
            if path.exists():
                return int(path.read_text()) / 1e9
        # where that folder cannot be seen: of each of its processes
        pids = docker_api.top(sandbox.id, ps_args="-o pid")["Processes"]
        ticks = 0
        for (one,) in pids:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / 100

    return read


async def test_nothing_in_a_frozen_container_runs(
    engine: DockerEngine, cpu_s: Callable[[Sandbox], float]
) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    await begun(sandbox, SPINS)
    await sandbox.freeze()
    await sandbox.freeze()  # twice is once
    before = cpu_s(sandbox)
    await asyncio.sleep(1.0)  # time in which it would have used a second
    assert cpu_s(sandbox) - before < 0.005
    await sandbox.thaw()
    async with asyncio.timeout(30):
        while cpu_s(sandbox) - before < 0.1:
            await asyncio.sleep(0.05)
    await sandbox.send(Cancel())
    said = await read_to_exit(sandbox)
    assert said.exited.cause is Cause.CANCELLED
    assert said.exited.usage.frozen_s >= 1.0
    await sandbox.kill()


async def test_the_deadline_and_the_meter_of_a_frozen_container_stand_still(
    engine: DockerEngine,
) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    await sandbox.freeze()  # before it has a job: none of that is the job's
    await sandbox.thaw()
    code = (
        "import time\nprint('on', flush=True)\nfor _ in range(10): time.sleep(0.05)\nprint('off')"
    )
    await begun(sandbox, code, timeout_s=2)
    await sandbox.freeze()
    await asyncio.sleep(2.2)  # longer than its limit
    await sandbox.thaw()
    said = await read_to_exit(sandbox)
    assert said.exited.cause is Cause.COMPLETED
    assert said.stdout == "off\n"
    assert said.exited.usage.frozen_s == pytest.approx(2.2, abs=0.5)
    assert 0.4 < said.exited.usage.wall_s < 2
    await sandbox.kill()


async def test_a_frozen_container_can_be_killed(engine: DockerEngine) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    await begun(sandbox, SPINS)
    await sandbox.freeze()
    async with asyncio.timeout(10):
        await sandbox.kill()


def tell(folder: Path, command: str, **more: Any) -> Status:
    return ask_worker(folder, Ask(command=command, **more))


def test_a_job_of_three_seconds_that_stands_still_for_four_costs_three(
    docker_api: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "worker"
    with (
        Coordinator(tmp_path / "coordinator") as coordinator,
        Worker(coordinator, folder, *OPTIONS),
    ):
        job = coordinator.submit("anna", THREE_SECONDS, timeout_s=6)
        coordinator.wait_job(job, lambda found: found["status"] == "running")
        tell(folder, "pause")
        wait_for(lambda: [one for one in tell(folder, "status").jobs if one.is_frozen])
        waiting = coordinator.wait_job(job, lambda found: found.get("waiting"))["waiting"]
        assert "Paused by its lender" in waiting and "paused it" in waiting
        workers = coordinator.get("/workers")["workers"]
        assert [worker["status"] for worker in workers] == ["paused"]
        with pytest.raises(AssertionError, match="not within"):
            coordinator.wait_job(job, within_s=4)
        assert tell(folder, "resume").pause is None
        ended = coordinator.wait_job(job)
        assert ended["status"] == "completed" and ended["stdout"] == "three seconds\n"
        usage = ended["usage"]
        assert usage["frozen_s"] >= 4
        assert 2.5 <= usage["wall_s"] < 5
        assert 0.25 <= ended["cost"] < 0.55  # 0.1 a second


def test_a_job_that_is_handed_back_runs_on_another_worker_and_costs_what_that_took(
    docker_api: Any, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with Coordinator(tmp_path / "coordinator") as coordinator:
        with Worker(coordinator, one, *OPTIONS, user="bert"):
            job = coordinator.submit("anna", THREE_SECONDS)
            coordinator.wait_job(job, lambda found: found["status"] == "running")
            with Worker(coordinator, two, *OPTIONS, user="carl"):
                tell(one, "pause", jobs=OnPause.HAND_BACK)
                ended = coordinator.wait_job(job)
                assert ended["status"] == "completed" and ended["stdout"] == "three seconds\n"
                assert 2.5 <= ended["usage"]["wall_s"] < 5
                assert 0.25 <= ended["cost"] < 0.55
        # Drained, the worker that is left ends by itself.
        with Worker(coordinator, two, *OPTIONS, user="carl") as last:
            tell(two, "drain")
            assert last.process.wait(60) == 0
