"""What a call used: read from outside where that is possible, and held against the clock.

The first source is the host's own cgroup files, which no job reaches. Where they cannot be read
(an engine in a virtual machine, a container that the worker itself lives in), the supervisor's
reading in ``Exited`` counts: under runc a job cannot forge that frame. The engine's statistics
take a second a call, so they are sampled beside the job, and only where neither is to be had.
All numbers are bounded by the worker's clock, because a price hangs on them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from gridx.errors import SandboxError
from gridx.resources import ResourceRequest, Usage

CLOCK_TOLERANCE_S = 0.5
CLOCK_TOLERANCE = 0.05
STATS_PAUSE_S = 1.0
CPU_TOLERANCE = 1.1  # the quota is enforced within eight percent


class HostReading(NamedTuple):
    """One look at a container's counters from outside. None: not counted there."""

    cpu_s: float
    peak_memory_bytes: int | None = None
    oom_kills: int | None = None


class HostMeter(Protocol):
    """Reads a sandbox's counters from outside."""

    @property
    def source(self) -> str:
        """What ``Usage.source`` says of it: "host" or "stats"."""
        ...

    def begin(self) -> None:
        """Say that the sandbox gets its job now."""
        ...

    def read(self) -> HostReading | None:
        """Return the counters, at once; None where they cannot be read (any more)."""
        ...

    def close(self) -> None:
        """Let go of what it reads from."""
        ...


class EngineStats:
    """The engine's statistics of one container, sampled beside its job.

    An answer takes a second or two, so the newest is as old as that, and what the job used
    since then is not counted: short of the truth, never above it.
    """

    source = "stats"

    def __init__(self, ask: Callable[[], Awaitable[HostReading | None]]) -> None:
        """
        Args:
            ask: asks the engine; None when it does not know.
        """
        self._ask = ask
        self._newest: HostReading | None = None
        self._sampling: asyncio.Task[None] = asyncio.create_task(self._sample(times=1))

    def begin(self) -> None:
        """Sample from now on, until ``close``."""
        self._sampling.cancel()
        self._sampling = asyncio.create_task(self._sample())

    def read(self) -> HostReading | None:
        """Return the newest sample."""
        return self._newest

    def close(self) -> None:
        """Sample no more."""
        self._sampling.cancel()

    async def _sample(self, *, times: int | None = None) -> None:
        while times is None or times > 0:
            if not await self._sample_once():
                return
            times = None if times is None else times - 1
            await asyncio.sleep(STATS_PAUSE_S if times is None else 0)

    async def _sample_once(self) -> bool:
        try:
            found = await self._ask()
        except SandboxError:
            return False
        if found is None:
            return False
        peak_bytes = found.peak_memory_bytes
        if peak_bytes is not None and self._newest is not None:
            peak_bytes = max(peak_bytes, self._newest.peak_memory_bytes or 0)
        self._newest = found._replace(peak_memory_bytes=peak_bytes)
        return True


def reading_of_stats(stats: Mapping[str, Any]) -> HostReading | None:
    """Return what an answer of ``GET /containers/ID/stats`` says; None when it says nothing."""
    cpu = (stats.get("cpu_stats") or {}).get("cpu_usage") or {}
    memory = stats.get("memory_stats") or {}
    if not cpu.get("total_usage"):
        return None
    peak = memory.get("max_usage") or memory.get("usage")
    return HostReading(cpu["total_usage"] * 1e-9, None if peak is None else int(peak))


def seen_from_outside(
    said: Usage,
    before: HostReading | None,
    after: HostReading | None,
    *,
    source: str,
) -> Usage:
    """Return ``said`` with what was read outside in the place of what was read inside.

    Args:
        said: the supervisor's reading.
        before: at the hand-over; what the sandbox used to get warm is not the job's.
        after: at the end, while the sandbox was still there.
        source: the meter's.
    """
    if before is None or after is None:
        return said
    killed = (
        before.oom_kills is not None
        and after.oom_kills is not None
        and after.oom_kills > before.oom_kills
    )
    cpu_s = max(0.0, after.cpu_s - before.cpu_s)
    peak_bytes = after.peak_memory_bytes
    if source == "stats":  # short of the truth; and a job that lies about itself says less
        cpu_s = max(cpu_s, said.cpu_s)
        peak_bytes = max(peak_bytes or 0, said.peak_memory_bytes)
    return msgspec.structs.replace(
        said,
        cpu_s=cpu_s,
        peak_memory_bytes=said.peak_memory_bytes if peak_bytes is None else peak_bytes,
        out_of_memory=said.out_of_memory or killed,
        source=source,
    )


def checked_usage(
    said: Usage, *, host_wall_s: float, request: ResourceRequest, held_s: float = 0.0
) -> Usage:
    """Return ``said`` with its times made plausible.

    Args:
        said: the supervisor's reading.
        host_wall_s: from writing the call to reading its end, by the worker's clock. A wall
            time outside that, by more than the tolerance, is replaced by it.
        request: the size of the sandbox; more CPU time than wall time times cores is cut, and
            more memory than its limit.
        held_s: for so long the worker did not read the sandbox, so its end was read late.
    """
    tolerance_s = max(CLOCK_TOLERANCE_S, CLOCK_TOLERANCE * host_wall_s)
    lowest_s = host_wall_s - held_s - tolerance_s
    is_plausible = math.isfinite(said.wall_s) and lowest_s <= said.wall_s <= host_wall_s
    wall_s = max(0.0, said.wall_s) if is_plausible else max(0.0, host_wall_s)
    cpu_s = said.cpu_s if math.isfinite(said.cpu_s) else 0.0
    gpu_s = said.gpu_s if math.isfinite(said.gpu_s) else 0.0
    return msgspec.structs.replace(
        said,
        wall_s=wall_s,
        cpu_s=min(max(0.0, cpu_s), wall_s * request.cores * CPU_TOLERANCE),
        peak_memory_bytes=min(max(0, said.peak_memory_bytes), request.memory_bytes),
        gpu_s=min(max(0.0, gpu_s), wall_s * request.gpus),
    )
