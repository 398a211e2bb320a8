"""What the job's process says to the supervisor: records over a pipe of their own.

Each is one byte of kind, ``u32`` big-endian length and a body. The writer is the user's code for
all the supervisor knows, so the reader checks everything and gives up at the first wrong byte.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from gridx.errors import ProtocolError
from gridx.events import MAX_EVENT_BYTES
from gridx.resources import KIB, MIB

WARM: Final = 1  # nothing in it: the child waits for its job, filtered
EVENTS: Final = 2  # whole events of gridx.events
RESULT: Final = 3  # the next piece of gridx.codec.results
DONE: Final = 4  # Done

MAX_DONE_BYTES: Final = 16 * KIB
MAX_RESULT_RECORD_BYTES: Final = 8 * MIB
# What is written at once: the copies on its way stay in the processor's cache.
RESULT_RECORD_BYTES: Final = 256 * KIB
MAX_EVENTS_RECORD_BYTES: Final = MAX_EVENT_BYTES + MIB
_HEADER: Final = struct.Struct(">BI")


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """How the code ended, as its own process saw it."""

    completed: bool
    exit_code: int
    message: str = ""
    memory_error: bool = False  # it raised MemoryError
    interrupted: bool = False  # it ended with KeyboardInterrupt


_encode_done: Final = msgspec.msgpack.Encoder().encode
_decode_done: Final = msgspec.msgpack.Decoder(Done).decode


class RecordWriter:
    """The child's end. Blocks while the supervisor does not read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def send(self, kind: int, body: bytes = b"") -> None:
        """Write one record. Callers that may meet hold a lock of their own."""
        self._write(_HEADER.pack(kind, len(body)) + body)

    def end(self, events: bytes, result: Iterable[bytes | memoryview], done: Done) -> None:
        """Write the last events, the pieces of the result, and the last record: all at once
        where that is little."""
        parts: list[bytes | memoryview] = []
        if events:
            parts += (_HEADER.pack(EVENTS, len(events)), events)
        for piece in result:
            parts += (_HEADER.pack(RESULT, len(piece)), piece)
            if len(piece) >= RESULT_RECORD_BYTES:  # more follow
                self._write(b"".join(parts))
                parts.clear()
        last = _encode_done(done)
        self._write(b"".join((*parts, _HEADER.pack(DONE, len(last)), last)))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def close(self) -> None:
        """Close the pipe: in a process that the job forked, so that it cannot speak for it."""
        os.close(self._fd)


class RecordReader:
    """The supervisor's end: bytes in, checked records out."""

    def __init__(self, *, max_result_bytes: int) -> None:
        self._buffer = bytearray()
        self._limits = {
            WARM: 0,
            EVENTS: MAX_EVENTS_RECORD_BYTES,
            RESULT: MAX_RESULT_RECORD_BYTES,
            DONE: MAX_DONE_BYTES,
        }
        self._result_left_bytes = max_result_bytes

    def limit_result(self, max_result_bytes: int) -> None:
        """Set how large the pieces of the next result may be together."""
        self._result_left_bytes = max_result_bytes

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the records that are whole after ``data``.

        Raises:
            ProtocolError: an unknown kind, or more bytes than that kind may have.
        """
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= _HEADER.size:
                kind, length = _HEADER.unpack_from(buffer, at)
                if length > self._limits.get(kind, -1):
                    raise ProtocolError("The job wrote into the runtime's own pipe.")
                if kind == RESULT and length > self._result_left_bytes:
                    raise ProtocolError("The job sent a larger result than it may.")
                end = at + _HEADER.size + length
                if len(buffer) < end:
                    break
                if kind == RESULT:
                    self._result_left_bytes -= length
                body = bytes(memoryview(buffer)[at + _HEADER.size : end])
                at = end
                yield kind, body
        finally:
            del buffer[:at]


def decode_done(body: bytes) -> Done:
    """Return the last record's content.

    Raises:
        ProtocolError: it is not one.
    """
    try:
        return _decode_done(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ProtocolError("The job wrote into the runtime's own pipe.") from None
