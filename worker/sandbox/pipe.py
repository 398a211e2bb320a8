"""The frames of one sandbox between the event loop and whoever receives them."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from gridx.errors import SandboxError
from gridx.resources import MIB

from ..runtime.frames import FromSupervisor
from .base import SandboxClosed
from .frames import FrameAllowance, FrameParser

HIGH_BYTES = 2 * MIB  # unreceived frames above this stop the reading
LOW_BYTES = 512 * 1024
HIGH_FRAMES = 4096  # likewise: an empty frame is an object all the same
LOW_FRAMES = 1024


class Pausable(Protocol):
    """The reading half of an asyncio transport."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class FrameQueue:
    """Decoded frames in order. Nobody receives: the transport stops reading, the kernel's pipe
    fills, and the job's writes wait."""

    def __init__(self) -> None:
        self._frames: deque[tuple[FromSupervisor, int]] = deque()
        self._parser = FrameParser()
        self._allowance = FrameAllowance()
        self._queued_bytes = 0
        self._transport: Pausable | None = None
        self._is_paused = False
        self._ended: SandboxError | None = None
        self._wake: asyncio.Future[None] | None = None
        self.closed = asyncio.Event()

    def connect(self, transport: Pausable) -> None:
        """Use ``transport`` for holding the sender back."""
        self._transport = transport

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes of the supervisor's stdout; wrong ones end the queue with that error."""
        if self._ended is not None:
            return
        try:
            frames = self._parser.feed(data)
            self._allowance.take(len(frames), asyncio.get_running_loop().time())
        except SandboxError as error:
            self.end(error)
            return
        for frame, size in frames:
            self._frames.append((frame, size))
            self._queued_bytes += size
        if frames:
            self._notify()
        is_full = self._queued_bytes > HIGH_BYTES or len(self._frames) > HIGH_FRAMES
        if is_full and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def end(self, error: SandboxError | None = None) -> None:
        """Say that nothing more will come. Frames that are queued are still received."""
        if self._ended is None:
            self._ended = error or SandboxClosed("The sandbox has ended.")
            self.closed.set()
            self._notify()

    async def receive(self) -> FromSupervisor:
        """Return the next frame, or raise what ended the queue."""
        while not self._frames:
            if self._ended is not None:
                raise self._ended
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        frame, size = self._frames.popleft()
        self._queued_bytes -= size
        has_room = self._queued_bytes < LOW_BYTES and len(self._frames) < LOW_FRAMES
        if self._is_paused and has_room and self._transport is not None:
            self._is_paused = False
            if self._ended is None:
                self._transport.resume_reading()
        return frame

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
