"""What a worker says that a call used, bounded by what the coordinator saw itself.

Nothing here is refused: a report of a job that ended is worth more than its figures. A figure
that cannot be is the nearest one that can.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from gridx.resources import MIB, ResourceRequest, Usage

MOST_BYTES: Final = 1 << 50  # of anything that is only counted
_MOST_GPU_BYTES: Final = 1 << 40  # of one card, where its worker has said nothing of it
_BURST: Final = 1.1  # a quota of cores is kept over a tenth of a second, not within it
_SPARE_BYTES: Final = 16 * MIB  # a limit counts pages, and the last ones are counted late
SOURCES: Final = frozenset({"host", "cgroup", "stats", "rusage", "none"})


def bound(
    usage: Usage,
    *,
    own_s: float,
    own_frozen_s: float,
    request: ResourceRequest,
    gpu_memory_bytes: int | None = None,
) -> Usage:
    """Return ``usage`` with every figure inside what is possible; not a number counts as 0.

    Args:
        own_s: how long it ran by the coordinator's clock, without what it stood still.
        own_frozen_s: how long it stood still by that clock.
        request: the resources that it was given.
        gpu_memory_bytes: of all the GPUs that it may have had; None: not known.
    """
    wall_s = _between(usage.wall_s, own_s)
    if gpu_memory_bytes is None:
        gpu_memory_bytes = request.gpus * _MOST_GPU_BYTES
    return msgspec.structs.replace(
        usage,
        wall_s=wall_s,
        cpu_s=_between(usage.cpu_s, wall_s * request.cores * _BURST),
        peak_memory_bytes=_count(usage.peak_memory_bytes, request.memory_bytes + _SPARE_BYTES),
        input_bytes=_count(usage.input_bytes),
        output_bytes=_count(usage.output_bytes),
        dropped_bytes=_count(usage.dropped_bytes),
        gpu_s=_between(usage.gpu_s, wall_s * request.gpus),
        gpu_memory_peak_bytes=_count(
            usage.gpu_memory_peak_bytes, gpu_memory_bytes if request.gpus else 0
        ),
        frozen_s=_between(usage.frozen_s, own_frozen_s),
        source=usage.source if usage.source in SOURCES else "none",
    )


def _between(seconds: float, most_s: float) -> float:
    if math.isnan(seconds) or seconds < 0:
        return 0.0
    return min(seconds, max(0.0, most_s)) if math.isfinite(seconds) else 0.0


def _count(size: int, most: int = MOST_BYTES) -> int:
    return max(0, min(size, most, MOST_BYTES))


def largest_gpus_bytes(memories: list[int], count: int) -> int:
    """Return the memory of the ``count`` largest of a worker's GPUs, at most what cards have."""
    largest = sorted((min(max(0, size), _MOST_GPU_BYTES) for size in memories), reverse=True)
    return sum(largest[:count])
