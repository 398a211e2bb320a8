"""What jobs use of the GPUs: sampled once a second, beside the jobs, while any has one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from .probe import GpuState

SAMPLE_S: Final = 1.0


class GpuWatch:
    """What one job has used of its devices until the newest sample.

    A job that is shorter than the time between two samples may show nothing.
    """

    def __init__(self, sampler: GpuSampler, uuids: Sequence[str]) -> None:
        self._sampler = sampler
        self._uuids = tuple(uuids)
        self.gpu_s = 0.0
        self.memory_peak_bytes = 0

    def take(self, states: Mapping[str, GpuState], seconds: float) -> None:
        """Count a sample that stands for so many seconds."""
        memory_bytes = 0
        for uuid in self._uuids:
            state = states.get(uuid)
            if state is None:
                continue
            self.gpu_s += (state.utilisation or 0.0) * seconds
            # What processes have, where the card tells: a screen of the lender's is not the job's.
            known = state.process_memory_bytes
            memory_bytes += (state.memory_used_bytes or 0) if known is None else known
        self.memory_peak_bytes = max(self.memory_peak_bytes, memory_bytes)

    def close(self) -> None:
        """Count no more."""
        self._sampler.forget(self)


class GpuSampler:
    """Reads the GPUs once a second while somebody watches them."""

    def __init__(self, read: Callable[[], Mapping[str, GpuState]]) -> None:
        """
        Args:
            read: returns the state of every device by its UUID; called in a thread.
        """
        self._read = read
        self._watches: set[GpuWatch] = set()
        self._is_watched = asyncio.Event()

    def watch(self, uuids: Sequence[str]) -> GpuWatch:
        """Count what is used of these devices from now on."""
        watch = GpuWatch(self, uuids)
        self._watches.add(watch)
        self._is_watched.set()
        return watch

    def forget(self, watch: GpuWatch) -> None:
        """Count nothing more for ``watch``."""
        self._watches.discard(watch)
        if not self._watches:
            self._is_watched.clear()

    async def run(self) -> None:
        """Sample until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._is_watched.wait()
            last_s = loop.time()
            while self._watches:
                await asyncio.sleep(SAMPLE_S)
                states = await asyncio.to_thread(self._read)
                now_s = loop.time()
                for watch in tuple(self._watches):
                    watch.take(states, now_s - last_s)
                last_s = now_s
