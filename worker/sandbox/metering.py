"""What a call used: the sandbox's own reading, held against the worker's clock.

The supervisor reads its cgroup at the call's start and end and says so in ``Exited``. Under
runc a job cannot forge that frame; the numbers are bounded all the same, because a price hangs
on them.
"""

from __future__ import annotations

import math

import msgspec

from gridx.resources import ResourceRequest, Usage

CLOCK_TOLERANCE_S = 0.5
CLOCK_TOLERANCE = 0.05
CPU_TOLERANCE = 1.1  # the quota is enforced within eight percent


def checked_usage(
    said: Usage, *, host_wall_s: float, request: ResourceRequest, held_s: float = 0.0
) -> Usage:
    """Return ``said`` with its times made plausible.

    Args:
        said: the supervisor's reading.
        host_wall_s: from writing the call to reading its end, by the worker's clock. A wall
            time outside that, by more than the tolerance, is replaced by it.
        request: the size of the sandbox; more CPU time than wall time times cores is cut.
        held_s: for so long the worker did not read the sandbox, so its end was read late.
    """
    tolerance_s = max(CLOCK_TOLERANCE_S, CLOCK_TOLERANCE * host_wall_s)
    lowest_s = host_wall_s - held_s - tolerance_s
    is_plausible = math.isfinite(said.wall_s) and lowest_s <= said.wall_s <= host_wall_s
    wall_s = max(0.0, said.wall_s) if is_plausible else max(0.0, host_wall_s)
    cpu_s = said.cpu_s if math.isfinite(said.cpu_s) else 0.0
    return msgspec.structs.replace(
        said,
        wall_s=wall_s,
        cpu_s=min(max(0.0, cpu_s), wall_s * request.cores * CPU_TOLERANCE),
        peak_memory_bytes=max(0, said.peak_memory_bytes),
    )
