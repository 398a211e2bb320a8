"""Following one job: its state and every byte of its output, once and in order, from any position.

The way in is always the same: subscribe first, then read what is stored, then stitch by offset. A
live piece that follows on is passed through inside the publishing call; one that is known already
is dropped; one that leaves a gap, and a client that is too slow, lead back to reading what is
stored. So losing any live piece costs time and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from gridx.errors import GridXError
from gridx.protocol import CallChanged, JobChanged, Output, Position
from gridx.schemas import BlobRef
from gridx.states import CallState, JobState

from ..bus.base import job_subject
from ..services import session_views, views
from ..services.session_views import CallEvent
from ..store.records import Balance, CallRecord, JobRecord

if TYPE_CHECKING:
    from .context import Context

_RECHECK_S = 0.05
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A change of a job's state on the bus. ``stream_bytes`` is set with the final state."""

    job: JobRecord
    balance: Balance | None = None
    result: bytes | None = None
    result_blobs: tuple[BlobRef, ...] = ()
    stream_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class CallNews:
    """How a call of a session stands, on the bus."""

    job: JobRecord
    event: CallEvent


def _job_before_its_end(job: JobRecord) -> JobRecord:
    """Return a job as if it ran: of a session, who has nothing yet hears what it is before its
    calls. That it has ended, and why, can be told from ``finished_at`` and ``reason``."""
    return msgspec.structs.replace(job, state=JobState.RUNNING) if job.is_final else job


def _before_its_end(news: CallNews) -> CallNews:
    """Return news of a call without its end: for who has not got its output yet."""
    call = news.event.call
    if not call.is_final:
        return news
    open_call = msgspec.structs.replace(
        call,
        state=CallState.RUNNING,
        reason=None,
        exit_code=None,
        cost_ucr=0,
        finished_us=None,
        end_bytes=None,
    )
    return CallNews(news.job, CallEvent(call=open_call))


def message_of_call(context: Context, news: CallNews) -> CallChanged:
    """Return news of a call as clients get it."""
    call = news.event.call
    live = context.outputs.find(call.job_id, call.attempt)
    started_us = None if live is None else live.call_starts.get(call.n)
    return session_views.call_changed(news.job, news.event, started_us)


def message_of(context: Context, event: JobEvent) -> JobChanged:
    """Return an event as clients get it."""
    job, balance = event.job, event.balance
    end = None
    if job.is_final and job.stream_bytes is not None:
        end = Position(attempt=job.attempt, offset=job.stream_bytes)
    return JobChanged(
        job=context.view(job),
        cost_ucr=job.cost_ucr,
        balance_ucr=None if balance is None else balance.posted_ucr,
        held_ucr=None if balance is None else balance.held_ucr,
        result=event.result,
        result_blobs=event.result_blobs,
        end=end,
    )


async def read_final(context: Context, job: JobRecord) -> JobEvent:
    """Return the final state of a job with all that belongs to it, from what is stored."""
    balance = await context.store.read(views.get_balance, job.user)
    result, result_blobs = await context.store.read(views.find_result, job)
    return JobEvent(job, balance, result, result_blobs)


class Sink(Protocol):
    """Where a watcher's messages go."""

    def send(self, message: JobChanged | CallChanged | Output) -> None:
        """Send at once; must not block."""

    @property
    def is_full(self) -> bool:
        """Whether more is on its way to the client than it should be."""

    async def drained(self) -> None:
        """Return when the client has taken most of what was sent."""


class Watcher:
    """One client's view of one job.

    Args:
        newest_call: of a session, no output from before its newest call is wanted.
    """

    def __init__(
        self,
        context: Context,
        job_id: str,
        user: str | None,
        after: Position,
        sink: Sink,
        on_end: Callable[[Watcher, GridXError | None], None],
        *,
        newest_call: bool = False,
    ) -> None:
        self.job_id = job_id
        self._context, self._user, self._sink, self._on_end = context, user, sink, on_end
        self._attempt, self._offset = after.attempt, after.offset
        self._is_live = False
        self._held: JobEvent | None = None
        self._newest_call_only = newest_call
        self._is_call_stale = False  # news of a call came that was not passed on
        self._call_ends: tuple[tuple[int, int], ...] = ()
        self._newest_attempt = 0
        self._task: asyncio.Task[None] | None = None
        self._subscription = context.bus.subscribe(job_subject(job_id), self._receive)
        self._ended = False

    @property
    def position(self) -> Position:
        """Up to where the client has the output."""
        return Position(attempt=self._attempt, offset=self._offset)

    def go_live(self, job: JobRecord) -> None:
        """Begin with a job that was submitted just now: nothing of it can be stored yet."""
        self._attempt, self._offset = job.attempt, 0
        self._newest_attempt = job.attempt
        self._is_live = True

    def catch_up(self) -> None:
        """Begin with a job that may have run for long: read what is stored, then go live."""
        self._is_live = False
        if self._task is None and not self._ended:
            self._task = asyncio.get_running_loop().create_task(self._catch_up())

    def close(self) -> None:
        """Send nothing more."""
        self._ended = True
        self._subscription.close()
        if self._task is not None:
            self._task.cancel()

    # --- live --------------------------------------------------------------------------------

    def _receive(self, message: Output | JobEvent | CallNews) -> None:
        if isinstance(message, Output):
            self._receive_output(message)
            return
        if isinstance(message, CallNews):
            self._receive_call(message)
            return
        self._newest_attempt = max(self._newest_attempt, message.job.attempt)
        if self._is_live and (message.stream_bytes is None or self._has_all(message)):
            self._send_change(message)
        else:
            self._held = message
            self.catch_up()

    def _receive_output(self, piece: Output) -> None:
        self._newest_attempt = max(self._newest_attempt, piece.attempt)
        if not self._is_live or piece.attempt < self._attempt:
            return
        if piece.attempt > self._attempt:
            self._attempt, self._offset = piece.attempt, 0
        if piece.offset > self._offset or self._sink.is_full:
            self.catch_up()
        else:
            self._send_output(piece.offset, piece.data, piece.call)

    def _receive_call(self, news: CallNews) -> None:
        if self._is_live and self._has_call(news.event.call):
            self._sink.send(message_of_call(self._context, news))
        else:
            self._is_call_stale = True
            self.catch_up()

    def _has_call(self, call: CallRecord) -> bool:
        """Whether the client has all of the output of a call that has ended."""
        if not call.end_bytes:
            return True
        return self._attempt == call.attempt and self._offset >= call.end_bytes

    def _has_all(self, event: JobEvent) -> bool:
        if event.stream_bytes == 0:
            return True
        return self._attempt == event.job.attempt and self._offset >= (event.stream_bytes or 0)

    def _send_output(self, offset: int, data: bytes, call: int) -> None:
        new = data[self._offset - offset :] if offset < self._offset else data
        if new:
            self._sink.send(
                Output(
                    job_id=self.job_id,
                    attempt=self._attempt,
                    offset=self._offset,
                    data=new,
                    call=call,
                )
            )
            self._offset += len(new)

    def _send_change(self, event: JobEvent) -> None:
        self._sink.send(message_of(self._context, event))
        if event.job.is_final:
            self._end(None)

    def _end(self, error: GridXError | None) -> None:
        self._ended = True
        self._subscription.close()
        self._on_end(self, error)

    # --- from what is stored -----------------------------------------------------------------

    async def _catch_up(self) -> None:
        try:
            await self._read_until_live()
        except GridXError as exc:
            self._end(exc)
        except Exception as exc:
            _log.exception(
                "A watcher failed", extra={"action": "watch.failed", "job_id": self.job_id}
            )
            self._end(GridXError(f"The job could not be followed: {type(exc).__name__}."))
        finally:
            self._task = None

    async def _read_until_live(self) -> None:
        context = self._context
        is_first = True
        is_call_announced = False
        while not self._ended:
            self._is_call_stale = False
            job = await context.store.read(views.get_job, self.job_id, self._user)
            self._newest_attempt = max(self._newest_attempt, job.attempt)
            if is_first and (job.session is not None or not job.is_final):
                self._send_change(JobEvent(_job_before_its_end(job)))
                is_first = False
            if self._attempt < self._newest_attempt:
                self._attempt, self._offset = self._newest_attempt, 0
            news = None if job.session is None else await self._read_call(job)
            if news is not None and not (news.event.call.is_final and is_call_announced):
                self._sink.send(message_of_call(context, _before_its_end(news)))
                is_call_announced = True
            await self._send_stored()
            if news is not None and news.event.call.is_final:
                self._sink.send(message_of_call(context, news))
            if job.is_final:
                await self._send_final(job)
                return
            if self._is_level():
                held, self._held = self._held, None
                self._is_live = True
                if held is not None:
                    self._receive(held)
                return
            await asyncio.sleep(_RECHECK_S)

    async def _read_call(self, job: JobRecord) -> CallNews | None:
        store = self._context.store
        event = await store.read(session_views.find_newest, job.row_id)
        if event is None:
            return None
        self._call_ends = await store.read(session_views.list_ends, job.row_id)
        if self._newest_call_only and self._attempt == event.call.attempt:
            self._offset = max(self._offset, event.call.begin_bytes)
        return CallNews(job, event)

    def _call_at(self, offset: int) -> int:
        """Return the call whose output lies there; the newest, where none of it has ended."""
        ends = self._call_ends
        past = [n for n, end in ends if end <= offset]
        return past[-1] + 1 if past else 0

    async def _send_stored(self) -> None:
        """Send what is in the log, then what is gathered behind it."""
        attempt = self._attempt
        if attempt == 0:
            return
        outputs = self._context.outputs
        async for offset, data in outputs.read(self.job_id, attempt, self._offset):
            await self._sink.drained()
            self._send_output(offset, data, self._call_at(self._offset))
        await self._sink.drained()
        live = outputs.find(self.job_id, attempt)
        # No await from here on: what is gathered now and what is published next follow on.
        if live is not None and live.stored_end <= self._offset < live.end:
            self._send_output(self._offset, live.tail(self._offset), self._call_at(self._offset))

    def _is_level(self) -> bool:
        """Whether the next live piece follows on what was sent."""
        if self._attempt < self._newest_attempt or self._is_call_stale:
            return False
        if self._held is not None and self._held.job.is_final:
            return False  # the next round reads the final state and the rest from what is stored
        live = self._context.outputs.find(self.job_id, self._attempt)
        return live is None or self._offset >= live.end

    async def _send_final(self, job: JobRecord) -> None:
        event, self._held = self._held, None
        if event is None or not event.job.is_final:
            event = await read_final(self._context, job)
        if not self._ended:
            self._send_change(event)
