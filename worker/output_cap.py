"""How much of an attempt's output is kept: its head, then only its tail, with one marker."""

from __future__ import annotations

from collections import deque
from typing import Final

from gridx.errors import ProtocolError
from gridx.events import OutputDropped, decode_events, encode_event, split_events
from gridx.resources import MIB

HEAD_BYTES: Final = 64 * MIB
TAIL_BYTES: Final = 1 * MIB


class OutputCap:
    """Lets the first ``head_bytes`` of events through, then keeps the last ``tail_bytes``.

    The job goes on either way: what is left out is counted, not punished.
    """

    def __init__(
        self, *, call: int = 0, head_bytes: int = HEAD_BYTES, tail_bytes: int = TAIL_BYTES
    ):
        self._call = call
        self._head_left_bytes = head_bytes
        self._tail_limit_bytes = tail_bytes
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._is_full = False
        self.dropped_bytes = 0

    def accept(self, data: bytes) -> bytes:
        """Return the part of ``data``, whole events, that goes into the stream now."""
        if not self._is_full and len(data) <= self._head_left_bytes:
            self._head_left_bytes -= len(data)
            return data
        passed = bytearray()
        for event in split_events(data):
            if not self._is_full and len(event) <= self._head_left_bytes:
                self._head_left_bytes -= len(event)
                passed += event
            else:
                self._is_full = True
                self._keep_in_tail(bytes(event))
        return bytes(passed)

    def finish(self) -> bytes:
        """Return what ends the stream: the marker and the tail, or nothing."""
        if not self._is_full:
            return b""
        marker = b""
        if self.dropped_bytes:
            dropped = OutputDropped(call=self._call, dropped_bytes=self.dropped_bytes)
            marker = encode_event(dropped)
        return marker + b"".join(self._tail)

    def _keep_in_tail(self, event: bytes) -> None:
        self._tail.append(event)
        self._tail_bytes += len(event)
        while self._tail_bytes > self._tail_limit_bytes:
            gone = len(self._tail.popleft())
            self._tail_bytes -= gone
            self.dropped_bytes += gone


def checked_events(data: bytes, *, call: int, first: int) -> bool:
    """Check that every event of ``data`` is one of ours and belongs to a call of ``first`` to
    ``call``; return whether all of them belong to ``call``.

    Raises:
        ProtocolError: it does not; the job wrote into its own output pipe.
    """
    is_all_new = True
    for event in decode_events(data):
        if not first <= event.call <= call or isinstance(event, OutputDropped):
            raise ProtocolError("An output event claims what only the worker may say.")
        is_all_new = is_all_new and event.call == call
    return is_all_new


def call_of(event: bytes | memoryview) -> int:
    """Return the call of one encoded event."""
    (decoded,) = decode_events(event)
    return decoded.call
