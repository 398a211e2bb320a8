"""What jobs use of the GPUs: samples in, seconds and bytes out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from worker.gpu_meter import GpuSampler
from worker.probe import GpuState

BUSY = {
    "GPU-0": GpuState(utilisation=0.5, memory_used_bytes=900, process_memory_bytes=400),
    "GPU-1": GpuState(utilisation=1.0, memory_used_bytes=100),
}


def test_a_job_is_charged_the_share_of_time_of_its_own_devices() -> None:
    sampler = GpuSampler(dict)
    one, both = sampler.watch(["GPU-0"]), sampler.watch(["GPU-0", "GPU-1"])
    for watch in (one, both):
        for _ in range(4):
            watch.take(BUSY, 1.0)
    assert (one.gpu_s, both.gpu_s) == (2.0, 6.0)


def test_memory_is_what_processes_have_else_what_the_card_says_and_the_peak_stays() -> None:
    watch = GpuSampler(dict).watch(["GPU-0", "GPU-1"])
    watch.take(BUSY, 1.0)
    watch.take({"GPU-0": GpuState(process_memory_bytes=1), "GPU-1": GpuState()}, 1.0)
    assert watch.memory_peak_bytes == 500


def test_a_device_that_vanished_or_tells_nothing_costs_nothing() -> None:
    watch = GpuSampler(dict).watch(["GPU-0", "GPU-1"])
    watch.take({"GPU-0": GpuState(is_lost=True)}, 1.0)
    assert (watch.gpu_s, watch.memory_peak_bytes) == (0.0, 0)


async def test_the_gpus_are_read_only_while_a_job_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.gpu_meter.SAMPLE_S", 0.001)
    loop = asyncio.get_running_loop()
    sampled = asyncio.Event()
    reads = 0

    def read() -> Mapping[str, GpuState]:
        nonlocal reads
        reads += 1
        loop.call_soon_threadsafe(sampled.set)
        return BUSY

    sampler = GpuSampler(read)
    running = asyncio.create_task(sampler.run())
    await asyncio.sleep(0.01)
    assert reads == 0
    watch = sampler.watch(["GPU-1"])
    await sampled.wait()
    while not watch.gpu_s:
        await asyncio.sleep(0)
    watch.close()
    used_s = watch.gpu_s
    await asyncio.sleep(0.01)
    assert watch.gpu_s == used_s
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
