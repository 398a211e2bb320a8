"""GPUs behind an interface: what NVML says, what it does not know, and no NVML at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gridx.resources import GIB, Gpu
from worker.monitor import Monitor
from worker.probe import GpuState, NoGpus, NvmlGpus, measure, open_gpus


class NvmlError(Exception):
    def __init__(self, value: int = 3) -> None:
        super().__init__({3: "Not Supported", 10: "Timeout", 15: "GPU is lost"}.get(value, "?"))
        self.value = value


class FakeNvml:
    """Two cards; the second has neither a utilisation counter nor a power meter."""

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU = 0
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_RESET_REQUIRED = 16
    nvmlEventTypeXidCriticalError = 8

    def __init__(self) -> None:
        self.lost: set[int] = set()
        self.sliced: set[int] = set()
        self.processes: dict[object, list[int | None]] = {}
        self.xids: list[tuple[int, int]] = []
        self.listened: list[int] = []

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: Any) -> bytes | str:
        if isinstance(handle, tuple):
            return f"MIG-{handle[0]}-{handle[1]}"
        return f"GPU-{handle}" if handle else b"GPU-0"

    def nvmlDeviceGetName(self, handle: Any) -> str:
        return "card MIG 1g.5gb" if isinstance(handle, tuple) else "card"

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        if handle in self.lost:
            raise NvmlError(self.NVML_ERROR_GPU_IS_LOST)
        return SimpleNamespace(total=GIB, used=GIB // 4)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if handle == 1:
            raise NvmlError
        return SimpleNamespace(gpu=50)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 60 + handle

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle == 1:
            raise NvmlError
        return 71_500

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:
        if handle == 1:
            raise NvmlError
        return [int(handle in self.sliced), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: int) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: int, index: int) -> tuple[int, int]:
        if index not in (0, 3):
            raise NvmlError(6)
        return handle, index

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]:
        return [SimpleNamespace(usedGpuMemory=used) for used in self.processes.get(handle, [])]

    def nvmlEventSetCreate(self) -> str:
        return "events"

    def nvmlDeviceRegisterEvents(self, handle: int, kind: int, events: str) -> None:
        if handle == 1:
            raise NvmlError
        self.listened.append(handle)

    def nvmlEventSetWait(self, events: str, timeout_ms: int) -> Any:
        if not self.xids:
            raise NvmlError(10)
        card, xid = self.xids.pop(0)
        return SimpleNamespace(device=card, eventData=xid)


def test_every_gpu_is_named_by_its_uuid() -> None:
    assert NvmlGpus(FakeNvml()).gpus == (
        Gpu(uuid="GPU-0", name="card", memory_bytes=GIB),
        Gpu(uuid="GPU-1", name="card", memory_bytes=GIB),
    )


def test_a_metric_that_a_card_does_not_have_is_absent() -> None:
    assert NvmlGpus(FakeNvml()).read() == (
        GpuState(
            utilisation=0.5,
            memory_used_bytes=GIB // 4,
            temperature_c=60,
            power_w=71.5,
            process_memory_bytes=0,
        ),
        GpuState(memory_used_bytes=GIB // 4, temperature_c=61, process_memory_bytes=0),
    )


def test_a_card_that_is_cut_into_slices_is_listed_as_its_slices() -> None:
    nvml = FakeNvml()
    nvml.sliced.add(0)
    gpus = NvmlGpus(nvml)
    assert [gpu.uuid for gpu in gpus.gpus] == ["MIG-0-0", "MIG-0-3", "GPU-1"]
    state = gpus.read()[0]
    assert state.utilisation is None  # the card's counter is that of all slices together
    assert state.temperature_c == 60


def test_the_memory_of_processes_is_known_or_absent() -> None:
    nvml = FakeNvml()
    nvml.processes = {0: [100, 20], 1: [100, None]}
    assert [state.process_memory_bytes for state in NvmlGpus(nvml).read()] == [120, None]


def test_a_lost_card_says_so_until_it_answers_again() -> None:
    nvml = FakeNvml()
    gpus = NvmlGpus(nvml)
    nvml.lost.add(1)
    assert [state.is_lost for state in gpus.read()] == [False, True]
    nvml.lost.clear()
    assert [state.is_lost for state in gpus.read()] == [False, False]


def test_an_error_that_ends_a_cards_use_is_heard_and_one_of_a_job_is_not() -> None:
    nvml = FakeNvml()
    gpus = NvmlGpus(nvml)
    assert nvml.listened == [0]
    nvml.xids = [(0, 13), (0, 31)]  # what an illegal access of a job causes
    assert not any(state.is_lost for state in gpus.read())
    nvml.xids = [(0, 79)]  # fallen off the bus
    assert [state.is_lost for state in gpus.read()] == [True, False]
    assert [state.is_lost for state in gpus.read()] == [True, False]  # until the worker restarts


def test_a_missing_library_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert isinstance(open_gpus(), NoGpus)


def test_the_load_has_one_reading_for_each_gpu() -> None:
    monitor = Monitor(NvmlGpus(FakeNvml()))
    load = monitor.read(warm_sandboxes=3)
    assert monitor.gpu_states["GPU-1"].temperature_c == 61
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
