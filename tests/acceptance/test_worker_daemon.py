"""The worker daemon over real Docker, against a scripted coordinator."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gridx.events import OutputDropped, Stream
from gridx.protocol import AttemptRef, Heartbeat, InterruptCall, StopAttempt
from gridx.resources import MIB
from gridx.states import Cause
from tests.support.programs import wait_for
from tests.support.worker_coordinator import WorkerCoordinator, worker_coordinator
from tests.support.worker_program import WorkerProgram, worker_program

pytestmark = pytest.mark.docker
OPTIONS = ("--warm", "1", "--cores", "2", "--memory", "4G")


@pytest.fixture
async def coordinator(docker_api: Any) -> AsyncIterator[WorkerCoordinator]:
    async with worker_coordinator() as made:
        yield made


@pytest.fixture
async def worker(coordinator: WorkerCoordinator, tmp_path: Path) -> AsyncIterator[WorkerProgram]:
    async with worker_program(coordinator.url, tmp_path, *OPTIONS) as program:
        await program.wait_ready()
        yield program


class Containers:
    """The containers of the worker that said hello, running or not."""

    def __init__(self, api: Any, coordinator: WorkerCoordinator) -> None:
        self._api = api
        self._coordinator = coordinator

    def all(self) -> set[str]:
        label = f"gridx.worker={self._coordinator.hellos[0].worker_id}"
        return {c["Id"] for c in self._api.containers(all=True, filters={"label": label})}

    def alive(self) -> set[str]:
        label = f"gridx.worker={self._coordinator.hellos[0].worker_id}"
        return {c["Id"] for c in self._api.containers(filters={"label": label})}

    async def wait(self, holds: Any) -> None:
        await asyncio.to_thread(wait_for, holds)


@pytest.fixture
def containers(docker_api: Any, coordinator: WorkerCoordinator) -> Containers:
    return Containers(docker_api, coordinator)


async def running(coordinator: WorkerCoordinator, code: str = "") -> AttemptRef:
    """Give a job that does not end; return when it has begun."""
    ref = coordinator.give(f"print('on', flush=True)\n{code}\nimport time\ntime.sleep(600)")
    await coordinator.wait(lambda: coordinator.text(ref).startswith("on\n"))
    return ref


async def test_a_strangers_job_runs_in_a_container(
    coordinator: WorkerCoordinator, worker: WorkerProgram
) -> None:
    assert (await worker.wait_ready())["sandbox"] == "docker"
    hello = coordinator.hellos[0]
    assert hello.capability.images[0].name.startswith("gridx/python:3.")
    assert {"numpy", "pandas", "matplotlib"} <= set(hello.capability.images[0].packages)
    ref = coordinator.give("import os; print(os.uname().nodename, os.getuid())", user="stranger")
    report = await coordinator.wait_settled(ref)
    assert report.cause is Cause.COMPLETED
    host, uid = coordinator.text(ref).split()
    assert host == "job" != socket.gethostname()
    assert int(uid) >= 200_000
    assert int(uid) != os.getuid()
    assert report.usage.source in ("host", "cgroup")


async def test_each_job_has_a_container_of_its_own_that_is_destroyed(
    coordinator: WorkerCoordinator, worker: WorkerProgram, containers: Containers
) -> None:
    before = containers.all()
    for _ in range(3):
        ref = coordinator.give("open('/tmp/mark', 'x').close()")
        assert (await coordinator.wait_settled(ref)).cause is Cause.COMPLETED
    await containers.wait(lambda: len(containers.all()) == 1 and not containers.all() & before)


async def test_a_job_of_another_size_gets_that_size(
    coordinator: WorkerCoordinator, worker: WorkerProgram
) -> None:
    code = "import os; s = os.statvfs('/work'); print(s.f_blocks * s.f_frsize)"
    ref = coordinator.give(code, memory_bytes=512 * MIB, cpus=0.5)
    await coordinator.wait_settled(ref)
    assert int(coordinator.text(ref)) == 256 * MIB


async def test_time_and_memory_limits_are_reported_with_their_reason(
    coordinator: WorkerCoordinator, worker: WorkerProgram
) -> None:
    slow = coordinator.give("while True: pass", timeout_s=0.5)
    report = await coordinator.wait_settled(slow)
    assert report.cause is Cause.TIMEOUT
    assert report.message == "Stopped at its time limit of 0.5 s."
    assert 0.5 <= report.usage.wall_s < 5
    big = coordinator.give("a = [0]\nwhile True: a += a", memory_bytes=128 * MIB)
    report = await coordinator.wait_settled(big)
    assert report.cause is Cause.OUT_OF_MEMORY
    assert report.usage.out_of_memory


async def test_a_cancelled_job_is_reported_and_its_container_goes(
    coordinator: WorkerCoordinator, worker: WorkerProgram, containers: Containers
) -> None:
    await containers.wait(lambda: len(containers.all()) == 1)
    (used,) = containers.all()
    ref = await running(coordinator)
    coordinator.send(StopAttempt(job_id=ref.job_id, attempt=1))
    report = await coordinator.wait_settled(ref)
    assert report.cause is Cause.CANCELLED
    assert report.usage.wall_s > 0
    await containers.wait(lambda: used not in containers.all())


async def test_output_above_the_limit_is_counted_and_its_end_kept(
    coordinator: WorkerCoordinator, worker: WorkerProgram
) -> None:
    lines = 800_000
    ref = coordinator.give(f"for i in range({lines}): print(i, 'x' * 92)", timeout_s=600)
    report = await coordinator.wait_settled(ref)
    assert report.cause is Cause.COMPLETED
    events = coordinator.events(ref)
    markers = [event for event in events if isinstance(event, OutputDropped)]
    assert [marker.dropped_bytes for marker in markers] == [report.usage.dropped_bytes]
    at = events.index(markers[0])
    head = "".join(event.text for event in events[:at] if isinstance(event, Stream))
    tail = "".join(event.text for event in events[at:] if isinstance(event, Stream))
    assert head.startswith("0 x")
    assert 60 * MIB < len(head) < 65 * MIB
    assert tail.endswith(f"{lines - 1} {'x' * 92}\n")
    assert len(tail) <= MIB
    assert report.stream_bytes == len(coordinator.streams[ref])


async def test_sigterm_leaves_no_container(
    coordinator: WorkerCoordinator, tmp_path: Path, containers: Containers
) -> None:
    async with worker_program(coordinator.url, tmp_path, *OPTIONS, "--drain-s", "0.2") as worker:
        await worker.wait_ready()
        ref = await running(coordinator)
        assert containers.all()
        worker.signal(signal.SIGTERM)
        assert await worker.wait_exit() == 0
    assert coordinator.handed_back(ref)
    assert containers.all() == set()


async def test_after_kill_9_the_containers_end_and_the_next_run_removes_them(
    coordinator: WorkerCoordinator, tmp_path: Path, containers: Containers
) -> None:
    first = await WorkerProgram.start(coordinator.url, tmp_path, *OPTIONS)
    await first.wait_ready()
    ref = await running(coordinator)
    beats = len(coordinator.of(Heartbeat))
    await coordinator.wait(  # the pool is full again: no container is half made
        lambda: [b for b in coordinator.of(Heartbeat)[beats:] if b.load.warm_sandboxes == 1]
    )
    first.signal(signal.SIGKILL)
    await first.wait_exit()
    left = containers.all()
    assert len(left) == 2
    await containers.wait(lambda: containers.alive() == set())  # at the end of their stdin
    async with worker_program(coordinator.url, tmp_path, *OPTIONS) as second:
        await second.wait_ready()
        assert second.log("sweep")[0]["containers"] >= len(left)
        assert not left & containers.all()
        await coordinator.wait(lambda: coordinator.handed_back(ref))


async def test_the_daemon_stays_below_100_mb(
    coordinator: WorkerCoordinator, worker: WorkerProgram
) -> None:
    for _ in range(5):
        ref = coordinator.give("for i in range(20000): print(i)")
        await coordinator.wait_settled(ref)
    assert psutil.Process(worker.process.pid).memory_info().rss < 100_000_000


async def test_heartbeats_say_how_many_sandboxes_are_warm(
    coordinator: WorkerCoordinator, worker: WorkerProgram
) -> None:
    await coordinator.wait(
        lambda: [b for b in coordinator.of(Heartbeat) if b.load.warm_sandboxes == 1]
    )


async def test_a_session_lives_in_one_container_that_goes_with_it(
    coordinator: WorkerCoordinator, worker: WorkerProgram, docker_api: Any
) -> None:
    containers = Containers(docker_api, coordinator)
    ref = coordinator.open_session("import socket\nx = 1\nprint(socket.gethostname())")
    await coordinator.wait_call(ref, 0)
    coordinator.start_call(ref, 1, "print('on')\nimport time\ntime.sleep(600)")
    await coordinator.wait_lines(ref, 2)
    coordinator.cut()
    await coordinator.wait(lambda: len(coordinator.hellos) == 2)
    coordinator.send(InterruptCall(job_id=ref.job_id, attempt=1, call=1))
    assert (await coordinator.wait_call(ref, 1)).cause is Cause.CANCELLED
    coordinator.start_call(ref, 2, "print(x)\nbig = bytearray(4 << 30)")
    report = await coordinator.wait_settled(ref)
    assert (report.cause, report.call) == (Cause.OUT_OF_MEMORY, 2)
    assert report.usage.source in ("host", "cgroup")
    assert coordinator.text(ref).splitlines()[1:] == ["on", "1"]
    await containers.wait(lambda: len(containers.all()) == 1)  # the next warm one
