"""How much of a result each part makes up, roughly: for a sentence, not for a decision."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final

_LOOKED_AT: Final = 10_000  # elements of a container


def largest(parts: Mapping[str, Any], count: int = 3) -> list[tuple[str, int]]:
    """Return the largest of ``parts`` by name, with their sizes in bytes, largest first; none
    that is less than a hundredth of the first."""
    sizes = sorted(((name, size_of(value)) for name, value in parts.items()), key=_by_size)
    return [(name, size) for name, size in sizes[:count] if size * 100 >= sizes[0][1]]


def _by_size(entry: tuple[str, int]) -> int:
    return -entry[1]


def size_of(value: Any, depth: int = 2) -> int:
    """Return about how many bytes ``value`` takes. Never fails, never copies."""
    try:
        usage = getattr(value, "memory_usage", None)  # pandas; its own nbytes leaves the index out
        if usage is not None and callable(usage):
            told = usage(deep=False)
            return int(told.sum() if hasattr(told, "sum") else told)
        nbytes = getattr(value, "nbytes", None)
        if isinstance(nbytes, int):
            return nbytes
        size = sys.getsizeof(value)
        if depth and isinstance(value, dict | list | tuple | set | frozenset):
            parts = list(value.values() if isinstance(value, dict) else value)[:_LOOKED_AT]
            told_bytes = sum(size_of(part, depth - 1) for part in parts)
            size += told_bytes * len(value) // len(parts) if parts else 0
        return size
    except Exception:  # whatever the user's class does when it is asked
        return 0
