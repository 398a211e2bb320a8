"""How the memory of one sandbox is shared out among the folders that it can write to.

They are file systems in memory, and lie inside the memory limit: what a job writes there is
memory that its processes do not get. Pure, so that a request is refused before it is sent.
"""

from __future__ import annotations

from typing import Final

from .errors import InvalidRequest
from .resources import GIB, MIB, format_bytes

SMALL_BYTES: Final = 64 * MIB
SHARED_WITH_GPU_BYTES: Final = GIB


def work_bytes(memory_bytes: int, disk_bytes: int | None = None) -> int:
    """Return the size of ``/work``: what is asked for, or half of the memory."""
    return memory_bytes // 2 if disk_bytes is None else disk_bytes


def tmp_bytes(memory_bytes: int) -> int:
    """Return the size of ``/tmp``."""
    return min(SMALL_BYTES, memory_bytes // 8)


def shared_bytes(memory_bytes: int, *, gpus: int = 0) -> int:
    """Return the size of ``/dev/shm``: a GPU's data loaders pass their batches through it."""
    if gpus:
        return min(SHARED_WITH_GPU_BYTES, memory_bytes // 4)
    return min(SMALL_BYTES, memory_bytes // 8)


def most_disk_bytes(memory_bytes: int, *, gpus: int = 0) -> int:
    """Return the most that ``/work`` can have beside the other two."""
    return memory_bytes - tmp_bytes(memory_bytes) - shared_bytes(memory_bytes, gpus=gpus)


def check_disk(memory_bytes: int, disk_bytes: int | None, *, gpus: int = 0) -> None:
    """Refuse a disk that does not fit into its memory. None, half of the memory, always does.

    Raises:
        InvalidRequest: too large, or not above 0.
    """
    if disk_bytes is None:
        return
    most = most_disk_bytes(memory_bytes, gpus=gpus)
    if disk_bytes <= 0:
        raise InvalidRequest(
            f"A disk of {disk_bytes} bytes is none.",
            hint="Write a size, such as 512M, or leave it out for half of the memory.",
        )
    if disk_bytes > most:
        raise InvalidRequest(
            f"A disk of {format_bytes(disk_bytes)} does not fit into {format_bytes(memory_bytes)}"
            f" of memory: the disk lies in memory, with /tmp and /dev/shm, and {format_bytes(most)}"
            " are left for it.",
            hint="Ask for more memory or for a smaller disk; leave the disk out for half of the"
            " memory.",
        )
