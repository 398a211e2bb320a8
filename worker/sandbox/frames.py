"""From bytes to frames, with every length checked before anything is kept.

Sans I/O: bytes go in, frames come out. Docker's attach stream puts an 8-byte header before each
piece (stream number, three zeros, 32-bit big-endian length); pieces ignore the borders of our
own frames, so each layer has its own buffer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from gridx.errors import SandboxError
from gridx.resources import KIB, MIB, Usage

from ..runtime.frames import (
    MAX_EVENTS_BYTES,
    CallExited,
    Events,
    Exited,
    FromSupervisor,
    Ready,
    Result,
    from_supervisor,
)
from ..runtime.records import MAX_RESULT_RECORD_BYTES

MAX_SMALL_BYTES = 128 * KIB  # of a frame without a payload
MAX_FRAME_BYTES = max(MAX_EVENTS_BYTES, MAX_RESULT_RECORD_BYTES) + 64 * KIB
MAX_PIECE_BYTES = 16 * MIB  # the engine sends 32 KiB; more than this is not an engine
MAX_STDERR_BYTES = 64 * KIB  # are kept
MAX_STDERR_SAID_BYTES = 4 * MIB  # PID 1 says a few lines in its whole life
# A supervisor sends at most 1000 frames a second and 200 at once. While nobody reads, its small
# frames gather in the pipes and sockets between it and the worker: some 6 MiB of them.
FRAMES_PER_S = 2000.0
FRAMES_BURST = 100_000.0

_HEADER_BYTES = 8
_EXIT_CODES = frozenset({None, *range(256)})
_LEAST = -1e-3  # clocks are read one after the other
_MOST = 1 << 62  # of what is counted: a database holds no more
_STDOUT, _STDERR = 1, 2


class AttachDemultiplexer:
    """Splits the engine's attach stream into stdout, returned, and stderr, of which the last
    ``MAX_STDERR_BYTES`` are kept in ``stderr``."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._stream = 0
        self._left_bytes = 0
        self._stderr_said_bytes = 0
        self.stderr = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[memoryview]:
        """Yield the stdout bytes that ``data`` brings.

        Raises:
            SandboxError: not an attach stream, or stderr without an end.
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
                self._keep_stderr(piece)

    def _keep_stderr(self, piece: memoryview) -> None:
        self.stderr += piece
        del self.stderr[:-MAX_STDERR_BYTES]
        self._stderr_said_bytes += len(piece)
        if self._stderr_said_bytes > MAX_STDERR_SAID_BYTES:
            raise SandboxError(f"PID 1 of the sandbox wrote {self._stderr_said_bytes} error bytes.")

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
                frame = _decode(body)
            _check(frame, size)
            frames.append((frame, size))
            at = end
        del self._buffer[:at]
        return frames


def _decode(body: memoryview) -> FromSupervisor:
    try:
        return from_supervisor.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise SandboxError(f"A frame out of the sandbox is malformed: {exc}.") from None


def _check(frame: FromSupervisor, size: int) -> None:
    """Refuse what a supervisor never says, so that nobody behind this has to expect it."""
    match frame:
        case Events(data=data):
            is_fine = len(data) <= MAX_EVENTS_BYTES
        case Result(data=data):
            is_fine = len(data) <= MAX_RESULT_RECORD_BYTES
        case Ready():
            is_fine = size <= MAX_SMALL_BYTES
        case (
            CallExited(exit_code=exit_code, usage=usage) | Exited(exit_code=exit_code, usage=usage)
        ):
            is_fine = size <= MAX_SMALL_BYTES
            if exit_code not in _EXIT_CODES or not _is_plausible(usage):
                raise SandboxError("The end that came out of the sandbox is none that there is.")
    if not is_fine:
        kind = type(frame).__name__
        raise SandboxError(f"A {kind} frame of {size} bytes came out of the sandbox.")


def _is_plausible(usage: Usage) -> bool:
    """Return whether these can be readings at all; how much they may be is a matter of clocks."""
    numbers = [value for value in msgspec.structs.astuple(usage) if isinstance(value, int | float)]
    return all(math.isfinite(n) and n >= _LEAST for n in numbers) and not any(
        n > _MOST for n in numbers if isinstance(n, int)
    )


class FrameAllowance:
    """How many frames a sandbox may send: more than its supervisor ever does, and not all that a
    stranger in its place could."""

    def __init__(self) -> None:
        self._left = FRAMES_BURST
        self._at_s: float | None = None

    def take(self, frames: int, now_s: float) -> None:
        """Count ``frames`` that came at ``now_s`` of a clock that only goes on.

        Raises:
            SandboxError: they are too many.
        """
        since_s = 0.0 if self._at_s is None else now_s - self._at_s
        self._at_s = now_s
        self._left = min(FRAMES_BURST, self._left + since_s * FRAMES_PER_S) - frames
        if self._left < 0:
            raise SandboxError("More frames came out of the sandbox than its supervisor sends.")
