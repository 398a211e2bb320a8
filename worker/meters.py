"""What a call used, from every source that this worker has outside the sandbox."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from gridx.resources import Usage

from .gpu_meter import GpuWatch
from .sandbox.metering import HostMeter, HostReading, seen_from_outside


class Mark(NamedTuple):
    """Where the meters stood when something began."""

    host: HostReading | None = None
    gpu_s: float = 0.0


NOWHERE: Final = Mark()


class OutsideMeters:
    """The meters of one attempt. Reading them waits for nothing."""

    def __init__(self, host: HostMeter | None, gpus: GpuWatch | None) -> None:
        self._host, self._gpus = host, gpus
        self._peak_bytes = 0  # of the calls before
        self._begin = NOWHERE
        self._has_begun = False

    def begin_call(self) -> Mark:
        """Say that a call is handed over now; return where the meters stand."""
        before = None if self._host is None else self._host.read()
        if self._has_begun and before is not None:
            self._peak_bytes = max(self._peak_bytes, before.peak_memory_bytes or 0)
        if self._host is not None:
            self._host.begin()
        mark = Mark(before, 0.0 if self._gpus is None else self._gpus.gpu_s)
        if not self._has_begun:
            self._has_begun, self._begin = True, mark
        return mark

    def of_call(self, said: Usage, mark: Mark) -> Usage:
        """Return ``said``, by the supervisor, of a call that began at ``mark``, with what was
        measured outside in its place."""
        if self._host is not None:
            said = seen_from_outside(said, mark.host, self._host.read(), source=self._host.source)
        if self._gpus is not None:
            said = msgspec.structs.replace(
                said,
                gpu_s=max(0.0, self._gpus.gpu_s - mark.gpu_s),
                gpu_memory_peak_bytes=self._gpus.memory_peak_bytes,
            )
        return said

    def of_all(self, said: Usage) -> Usage:
        """Return the same for all calls together."""
        usage = self.of_call(said, self._begin)
        return msgspec.structs.replace(
            usage, peak_memory_bytes=max(usage.peak_memory_bytes, self._peak_bytes)
        )

    def close(self) -> None:
        """Sample no more."""
        if self._gpus is not None:
            self._gpus.close()
