"""What a reader of one job has still to read, and how far the client has got.

Pure bookkeeping over two rules. Output is taken in order and once: what the client has is
dropped, a gap asks for the missing part. The store is bounded: when a slow reader lets it fill
up, the job is paused, which costs nothing, since any part can be asked for again.

The client's loop writes and one reader reads, maybe in another thread. ``_received_bytes`` is
written by the loop only and ``_read_bytes`` by the reader only, so that no lock is needed.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from .errors import GridXError, ProtocolError
from .events import decode_events, split_events
from .protocol import JobChanged, Output, Position
from .resources import MIB
from .schemas import JobView
from .states import FINAL_JOB_STATES
from .updates import EventArrived, Finished, LinkChanged, Restarted, StateChanged, Update

START: Final = Position()
FEED_LIMIT_BYTES: Final = 8 * MIB
_UNANSWERED_ASKS: Final = 3


class Ask(Enum):
    """What the client must now say to the coordinator."""

    NOTHING = auto()
    UNWATCH = auto()  # the reader is slow: send no more
    WATCH = auto()  # send what is missing, from ``Feed.position`` on


@dataclass(frozen=True, slots=True)
class _Piece:
    """Output as it came: whole events, decoded by the reader and not by the loop."""

    attempt: int
    offset: int
    data: memoryview


class Feed:
    """The updates of one job, between the client's loop and one reader."""

    def __init__(self, *, after: Position = START, limit_bytes: int = FEED_LIMIT_BYTES) -> None:
        self.position = after  # where the next piece must begin
        self.view: JobView | None = None
        self.is_paused = False
        self.is_over = False  # nothing more will be put in
        self.end: Finished | None = None
        self._told: JobView | None = None
        self._limit_bytes = limit_bytes
        self._received_bytes = 0
        self._read_bytes = 0
        self._asks = 0  # since the last piece that was of use
        self._store: queue.SimpleQueue[_Piece | Update | GridXError] = queue.SimpleQueue()
        self._decoded: deque[Update] = deque()

    # --- the loop's side --------------------------------------------------------------------

    def on_changed(self, message: JobChanged) -> Ask:
        """Take a state of the job."""
        view = message.job
        if self.is_over or view.attempt < self.position.attempt:
            return Ask.NOTHING
        self.view = view
        if self.is_paused:
            return Ask.NOTHING  # sent again when the reader has caught up
        self._begin(view.attempt)
        if view.status in FINAL_JOB_STATES:
            if message.end is not None and self._lacks(message.end):
                return self._ask_for_the_rest()
            self.end = Finished(
                view=view,
                cost_ucr=message.cost_ucr,
                balance_ucr=message.balance_ucr,
                held_ucr=message.held_ucr,
                result=message.result,
                result_blobs=message.result_blobs,
            )
            self._put(self.end)
            self.is_over = True
        elif view != self._told:
            self._told = view
            self._put(StateChanged(view))
        return Ask.NOTHING

    def on_output(self, message: Output) -> Ask:
        """Take a piece of output."""
        if self.is_over or self.is_paused or message.attempt < self.position.attempt:
            return Ask.NOTHING
        self._begin(message.attempt)
        have = self.position.offset - message.offset
        if have < 0:
            # A gap: between a pause and its end, pieces on their way may come out of place.
            return Ask.NOTHING if self._asks else self._ask_for_the_rest()
        data = memoryview(message.data)[have:]
        if not data:
            return Ask.NOTHING
        self._asks = 0
        self._put(_Piece(self.position.attempt, self.position.offset, data))
        self.position = Position(
            attempt=self.position.attempt, offset=self.position.offset + len(data)
        )
        self._received_bytes += len(data)
        if self.view is None or self._received_bytes - self._read_bytes <= self._limit_bytes:
            return Ask.NOTHING  # before the first state there is no reader that could make room
        self.is_paused = True
        if self.has_room:  # the reader was quicker, and saw no pause that it could end
            self.is_paused = False
            return Ask.NOTHING
        return Ask.UNWATCH

    def on_link(self, *, connected: bool) -> Ask:
        """Take the loss or the return of the connection."""
        if self.is_over:
            return Ask.NOTHING
        self._put(LinkChanged(connected))
        if not connected or self.is_paused:
            return Ask.NOTHING
        self._asks = 1
        return Ask.WATCH

    def resume(self) -> Ask:
        """End a pause, once the reader has made room."""
        if not self.is_paused or self.is_over or not self.has_room:
            return Ask.NOTHING
        self.is_paused = False
        self._asks = 1
        return Ask.WATCH

    def fail(self, error: GridXError) -> None:
        """End the feed with an error that the reader will get."""
        if not self.is_over:
            self.is_over = True
            self._put(error)

    def _begin(self, attempt: int) -> None:
        if attempt > self.position.attempt:
            if self.position.attempt > 0:
                self._put(Restarted(attempt))
            self.position = Position(attempt=attempt)

    def _lacks(self, end: Position) -> bool:
        here = self.position
        return (end.attempt, end.offset) > (here.attempt, here.offset)

    def _ask_for_the_rest(self) -> Ask:
        self._asks += 1
        if self._asks > _UNANSWERED_ASKS:
            self.fail(
                ProtocolError(
                    "A part of the job's output did not come, though it was asked for"
                    f" {_UNANSWERED_ASKS} times.",
                    hint="`gridx logs JOB` shows what the coordinator has.",
                )
            )
            return Ask.NOTHING
        return Ask.WATCH

    def _put(self, item: _Piece | Update | GridXError) -> None:
        self._store.put(item)

    # --- the reader's side ------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether the reader has taken most of what came."""
        return self._received_bytes - self._read_bytes <= self._limit_bytes // 4

    @property
    def wants_resume(self) -> bool:
        """Whether the loop should call ``resume`` now."""
        return self.is_paused and self.has_room

    def has_next(self) -> bool:
        """Whether ``take`` would return at once."""
        return bool(self._decoded) or not self._store.empty()

    def take(self, timeout_s: float | None = None) -> Update | None:
        """Return the next update; None when none comes within ``timeout_s`` (None: do not wait).

        Raises:
            GridXError: the feed ended with an error.
        """
        while not self._decoded:
            try:
                item = (
                    self._store.get_nowait()
                    if timeout_s is None
                    else self._store.get(timeout=timeout_s)
                )
            except queue.Empty:
                return None
            if isinstance(item, GridXError):
                self._store.put(item)  # for a reader who asks again
                raise item.with_traceback(None)
            if isinstance(item, _Piece):
                self._decoded.extend(_events(item))
                self._read_bytes += len(item.data)
            else:
                self._decoded.append(item)
        return self._decoded.popleft()


def _events(piece: _Piece) -> Iterator[EventArrived]:
    offset = piece.offset
    for encoded in split_events(piece.data):
        offset += len(encoded)
        for event in decode_events(encoded):
            yield EventArrived(event, Position(attempt=piece.attempt, offset=offset))
