"""The worker's way to its coordinator: dial out, say hello, keep alive, come back.

One WebSocket. Everything that arrives is decoded here; what it means is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.iostream import StreamClosedError
from tornado.simple_httpclient import HTTPStreamClosedError, HTTPTimeoutError
from tornado.websocket import (
    WebSocketClientConnection,
    WebSocketClosedError,
    WebSocketError,
    websocket_connect,
)

from gridx.errors import AuthError, Forbidden, GridXError, ProtocolError, from_body
from gridx.protocol import (
    MAX_FRAME_BYTES,
    FromWorker,
    Hello,
    Refused,
    ToWorker,
    Welcome,
    from_worker,
    to_worker,
)

_log = logging.getLogger(__name__)

SHORTEST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 5.0
FIRST_CEILING_S: Final = 0.5
CONNECT_TIMEOUT_S: Final = 10.0
WELCOME_TIMEOUT_S: Final = 20.0
PING_INTERVAL_S: Final = 10.0  # a dead link is noticed by the missing answer

_GONE = (
    OSError,
    StreamClosedError,
    HTTPStreamClosedError,
    HTTPTimeoutError,
    HTTPClientError,
    WebSocketClosedError,
    WebSocketError,
    TimeoutError,
)


class LoginRefused(AuthError):
    """The coordinator does not let this worker in; trying again will not help."""

    code = "login_refused"
    default_hint = (
        "Check --user and --password (or GRIDX_PASSWORD); the coordinator's log says more."
    )


def reconnect_wait_s(
    failures: int, chance: Callable[[float, float], float] = random.uniform
) -> float:
    """Return how long to wait after ``failures`` failed tries in a row: full jitter, 0.1 to 5 s.

    A thousand workers that lost the same coordinator come back spread out.

    Source:
        Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
    """
    return chance(SHORTEST_WAIT_S, min(LONGEST_WAIT_S, FIRST_CEILING_S * 2.0 ** min(failures, 16)))


class Connection:
    """Holds one connection at a time, for as long as ``run`` runs."""

    def __init__(
        self,
        url: str,
        *,
        hello: Callable[[], Hello],
        on_message: Callable[[ToWorker], None],
        on_lost: Callable[[], None],
        on_refused: Callable[[GridXError], bool],
    ) -> None:
        """
        Args:
            url: the coordinator's ws:// or wss:// address.
            hello: makes the first message of each connection.
            on_message: takes every message, the Welcome first.
            on_lost: called once after each connection that had its Welcome.
            on_refused: asked about a refused login; True: try again (with other credentials).
        """
        self._url = url
        self._hello = hello
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._socket: WebSocketClientConnection | None = None
        self._is_welcome = False
        self._corked = False

    @property
    def is_open(self) -> bool:
        """Whether the coordinator has said Welcome on a connection that still stands."""
        return self._is_welcome

    def send(self, message: FromWorker) -> None:
        """Write ``message``, or drop it when the connection is gone: the rules say it again."""
        if self._socket is None or not self._is_welcome:
            return
        if not self._corked:
            self._cork(self._socket)
        self._write(self._socket, message)

    def _cork(self, opened: WebSocketClientConnection) -> None:
        """Let what is written in this turn of the loop leave together.

        A short job ends with its output and its report; in one segment they wake the
        coordinator once.
        """
        found = _socket_of(opened)
        if found is None or not _set_cork(found, on=True):
            return
        self._corked = True
        asyncio.get_running_loop().call_soon(self._uncork, found)

    def _uncork(self, corked: socket.socket) -> None:
        self._corked = False
        _set_cork(corked, on=False)

    async def flushed(self) -> None:
        """Wait until what was sent has left this process."""
        if self._socket is not None and self._socket.protocol is not None:
            stream = self._socket.protocol.stream
            if stream is not None and stream.writing():
                try:
                    await stream.write(b"")
                except _GONE:
                    return

    async def run(self) -> None:
        """Connect, and connect again, until cancelled.

        Raises:
            LoginRefused: the coordinator refuses this worker.
        """
        failures = 0
        while True:
            try:
                await self._one_connection()
                failures = 0
            except _GONE as error:
                failures += 1
                if failures & (failures - 1) == 0:  # the 1st, 2nd, 4th, 8th …: a log, not a flood
                    _log.warning(
                        "The coordinator cannot be reached; trying again until it answers. Is it"
                        " running, and is --coordinator its address for workers?",
                        extra={
                            "action": "connect",
                            "url": self._url,
                            "error": _short(error),
                            "failures": failures,
                        },
                    )
            await asyncio.sleep(reconnect_wait_s(failures))

    async def close(self) -> None:
        """Close the connection that stands."""
        if self._socket is not None:
            await self.flushed()
            self._socket.close(1001, "the worker stops")

    async def _one_connection(self) -> None:
        opened = await websocket_connect(
            HTTPRequest(
                self._url,
                connect_timeout=CONNECT_TIMEOUT_S,
                request_timeout=CONNECT_TIMEOUT_S,
                ssl_options=ssl.create_default_context() if self._url.startswith("wss") else None,
            ),
            max_message_size=MAX_FRAME_BYTES,
            ping_interval=PING_INTERVAL_S,
            ping_timeout=PING_INTERVAL_S,
        )
        _send_at_once(opened)
        self._socket = opened
        try:
            self._write(opened, self._hello())
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                first = await self._read(opened)
            match first:
                case None:
                    raise WebSocketClosedError
                case Welcome():
                    self._is_welcome = True
                    self._on_message(first)
                case Refused(error=body):
                    refusal = from_body(body)
                    if self._on_refused(refusal):
                        return
                    raise LoginRefused(refusal.message, hint=refusal.hint or None)
                case _:
                    raise ProtocolError("The coordinator's first message was no Welcome.")
            while (message := await self._read(opened)) is not None:
                self._on_message(message)
            _log.warning(
                "the connection to the coordinator is lost",
                extra={"action": "connect", "close_code": opened.close_code},
            )
        except ProtocolError as error:
            _log.error("the coordinator broke the protocol", extra={"error": str(error)})
            raise WebSocketError(error.message) from error
        finally:
            self._socket = None
            opened.close()
            if self._is_welcome:
                self._is_welcome = False
                self._on_lost()

    @staticmethod
    async def _read(opened: WebSocketClientConnection) -> ToWorker | None:
        data = await opened.read_message()
        return None if data is None else to_worker.decode(data)

    @staticmethod
    def _write(opened: WebSocketClientConnection, message: FromWorker) -> None:
        try:
            written = opened.write_message(from_worker.encode(message), binary=True)
        except WebSocketClosedError:
            return
        asyncio.ensure_future(written).add_done_callback(_look_at)


def is_about_login(error: GridXError) -> bool:
    """Whether other credentials could change this refusal."""
    return isinstance(error, AuthError | Forbidden)


def _socket_of(opened: WebSocketClientConnection) -> socket.socket | None:
    stream = opened.protocol.stream if opened.protocol is not None else None
    if stream is None or stream.closed() or stream.socket.family == socket.AF_UNIX:
        return None
    return stream.socket


def _send_at_once(opened: WebSocketClientConnection) -> None:
    # Small frames must not wait for the acknowledgement of the one before (Nagle).
    found = _socket_of(opened)
    if found is not None:
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _set_cork(found: socket.socket, *, on: bool) -> bool:
    """Hold or release small segments; False where the system has no such option (not Linux)."""
    option = getattr(socket, "TCP_CORK", None)
    if option is None:
        return False
    try:
        found.setsockopt(socket.IPPROTO_TCP, option, int(on))
    except OSError:  # closed meanwhile
        return False
    return True


def _look_at(written: Awaitable[None]) -> None:
    if isinstance(written, asyncio.Future) and not written.cancelled():
        written.exception()  # the reading side sees the end of the connection, too


def _short(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:200]
