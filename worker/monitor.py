"""What the machine does right now, for the heartbeats."""

from __future__ import annotations

import psutil

from gridx.resources import Load

from .probe import GpuReader, GpuState


class Monitor:
    """Reads the machine's load. CPU is the mean since the reading before."""

    def __init__(self, gpus: GpuReader) -> None:
        self._gpus = gpus
        self.gpu_states: dict[str, GpuState] = {}  # the newest reading of each, by UUID
        psutil.cpu_percent()  # the first reading has nothing to compare with

    def read_gpus(self) -> dict[str, GpuState]:
        """Read every GPU now, by UUID. Takes some milliseconds for each: better in a thread."""
        states = self._gpus.read()
        self.gpu_states = {
            gpu.uuid: state for gpu, state in zip(self._gpus.gpus, states, strict=True)
        }
        return self.gpu_states

    def read(self, *, warm_sandboxes: int) -> Load:
        """Return the load now; ``warm_sandboxes`` is passed through."""
        memory = psutil.virtual_memory()
        states = self.read_gpus().values()
        return Load(
            cpu=min(1.0, psutil.cpu_percent() / 100),
            memory_used_bytes=int(memory.total - memory.available),
            memory_total_bytes=int(memory.total),
            gpu=tuple(state.utilisation or 0.0 for state in states),
            gpu_memory_used_bytes=tuple(state.memory_used_bytes or 0 for state in states),
            gpu_temperature_c=tuple(state.temperature_c or 0.0 for state in states),
            warm_sandboxes=warm_sandboxes,
        )
