"""GPUs behind an interface: what NVML says, what it does not know, and no NVML at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gridx.resources import GIB, Gpu
from worker.monitor import Monitor
from worker.probe import GpuState, NoGpus, NvmlGpus, measure, open_gpus


class NvmlError(Exception):
    pass


class FakeNvml:
    """Two cards; the second has no utilisation counter."""

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU = 0

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> bytes | str:
        return f"GPU-{handle}" if handle else b"GPU-0"

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "card"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=GIB, used=GIB // 4)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if handle == 1:
            raise NvmlError("Not Supported")
        return SimpleNamespace(gpu=50)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 60 + handle


def test_every_gpu_is_named_by_its_uuid() -> None:
    assert NvmlGpus(FakeNvml()).gpus == (
        Gpu(uuid="GPU-0", name="card", memory_bytes=GIB),
        Gpu(uuid="GPU-1", name="card", memory_bytes=GIB),
    )


def test_a_metric_that_a_card_does_not_have_is_zero() -> None:
    assert NvmlGpus(FakeNvml()).read() == (
        GpuState(utilisation=0.5, memory_used_bytes=GIB // 4, temperature_c=60),
        GpuState(utilisation=0.0, memory_used_bytes=GIB // 4, temperature_c=61),
    )


def test_a_missing_library_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert isinstance(open_gpus(), NoGpus)


def test_the_load_has_one_reading_for_each_gpu() -> None:
    load = Monitor(NvmlGpus(FakeNvml())).read(warm_sandboxes=3)
    assert load.gpu == (0.5, 0.0)
    assert load.gpu_temperature_c == (60, 61)
    assert load.warm_sandboxes == 3
    assert 0 <= load.cpu <= 1
    assert 0 < load.memory_used_bytes < load.memory_total_bytes


def test_a_machine_without_gpus_has_a_load_without_them() -> None:
    assert Monitor(NoGpus()).read(warm_sandboxes=0).gpu == ()


def test_this_machine_can_be_measured() -> None:
    facts = measure()
    assert facts.cores >= 1
    assert facts.memory_bytes > 0
    assert facts.cpu_model
    assert "/" in facts.platform
