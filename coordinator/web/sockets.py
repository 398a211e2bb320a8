"""What both WebSockets share: frames out without waiting, and how much is still on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tornado.websocket import WebSocketClosedError, WebSocketHandler

from gridx.errors import GridXError, ProtocolError
from gridx.protocol import OLDEST_PROTOCOL, PROTOCOL
from gridx.resources import MIB

FULL_BYTES = 1 * MIB
DRAINED_BYTES = FULL_BYTES // 4
CLOSE_REFUSED = 4000  # the hello or a message was refused; the reason is in a Refused before it
CLOSE_REPLACED = 4001  # a newer connection of the same worker took over
CLOSE_SILENT = 4002  # no heartbeat for too long


class FrameWriter:
    """Writes frames to one socket and knows how many bytes it has not taken yet."""

    def __init__(self, handler: WebSocketHandler, *, binary: bool) -> None:
        self._handler, self._binary = handler, binary
        self._pending_bytes = 0
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def is_full(self) -> bool:
        """Whether more is on its way than a client that keeps up would leave there."""
        return self._pending_bytes > FULL_BYTES

    async def drained(self) -> None:
        """Return when the other side has taken most of what was sent, or is gone."""
        if self.is_full:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting

    def write(self, data: bytes) -> None:
        """Send one frame; a connection that has ended swallows it."""
        try:
            future = self._handler.write_message(data, binary=self._binary)
        except WebSocketClosedError:
            self.release()
            return
        size = len(data)
        self._pending_bytes += size
        future.add_done_callback(lambda done: self._taken(done, size))

    def release(self) -> None:
        """Let go of everybody who waits: nothing more will be taken."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _taken(self, future: Any, size: int) -> None:
        if not future.cancelled():
            future.exception()  # the socket is closed: on_close tells everybody
        self._pending_bytes -= size
        if self._waiting and self._pending_bytes < DRAINED_BYTES:
            self.release()


def negotiate(lowest: int, highest: int) -> int:
    """Return the newest protocol number that both sides speak.

    Raises:
        ProtocolError: there is none.
    """
    chosen = min(highest, PROTOCOL)
    if chosen < max(lowest, OLDEST_PROTOCOL):
        raise ProtocolError(
            f"You speak protocol {lowest} to {highest}, this coordinator {OLDEST_PROTOCOL} to"
            f" {PROTOCOL}."
        )
    return chosen


def as_message(data: str | bytes, decode: Callable[[bytes | str], Any], *, binary: bool) -> Any:
    """Return one frame as a message.

    Raises:
        ProtocolError: it is text where bytes belong (or the other way round), or malformed.
    """
    if isinstance(data, str) is binary:
        raise ProtocolError(
            "This connection takes binary frames." if binary else "This connection takes text."
        )
    return decode(data)


def hidden(exc: BaseException) -> GridXError:
    """Return what a peer may know of a fault that is not its own."""
    return exc if isinstance(exc, GridXError) else GridXError("The coordinator failed at this.")
