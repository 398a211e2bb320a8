"""The pool over real containers: nothing between hand-out and result but the job itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gridx.resources import MIB, Gpu, ResourceRequest
from gridx.states import Cause
from tests.support.sandbox_contract import Said, call
from worker.meters import OutsideMeters
from worker.runtime.frames import CallExited, Run
from worker.sandbox.base import DEFAULT_REQUEST, GpuUnavailable, Sandbox
from worker.sandbox.docker import DockerEngine
from worker.sandbox.pool import SandboxPool

pytestmark = pytest.mark.docker


def count_engine_calls(engine: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note every use of the engine's API, and of the threads that it has for the disk."""
    seen: list[str] = []
    for name in ("_call", "_aside", "_attach"):
        inner: Callable[..., Any] = getattr(engine, name)

        def noted(*given: Any, inner: Callable[..., Any] = inner, name: str = name) -> Any:
            seen.append(name)
            return inner(*given)

        monkeypatch.setattr(engine, name, noted)
    return seen


def processes_of(sandbox: Sandbox, api: Any) -> set[str]:
    """Return the processes of its container, by the host's numbers."""
    pid = api.inspect_container(sandbox.id)["State"]["Pid"]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {str(pid), *children}


async def test_from_hand_out_to_result_there_is_no_engine_call_and_no_fork(
    engine: DockerEngine, docker_api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.sandbox.pool.REFILL_DELAY_S", 3600.0)
    pool = SandboxPool(engine, target=2, parallel=2)
    await pool.fill_first()
    while pool.warm < 2:
        await asyncio.sleep(0.05)
    ahead = processes_of(next(iter(pool._default.warm)), docker_api)
    calls = count_engine_calls(engine, monkeypatch)
    sandbox = pool.take_warm(DEFAULT_REQUEST)
    assert sandbox is not None
    meters = OutsideMeters(sandbox.meter, None)
    meters.begin_call()
    said = await call(sandbox, "import os\nprint(os.getpid(), len(os.listdir('/proc/self/task')))")
    usage = meters.of_all(said.exited.usage)
    assert calls == []
    assert said.exited.cause is Cause.COMPLETED
    # The process that ran it is the one that was there before it was handed out.
    assert len(ahead) == 2 and processes_of(sandbox, docker_api) <= ahead
    assert usage.source in ("host", "cgroup")
    await pool.close()


async def test_a_trivial_cell_imports_nothing_on_its_way(engine: DockerEngine) -> None:
    sandbox = await engine.start(DEFAULT_REQUEST)
    loaded = "import sys; print(*sorted(sys.modules))"
    seen: list[set[str]] = []
    for number in range(2):
        await sandbox.send(
            Run(kind="cell", call=number, code=loaded, timeout_s=50, keep=True, watched=("a",))
        )
        said = Said()
        while not said or not isinstance(said[-1], CallExited):
            said.append(await sandbox.receive())
        seen.append(set(said.stdout.split()))
    assert seen[0] and seen[1] <= seen[0]
    await sandbox.kill()


async def test_cpu_time_and_memory_are_read_from_the_hosts_files(engine: DockerEngine) -> None:
    sandbox = await engine.start(ResourceRequest(memory_bytes=512 * MIB))
    assert sandbox.meter is not None and sandbox.meter.source == "host"
    meters = OutsideMeters(sandbox.meter, None)
    meters.begin_call()
    said = await call(
        sandbox,
        "x = b'x' * (100 << 20)\nimport time\nend = time.process_time() + 0.3\n"
        "while time.process_time() < end: pass",
    )
    usage, inside = meters.of_all(said.exited.usage), said.exited.usage
    assert usage.source == "host"
    assert 0.3 <= usage.cpu_s < 0.3 + 0.5
    assert abs(usage.cpu_s - inside.cpu_s) < 0.2
    assert 100 * MIB <= usage.peak_memory_bytes <= 512 * MIB
    await sandbox.kill()
    assert sandbox.is_removed
    assert sandbox.meter.read() is None


async def test_an_engine_without_a_gpu_driver_withdraws_the_gpus_of_its_pool(
    engine: DockerEngine,
) -> None:
    gpu = Gpu(uuid="GPU-none", name="card", memory_bytes=1)
    pool = SandboxPool(engine, target=1, parallel=1, gpus=[gpu])
    await pool.fill_first()  # the GPU is tried: create works, start does not
    assert pool.gpus == ()
    assert pool.warm == 1
    with pytest.raises(GpuUnavailable, match="no driver for GPUs"):
        await engine.start(ResourceRequest(gpus=1), gpus=["GPU-none"])
    await pool.close()
