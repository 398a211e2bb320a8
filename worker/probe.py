"""What this machine is, measured once: cores, memory, processor, GPUs."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

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
    """One reading of one GPU. None: the card does not tell."""

    utilisation: float | None = None  # [0, 1]
    memory_used_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    process_memory_bytes: int | None = None  # of all processes that compute on it
    is_lost: bool = False  # it has fallen off the bus, or reported an error that ends its use


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


# Errors of the application, not of the device (XID numbers of NVIDIA's driver): an illegal
# access, a fault of its page tables, a preemptive clean-up, a reset of its channel.
APPLICATION_XIDS: Final = frozenset({13, 31, 43, 45, 68, 109})


class _Device(NamedTuple):
    """One GPU that can be lent: a card, or a slice of one (MIG)."""

    gpu: Gpu
    handle: Any
    card: Any  # has the sensors
    card_uuid: str
    is_slice: bool


class NvmlGpus:
    """NVIDIA's GPUs through NVML (package nvidia-ml-py). A card that is cut into slices (MIG)
    is not listed, but each of its slices is."""

    def __init__(self, nvml: Any) -> None:
        """
        Args:
            nvml: the module ``pynvml``, initialised.
        """
        self._nvml = nvml
        self._devices: list[_Device] = []
        self._broken: set[str] = set()  # cards that reported such an error
        cards = []
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                card = nvml.nvmlDeviceGetHandleByIndex(index)
                self._devices += self._devices_of(card)
                cards.append(card)
            except nvml.NVMLError as error:
                _log.warning("a GPU is left out", extra={"action": "probe", "reason": str(error)})
        self._events = self._listen(cards)
        self.gpus: tuple[Gpu, ...] = tuple(device.gpu for device in self._devices)

    def read(self) -> tuple[GpuState, ...]:
        self._hear_errors()
        return tuple(self._read_one(device) for device in self._devices)

    def _devices_of(self, card: Any) -> list[_Device]:
        card_uuid = _text(self._nvml.nvmlDeviceGetUUID(card))
        slices = self._slices_of(card)
        return [
            _Device(self._gpu(handle), handle, card, card_uuid, bool(slices))
            for handle in slices or [card]
        ]

    def _gpu(self, handle: Any) -> Gpu:
        nvml = self._nvml
        return Gpu(
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            name=_text(nvml.nvmlDeviceGetName(handle)),
            memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        )

    def _slices_of(self, card: Any) -> list[Any]:
        nvml = self._nvml
        found = []
        try:
            if not nvml.nvmlDeviceGetMigMode(card)[0]:
                return []
            count = nvml.nvmlDeviceGetMaxMigDeviceCount(card)
        except nvml.NVMLError:
            return []  # a card that cannot be cut
        for index in range(count):
            try:
                found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index))
            except nvml.NVMLError:
                continue  # nothing is there
        return found

    def _read_one(self, device: _Device) -> GpuState:
        nvml, handle, card = self._nvml, device.handle, device.card
        try:
            nvml.nvmlDeviceGetMemoryInfo(card)
        except nvml.NVMLError as error:
            if error.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED):
                return GpuState(is_lost=True)
        # Slices share one counter, which says nothing of a single one of them.
        percent = (
            None
            if device.is_slice
            else self._metric(lambda: nvml.nvmlDeviceGetUtilizationRates(card).gpu)
        )
        used_bytes = self._metric(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used)
        milliwatts = self._metric(lambda: nvml.nvmlDeviceGetPowerUsage(card))
        return GpuState(
            utilisation=None if percent is None else min(1.0, percent / 100),
            memory_used_bytes=None if used_bytes is None else int(used_bytes),
            temperature_c=self._metric(
                lambda: nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU)
            ),
            power_w=None if milliwatts is None else milliwatts / 1000,
            process_memory_bytes=self._process_memory(handle),
            is_lost=device.card_uuid in self._broken,
        )

    def _process_memory(self, handle: Any) -> int | None:
        try:
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except self._nvml.NVMLError:
            return None
        known = [process.usedGpuMemory for process in running]
        return None if None in known else sum(known)

    def _metric(self, read: Callable[[], float]) -> float | None:
        try:
            return float(read())
        except self._nvml.NVMLError:
            return None  # this card does not have it

    def _listen(self, cards: Sequence[Any]) -> Any:
        """Have the driver tell of errors that end a card's use; None where it cannot."""
        nvml = self._nvml
        try:
            events = nvml.nvmlEventSetCreate()
        except nvml.NVMLError:
            return None
        for card in cards:
            try:
                nvml.nvmlDeviceRegisterEvents(card, nvml.nvmlEventTypeXidCriticalError, events)
            except nvml.NVMLError:
                continue
        return events

    def _hear_errors(self) -> None:
        nvml = self._nvml
        while self._events is not None:
            try:
                event = nvml.nvmlEventSetWait(self._events, 0)
                if event.eventData in APPLICATION_XIDS:
                    continue
                uuid = _text(nvml.nvmlDeviceGetUUID(event.device))
            except nvml.NVMLError:
                return  # nothing has happened since
            if uuid not in self._broken:
                self._broken.add(uuid)
                _log.error(
                    "a GPU reported an error", extra={"action": "gpu", "xid": event.eventData}
                )


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
