"""The output of live attempts on its way: to the watchers at once, to the log in gathered pieces.

A worker keeps its bytes until they are acknowledged, and they are acknowledged when they are in
the event log. So a crash here loses nothing, and what was sent twice is recognised by its offset.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from gridx.errors import GridXError, InvalidRequest, ProtocolError
from gridx.events import MAX_EVENT_BYTES
from gridx.resources import KIB, MIB
from gridx.schemas import MAX_TIMEOUT_S

from ..eventlog.base import EventLog
from ..services import views
from ..store.engine import Store

GATHER_S = 0.05
GATHER_BYTES = 64 * KIB
BUFFER_LIMIT_BYTES = 4 * MIB  # a worker that sends faster than the disk writes has to wait
_RETRY_S = 1.0

_log = logging.getLogger(__name__)


class OutputGap(GridXError):
    """A piece came that does not follow on what is here."""

    code = "output_gap"
    default_hint = "Send the output again from the stored end."


def check_whole_events(data: bytes) -> None:
    """Refuse a piece that does not hold whole events.

    Raises:
        ProtocolError: it is cut, or an event is over the limit.
    """
    at, size = 0, len(data)
    while at < size:
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if end > size or end - at > MAX_EVENT_BYTES:
            raise ProtocolError("A piece of output does not hold whole events.")
        at = end


def _from_event(data: bytes, offset: int) -> bytes:
    """Return ``data`` from ``offset`` on; nothing where it ends before that.

    Raises:
        InvalidRequest: no event begins there.
    """
    at, size = 0, len(data)
    while at < min(offset, size):
        at += 4 + int.from_bytes(data[at : at + 4], "big")
    if at > offset:
        raise InvalidRequest(
            "No event of this output begins at that position.",
            hint="Go on from a position that the coordinator sent, or from 0.",
        )
    return data[offset:]


class AttemptOutput:
    """One live attempt's stream: what is stored, and what is gathered behind it.

    ``stored_end`` and the buffer are one thing: the buffer holds exactly the bytes from
    ``stored_end`` to ``end``, and only ``store`` and ``_reset`` move either.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        job_id: str,
        attempt: int,
        worker_id: str,
        stored_end: int,
        on_stored: Callable[[AttemptOutput], None],
        on_resend: Callable[[AttemptOutput], None],
    ) -> None:
        self.job_id, self.attempt, self.worker_id = job_id, attempt, worker_id
        self.stored_end = stored_end
        self.is_in_log = stored_end > 0
        self.claimed_us: int | None = None  # of an adopted attempt
        self.started_us: int | None = None
        self.timeout_s = MAX_TIMEOUT_S  # of the job, for the limit that a start sets
        self.is_resend_asked = False
        self.is_finishing = False
        self.is_start_recorded = False
        # what its user is shown while it does not run, and whether that is on its way to them
        self.preparing = ""
        self.frozen = ""
        self.is_told_soon = False
        # of a session: when its calls started, the newest start that is written, and the turn
        # of its reports, which come in order and are taken in order
        self.is_session = False
        self.call_starts: dict[int, int] = {}
        self.recorded_call = -1
        self.reports = asyncio.Lock()
        self._log = log
        self._buffer = bytearray()
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._on_stored, self._on_resend = on_stored, on_resend

    @property
    def end(self) -> int:
        """The length of the stream so far, stored or not."""
        return self.stored_end + len(self._buffer)

    @property
    def is_over_limit(self) -> bool:
        """Whether more waits for the log than may be held in memory."""
        return len(self._buffer) > BUFFER_LIMIT_BYTES

    def accept(self, offset: int, data: bytes) -> bytes:
        """Take a piece in and return what of it is new (it begins at the old ``end``).

        Raises:
            OutputGap: bytes are missing before it.
            ProtocolError: it does not hold whole events.
        """
        if offset > self.end:
            raise OutputGap(f"Output up to {self.end} is here; a piece at {offset} came.")
        new = data[self.end - offset :] if offset < self.end else data
        if not new:
            return b""
        check_whole_events(new)
        self.is_resend_asked = False
        self._buffer += new
        if len(self._buffer) >= GATHER_BYTES:
            self._start()
        elif self._timer is None and self._task is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._start)
        return new

    def tail(self, offset: int) -> bytes:
        """Return the gathered bytes from ``offset`` on, which is at or behind the stored end.

        Raises:
            InvalidRequest: no event begins there.
        """
        return _from_event(bytes(self._buffer), offset - self.stored_end)

    async def store(self) -> None:
        """Bring everything gathered so far into the log, then say so."""
        async with self._lock:
            self._stop_timer()
            if not self._buffer:
                return
            data, self.is_in_log = bytes(self._buffer), True
            end = await self._log.append(self.job_id, self.attempt, self.stored_end, data)
            if end == self.stored_end + len(data):
                del self._buffer[: len(data)]
                self.stored_end = end
            else:
                self._reset(end)
        self._on_stored(self)

    async def complete(self, inline_bytes: int) -> bytes | None:
        """Get the stream ready for the report.

        Returns:
            The whole stream, when it is short and the log holds nothing of it; else None, and
            every byte of it is in the log, synced.
        """
        async with self._lock:
            self._stop_timer()
            if not self.is_in_log and len(self._buffer) <= inline_bytes:
                return bytes(self._buffer)
        await self.store()
        await self._log.sync(self.job_id, self.attempt)
        return None

    def close(self) -> None:
        """Stop gathering: the attempt is no longer live."""
        self._stop_timer()
        if self._task is not None:
            self._task.cancel()

    def _reset(self, end: int) -> None:
        self._buffer.clear()
        self.stored_end = end
        self._on_resend(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        self._stop_timer()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._store_until_empty())

    async def _store_until_empty(self) -> None:
        try:
            while self._buffer and not self.is_finishing:
                try:
                    await self.store()
                except (OSError, GridXError):
                    # The worker still has the bytes, and so have we: try again, acknowledge nothing.
                    _log.exception(
                        "Output could not be stored",
                        extra={
                            "action": "output.store_failed",
                            "job_id": self.job_id,
                            "attempt": self.attempt,
                        },
                    )
                    await asyncio.sleep(_RETRY_S)
                if self._buffer and len(self._buffer) < GATHER_BYTES:
                    await asyncio.sleep(GATHER_S)
        finally:
            self._task = None


class Outputs:
    """The streams of every attempt that runs on a connected worker."""

    def __init__(
        self,
        store: Store,
        log: EventLog,
        *,
        on_stored: Callable[[AttemptOutput], None],
        on_resend: Callable[[AttemptOutput], None],
    ) -> None:
        self._store, self._log = store, log
        self._live: dict[tuple[str, int], AttemptOutput] = {}
        self._on_stored, self._on_resend = on_stored, on_resend

    def open(self, job_id: str, attempt: int, worker_id: str, stored_end: int = 0) -> AttemptOutput:
        """Begin (or go on with) the stream of an attempt."""
        output = self._live.get((job_id, attempt))
        if output is None:
            output = self._live[job_id, attempt] = AttemptOutput(
                self._log,
                job_id=job_id,
                attempt=attempt,
                worker_id=worker_id,
                stored_end=stored_end,
                on_stored=self._on_stored,
                on_resend=self._on_resend,
            )
        return output

    def find(self, job_id: str, attempt: int) -> AttemptOutput | None:
        """Return a live attempt's stream, or None."""
        return self._live.get((job_id, attempt))

    def close(self, job_id: str, attempt: int) -> None:
        """Forget an attempt that is no longer live."""
        if output := self._live.pop((job_id, attempt), None):
            output.close()
        self._log.close_attempt(job_id, attempt)

    def live(self) -> tuple[AttemptOutput, ...]:
        """Return every live stream."""
        return tuple(self._live.values())

    async def stored_end(self, job_id: str, attempt: int) -> int:
        """Return how many bytes of an attempt are safe here."""
        output = self._live.get((job_id, attempt))
        if output is None:
            return await self._log.end(job_id, attempt)
        await output.store()
        return output.stored_end

    async def read(
        self, job_id: str, attempt: int, offset: int
    ) -> AsyncIterator[tuple[int, bytes]]:
        """Yield ``(offset, data)`` of what is stored from ``offset`` on, in order.

        What is only gathered so far is not in it: ``AttemptOutput.tail`` has that.
        """
        live = self._live.get((job_id, attempt))
        if live is None:
            stream = await self._store.read(views.find_stream, job_id, attempt)
            if stream is not None:
                if data := _from_event(stream, offset):
                    yield offset, data
                return
            end = await self._log.end(job_id, attempt)
        else:
            end = live.stored_end
        if offset >= end:
            return  # a client may be ahead of what is stored: it had the bytes live
        async for piece in self._log.read(job_id, attempt, offset):
            yield piece.offset, piece.data
