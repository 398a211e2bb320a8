"""What keeps the output of attempts. One adapter now (segment files), one later (rows)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol


class Piece(NamedTuple):
    """Whole events of an attempt's stream, from byte ``offset``."""

    offset: int
    data: bytes


class EventLog(Protocol):
    """The output of attempts as numbered bytes. One appender an attempt, who awaits each append."""

    async def append(self, job_id: str, attempt: int, offset: int, data: bytes) -> int:
        """Add ``data`` (whole events) at ``offset`` and return the stored end.

        What is stored already is dropped; where ``offset`` lies beyond the stored end nothing
        is stored, so that there is never a gap: the answer tells the sender where to go on.
        The bytes outlive this process, and the machine after ``sync``.

        Raises:
            ProtocolError: ``data`` is not whole events.
            PayloadTooLarge: the attempt would have more than the log takes.
        """
        ...

    async def end(self, job_id: str, attempt: int) -> int:
        """Return the stored end, 0 where there is nothing."""
        ...

    def read(self, job_id: str, attempt: int, offset: int = 0) -> AsyncIterator[Piece]:
        """Yield the stream from ``offset`` to its end at this moment.

        Raises:
            InvalidRequest: no event begins at ``offset``.
        """
        ...

    async def sync(self, job_id: str, attempt: int) -> None:
        """Make what was appended outlive the machine; before a report is accepted."""
        ...

    def close_attempt(self, job_id: str, attempt: int) -> None:
        """Forget what is in memory of an attempt that has ended."""
        ...

    async def delete(self, job_id: str, attempt: int) -> None:
        """Remove an attempt's output."""
        ...

    async def close(self) -> None:
        """End the threads."""
        ...
