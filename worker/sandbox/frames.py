"""From bytes to frames, with every length checked before anything is kept.

Sans I/O: bytes go in, frames come out. Docker's attach stream puts an 8-byte header before each
piece (stream number, three zeros, 32-bit big-endian length); pieces ignore the borders of our
own frames, so each layer has its own buffer.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from gridx.errors import SandboxError
from gridx.resources import KIB, MIB

from ..runtime.frames import MAX_EVENTS_BYTES, MAX_RESULT_BYTES, FromSupervisor, from_supervisor

MAX_FRAME_BYTES = max(MAX_EVENTS_BYTES, MAX_RESULT_BYTES) + 64 * KIB
MAX_PIECE_BYTES = 16 * MIB  # the engine sends 32 KiB; more than this is not an engine
MAX_STDERR_BYTES = 64 * KIB

_HEADER_BYTES = 8
_STDOUT, _STDERR = 1, 2


class AttachDemultiplexer:
    """Splits the engine's attach stream into stdout, returned, and stderr, of which the last
    ``MAX_STDERR_BYTES`` are kept in ``stderr``."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._stream = 0
        self._left_bytes = 0
        self.stderr = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[memoryview]:
        """Yield the stdout bytes that ``data`` brings.

        Raises:
            SandboxError: not an attach stream.
        """
        view, at = memoryview(data), 0
        while at < len(view):
            if not self._left_bytes:
                taken = min(_HEADER_BYTES - len(self._header), len(view) - at)
                self._header += view[at : at + taken]
                at += taken
                if len(self._header) < _HEADER_BYTES:
                    return
                self._begin_piece()
                continue
            piece = view[at : at + self._left_bytes]
            at += len(piece)
            self._left_bytes -= len(piece)
            if self._stream == _STDOUT:
                yield piece
            else:
                self.stderr += piece
                del self.stderr[:-MAX_STDERR_BYTES]

    def _begin_piece(self) -> None:
        self._stream = self._header[0]
        self._left_bytes = int.from_bytes(self._header[4:], "big")
        is_valid = self._stream in (_STDOUT, _STDERR) and not any(self._header[1:4])
        if not is_valid or self._left_bytes > MAX_PIECE_BYTES:
            raise SandboxError(f"The engine's attach stream is broken: {bytes(self._header)!r}.")
        self._header.clear()


class FrameParser:
    """Collects the supervisor's bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def buffered_bytes(self) -> int:
        """Bytes that wait for the rest of their frame."""
        return len(self._buffer)

    def feed(self, data: bytes | memoryview) -> list[tuple[FromSupervisor, int]]:
        """Return each frame that ``data`` completes, and its size in bytes.

        Raises:
            SandboxError: a frame is larger than its kind may be, or is none of ours.
        """
        self._buffer += data
        frames: list[tuple[FromSupervisor, int]] = []
        at = 0
        while len(self._buffer) - at >= 4:
            size = int.from_bytes(self._buffer[at : at + 4], "big")
            if size > MAX_FRAME_BYTES:
                raise SandboxError(f"A frame of {size} bytes came out of the sandbox.")
            end = at + 4 + size
            if len(self._buffer) < end:
                break
            with memoryview(self._buffer) as view, view[at + 4 : end] as body:
                frames.append((_decode(body), size))
            at = end
        del self._buffer[:at]
        return frames


def _decode(body: memoryview) -> FromSupervisor:
    try:
        return from_supervisor.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise SandboxError(f"A frame out of the sandbox is malformed: {exc}.") from None
