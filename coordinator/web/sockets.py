"""What both WebSockets share: frames out without waiting, and how much is still on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketHandler

from gridx.errors import GridXError, ProtocolError
from gridx.protocol import OLDEST_PROTOCOL, PROTOCOL
from gridx.resources import MIB

FULL_BYTES = 1 * MIB
DRAINED_BYTES = FULL_BYTES // 4
CLOSE_REFUSED = 4000  # the hello or a message was refused; the reason is in a Refused before it
CLOSE_REPLACED = 4001  # a newer connection of the same worker took over
CLOSE_SILENT = 4002  # no heartbeat for too long


def frame(data: bytes, *, binary: bool) -> bytes:
    """Return ``data`` as one unmasked WebSocket frame. Source: RFC 6455, section 5.2."""
    first, size = (0x82 if binary else 0x81), len(data)
    if size < 126:
        head = bytes((first, size))
    elif size < 1 << 16:
        head = bytes((first, 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 127)) + size.to_bytes(8, "big")
    return head + data


class FrameWriter:
    """Writes frames to one socket and knows how many bytes it has not taken yet.

    What is written in one turn of the event loop leaves in one system call: after a group commit
    that is many messages. Tornado's own way costs a task and a call for each.
    """

    def __init__(self, handler: WebSocketHandler, *, binary: bool) -> None:
        self._handler, self._binary = handler, binary
        self._frames: list[bytes] = []
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
        """Send one frame before this turn of the loop ends; when the other side is gone, drop it."""
        if not self._frames:
            asyncio.get_running_loop().call_soon(self.flush)
        framed = frame(data, binary=self._binary)
        self._frames.append(framed)
        self._pending_bytes += len(framed)

    def flush(self) -> None:
        """Hand what was written to the socket now."""
        if not self._frames:
            return
        data = b"".join(self._frames) if len(self._frames) > 1 else self._frames[0]
        self._frames.clear()
        connection: Any = self._handler.ws_connection
        try:
            if connection is None or connection.is_closing():
                raise StreamClosedError
            future = connection.stream.write(data)
        except StreamClosedError:
            self._pending_bytes -= len(data)
            self.release()
            return
        if future.done():
            self._taken(future, len(data))
        else:
            future.add_done_callback(lambda done: self._taken(done, len(data)))

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
