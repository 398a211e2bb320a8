"""How much a message may hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that the decoder holds, whatever the message says."""

    depth: int = 120
    """Levels of containers in containers."""
    nodes: int = 5_000_000
    bytes: int = 4 << 30
    dimensions: int = 32
    same_hash: int = 256
    """Keys of one container with one hash: more would make a dict quadratic."""
