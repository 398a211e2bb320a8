"""What the coordinator counts about itself since it started, for ``/metrics``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Counts and sums of seconds; a rate is made from two readings by whoever reads them."""

    submitted: int = 0
    dispatched: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    requeued: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    output_bytes: int = 0
    blob_bytes_in: int = 0  # as they travelled
    blob_bytes_out: int = 0
    submit_to_start_s: float = 0.0  # Submit received until StartAttempt sent, placed at once
    placed_at_once: int = 0
    report_to_settled_s: float = 0.0  # AttemptFinished received until settled
    settled: int = 0
