"""What this machine is, measured once: cores, memory, processor, GPUs."""

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path
from typing import Any, Protocol

import msgspec
import psutil

from gridx.resources import Gpu

_log = logging.getLogger(__name__)

MEMORY_SHARE = 0.75  # of the machine's memory is lent unless the lender says otherwise
MAX_WARM = 4


class MachineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The machine, before the lender's own limits."""

    cores: int
    memory_bytes: int
    cpu_model: str
    platform: str


class GpuState(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of one GPU. A metric that the card does not have is 0."""

    utilisation: float = 0.0  # [0, 1]
    memory_used_bytes: int = 0
    temperature_c: float = 0.0


class GpuReader(Protocol):
    """The GPUs of this machine."""

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """Every GPU, in a fixed order."""
        ...

    def read(self) -> tuple[GpuState, ...]:
        """Return one reading for each of ``gpus``."""
        ...


class NoGpus:
    """A machine without GPUs, or without NVIDIA's library."""

    gpus: tuple[Gpu, ...] = ()

    def read(self) -> tuple[GpuState, ...]:
        return ()


class NvmlGpus:
    """NVIDIA's GPUs through NVML (package nvidia-ml-py)."""

    def __init__(self, nvml: Any) -> None:
        """
        Args:
            nvml: the module ``pynvml``, initialised.
        """
        self._nvml = nvml
        self._handles = [
            nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())
        ]
        self.gpus: tuple[Gpu, ...] = tuple(
            Gpu(
                uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
                name=_text(nvml.nvmlDeviceGetName(handle)),
                memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            )
            for handle in self._handles
        )

    def read(self) -> tuple[GpuState, ...]:
        return tuple(self._read_one(handle) for handle in self._handles)

    def _read_one(self, handle: Any) -> GpuState:
        nvml = self._nvml
        utilisation = self._metric(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        return GpuState(
            utilisation=min(1.0, utilisation / 100),
            memory_used_bytes=int(self._metric(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used)),
            temperature_c=self._metric(
                lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            ),
        )

    def _metric(self, read: Any) -> float:
        try:
            return float(read())
        except self._nvml.NVMLError:
            return 0.0  # this card does not have it


def open_gpus() -> GpuReader:
    """Return the GPUs of this machine; none where NVIDIA's library or driver is missing."""
    try:
        import pynvml
    except ImportError:
        return NoGpus()
    try:
        pynvml.nvmlInit()
        return NvmlGpus(pynvml)
    except pynvml.NVMLError as error:
        _log.info("no GPU", extra={"action": "probe", "reason": str(error)})
        return NoGpus()


def measure() -> MachineFacts:
    """Measure this machine."""
    return MachineFacts(
        cores=_cores(),
        memory_bytes=int(psutil.virtual_memory().total),
        cpu_model=_cpu_model(),
        platform=f"{platform.system().lower()}/{platform.machine()}",
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count() or 1


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
