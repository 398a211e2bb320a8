"""The worker or its Docker engine dies, or falls silent, in the middle of work.

What ran there is nobody's debt: attempts are handed back or reported as the infrastructure's
failure, no container, folder or user id stays behind, and the pool fills itself again.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gridx.errors import SandboxError
from gridx.ids import new_worker_id
from gridx.protocol import AttemptRef, Heartbeat
from gridx.states import Cause
from tests.support.programs import wait_for
from tests.support.second_engine import SecondEngine
from tests.support.worker_coordinator import WorkerCoordinator, worker_coordinator
from tests.support.worker_program import worker_program
from worker.sandbox.base import DEFAULT_REQUEST
from worker.sandbox.docker import DockerEngine

pytestmark = pytest.mark.docker

OPTIONS = (
    *("--warm", "1", "--cores", "2", "--memory", "8G", "--slots", "6", "--drain-s", "0"),
    *("--languages", "python"),  # the image that the second engine has
)
LOAD = (
    "import time\ntime.sleep(600)",
    "while True: print('x' * 1000)",
    "import os\nfor _ in range(4): os.fork()\nwhile True: pass",
)


@pytest.fixture
async def coordinator() -> AsyncIterator[WorkerCoordinator]:
    async with worker_coordinator() as made:
        yield made


async def under_load(coordinator: WorkerCoordinator) -> list[AttemptRef]:
    """Give a job that sleeps, one that floods and one that forks; return when all are at it."""
    refs = [
        coordinator.give("print('on', flush=True)\n" + code, timeout_s=300, cpus=0.5)
        for code in LOAD
    ]
    for ref in refs:
        await coordinator.wait(lambda ref=ref: coordinator.streams[ref])
    return refs


async def until(holds: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_for, holds)


def folders(data_dir: Path) -> int:
    """Return how many containers have a folder for their inputs."""
    return len(list((data_dir / "slots").iterdir()))


async def test_a_worker_that_is_killed_under_load_leaves_nothing_running(
    second: SecondEngine, coordinator: WorkerCoordinator, tmp_path: Path
) -> None:
    # Ended in any case, also where something fails before the kill.
    async with worker_program(
        coordinator.url, tmp_path, *OPTIONS, DOCKER_HOST=second.host
    ) as first:
        await first.wait_ready()
        refs = await under_load(coordinator)
        worker_id = coordinator.hellos[0].worker_id
        first.signal(signal.SIGKILL)  # the pool may well be in the middle of a start
        await first.wait_exit()
    assert second.containers(worker_id)
    await until(lambda: second.containers(worker_id, all=False) == set())  # at their stdin's end
    left = second.containers(worker_id)
    async with worker_program(
        coordinator.url, tmp_path, *OPTIONS, DOCKER_HOST=second.host
    ) as again:
        await again.wait_ready()
        # One that began in the last moment may be unknown to it: the hello shows that, too.
        known = [ref for ref in refs if ref in coordinator.hellos[1].running]
        assert len(known) >= 2
        await coordinator.wait(lambda: all(coordinator.handed_back(ref) for ref in known))
        assert not left & second.containers(worker_id)
        await until(lambda: folders(tmp_path) == 1)
    assert second.containers(worker_id) == set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
async def test_an_engine_that_ends_under_load_costs_nobody_anything(
    second: SecondEngine, coordinator: WorkerCoordinator, tmp_path: Path, number: int
) -> None:
    async with worker_program(
        coordinator.url, tmp_path, *OPTIONS, DOCKER_HOST=second.host
    ) as program:
        await program.wait_ready()
        refs = await under_load(coordinator)
        worker_id = coordinator.hellos[0].worker_id
        await asyncio.to_thread(second.end, number)
        try:
            for ref in refs:
                await coordinator.wait(
                    lambda ref=ref: ref in coordinator.settled or coordinator.handed_back(ref)
                )
            for report in coordinator.settled.values():
                assert report.cause is Cause.SANDBOX_FAILED, report
                assert report.usage.wall_s == report.usage.cpu_s == 0  # nothing to pay for
            meanwhile = coordinator.give("print('too early')")
            await coordinator.wait(lambda: coordinator.handed_back(meanwhile))
        finally:
            await asyncio.to_thread(second.start)
        beats = len(coordinator.of(Heartbeat))
        await coordinator.wait(
            lambda: [b for b in coordinator.of(Heartbeat)[beats:] if b.load.warm_sandboxes == 1]
        )
        ref = coordinator.give("print('back')")
        assert (await coordinator.wait_settled(ref)).cause is Cause.COMPLETED
        assert coordinator.text(ref) == "back\n"
        # One is warm again; what was alive when the engine ended is gone, with its folder.
        await until(lambda: len(second.containers(worker_id)) == 1 == folders(tmp_path))
        assert len(coordinator.hellos) == 1  # the worker itself was never away
    assert second.containers(worker_id) == set()


async def test_an_engine_that_falls_silent_holds_nobody_up_and_is_cleaned_afterwards(
    second: SecondEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.sandbox.docker.API_TIMEOUT_S", 1.0)
    monkeypatch.setattr("worker.sandbox.docker.ATTACH_TIMEOUT_S", 1.0)
    monkeypatch.setattr("worker.sandbox.docker.MEND_S", 0.2)
    monkeypatch.setenv("DOCKER_HOST", second.host)
    worker_id = new_worker_id()
    engine = DockerEngine(worker_id=worker_id)
    await engine.prepare()
    try:
        sandbox = await engine.start(DEFAULT_REQUEST)
        began_s = time.monotonic()
        with second.standing_still():
            with pytest.raises(SandboxError):
                await engine.start(DEFAULT_REQUEST)
            await sandbox.kill()
            assert time.monotonic() - began_s < 20  # every call has its limit
            assert not sandbox.is_removed
        # It goes on, and carries out what it has still been asked: nothing of that stays.
        await until(lambda: sandbox.is_removed and second.containers(worker_id) == set())
        assert engine._live == {}
        again = await engine.start(DEFAULT_REQUEST)
        assert not again.is_closed
    finally:
        await engine.close()
    assert second.containers(worker_id) == set()
