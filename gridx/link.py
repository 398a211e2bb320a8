"""The client's one WebSocket to its coordinator: dialled when needed, dialled again when lost.

The first dial of a link fails at once, so that a person hears it at once. A link that stood is
dialled again with spread-out delays for as long as somebody waits for something, at most
``patience_s``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import (
    WebSocketClientConnection,
    WebSocketClosedError,
    WebSocketError,
    websocket_connect,
)

from .clock import monotonic_s
from .errors import GridXError, ProtocolError, TransportError, from_body
from .protocol import (
    CLIENT_MSGPACK,
    MAX_FRAME_BYTES,
    CallChanged,
    ClientHello,
    ClientWelcome,
    JobChanged,
    Message,
    Output,
    Refused,
    from_client,
    to_client,
)
from .rest import error_of, unreachable
from .settings import ConnectionSettings

DIAL_TIMEOUT_S: Final = 10.0
PATIENCE_S: Final = 120.0
_FIRST_DELAY_S: Final = 0.05
_LONGEST_DELAY_S: Final = 5.0
_PING_INTERVAL_S: Final = 20.0
_CLOSE_TIMEOUT_S: Final = 1.0
_FRAME_MARGIN_BYTES: Final = 64 * 1024  # what a frame's other fields may add to its payload

FromCoordinator = JobChanged | CallChanged | Output | Refused


def delay_s(tries: int) -> float:
    """Return how long to wait before dial number ``tries`` (from 0): "full jitter", so that
    clients that lost the same coordinator do not return as one.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    longest = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** min(tries, 16))
    return random.uniform(0, longest)  # noqa: S311 (spreads load, hides nothing)


class Link:
    """One connection, and its return after a loss.

    Args:
        on_message: gets every message after the welcome.
        on_up: called when a lost connection is back, before any message of it.
        on_down: called when the connection is lost.
        on_gone: called with the reason when it will not be dialled again.
        is_needed: whether somebody waits for something; an idle link is not dialled again.
    """

    def __init__(
        self,
        settings: ConnectionSettings,
        *,
        on_message: Callable[[FromCoordinator], None],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_gone: Callable[[GridXError], None],
        is_needed: Callable[[], bool],
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._settings = settings
        self._on_message, self._on_up = on_message, on_up
        self._on_down, self._on_gone = on_down, on_gone
        self._is_needed = is_needed
        self._patience_s = patience_s
        self._socket: WebSocketClientConnection | None = None
        self._coming: asyncio.Task[ClientWelcome] | None = None
        self._closed = False
        self._lost_now = asyncio.Event()
        self.welcome: ClientWelcome | None = None

    @property
    def is_up(self) -> bool:
        """Whether a message sent now would leave."""
        return self._socket is not None

    async def open(self) -> ClientWelcome:
        """Return the welcome once the connection stands.

        Raises:
            TransportError: nothing answers.
            AuthError: the coordinator does not accept who we are.
        """
        if self._closed:
            raise TransportError("This client is closed.", hint="Make a new one.")
        if self._socket is not None and self.welcome is not None:
            return self.welcome
        if self._coming is None:
            self._coming = asyncio.create_task(self._dial(), name="gridx link: dial")
            self._coming.add_done_callback(self._came)
        # Shielded: a caller that is cancelled must not end the dial of the others.
        return await asyncio.shield(self._coming)

    def _came(self, task: asyncio.Task[ClientWelcome]) -> None:
        if self._coming is task:
            self._coming = None
        if not task.cancelled():
            task.exception()  # taken: each caller of open() got it, or on_gone did

    def send(self, message: Message) -> bool:
        """Send ``message``; False when there is no connection (the caller sends it again)."""
        if self._socket is None:
            return False
        data = from_client.encode(message)
        try:
            written = self._socket.write_message(data, binary=True)
        except WebSocketClosedError:
            return False
        written.add_done_callback(_take)  # a write that fails is a loss, and that is told
        return True

    def drop(self) -> None:
        """Cut the connection as a failing network would; it comes back if it is needed."""
        if self._socket is not None:
            self._socket.close()

    async def close(self) -> None:
        """Close for good."""
        self._closed = True
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.wait([self._coming])
        if (socket := self._socket) is not None:
            stream = socket.protocol.stream if socket.protocol is not None else None
            socket.close()
            try:
                await asyncio.wait_for(self._lost_now.wait(), _CLOSE_TIMEOUT_S)
            except TimeoutError:
                if stream is not None:
                    stream.close()  # the other side does not answer

    async def _dial(self) -> ClientWelcome:
        """Connect and say hello; the welcome comes back."""
        first: asyncio.Future[ClientWelcome] = asyncio.get_running_loop().create_future()
        socket: WebSocketClientConnection | None = None

        def arrived(data: str | bytes | None) -> None:
            if socket is not None and self._socket is socket:
                self._received(socket, data)
            elif not first.done():
                try:
                    first.set_result(_welcome_of(data))
                except GridXError as exc:
                    first.set_exception(exc)
                else:
                    # At once, not when the awaiting task runs: the next message may be here.
                    self._socket = socket
                    self._lost_now.clear()

        try:
            socket = await websocket_connect(
                HTTPRequest(
                    self._settings.websocket_url,
                    connect_timeout=DIAL_TIMEOUT_S,
                    request_timeout=DIAL_TIMEOUT_S,
                    follow_redirects=False,
                ),
                on_message_callback=arrived,
                compression_options=None,  # it would cost more than it saves; images are packed
                ping_interval=_PING_INTERVAL_S,
                max_message_size=MAX_FRAME_BYTES + _FRAME_MARGIN_BYTES,
                subprotocols=[CLIENT_MSGPACK],
            )
            assert socket.protocol is not None
            socket.protocol.set_nodelay(True)
            if socket.selected_subprotocol != CLIENT_MSGPACK:
                raise ProtocolError(
                    f"The server at {self._settings.url} does not speak {CLIENT_MSGPACK}."
                )
            hello = ClientHello(user=self._settings.user, token=self._settings.token)
            socket.write_message(from_client.encode(hello), binary=True).add_done_callback(_take)
            self.welcome = await asyncio.wait_for(first, DIAL_TIMEOUT_S)
        except BaseException as exc:
            first.cancel()
            if socket is not None:
                if self._socket is socket:
                    self._socket = None
                socket.close()
            if isinstance(exc, HTTPClientError):
                raise error_of(self._settings.url, exc) from None
            if isinstance(exc, OSError | WebSocketError):  # TimeoutError is an OSError
                raise unreachable(self._settings.url, exc) from None
            raise
        return self.welcome

    def _received(self, socket: WebSocketClientConnection, data: str | bytes | None) -> None:
        if data is None:
            self._lost(socket)
            return
        try:
            message = to_client.decode(data)
            if isinstance(message, ClientWelcome):
                raise ProtocolError("A second welcome came.")
        except ProtocolError as exc:
            self._give_up(exc)
            return
        if isinstance(message, Refused) and message.job_id is None:
            self._give_up(from_body(message.error))
        else:
            self._on_message(message)

    def _give_up(self, error: GridXError) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close()
        self._on_gone(error)

    def _lost(self, socket: WebSocketClientConnection) -> None:
        self._socket = None
        self._lost_now.set()
        socket.close()  # releases what Tornado holds of it
        if self._closed:
            return
        self._on_down()
        if self._is_needed() and self._coming is None:
            self._coming = asyncio.create_task(self._dial_again(), name="gridx link: dial again")
            self._coming.add_done_callback(self._came)

    async def _dial_again(self) -> ClientWelcome:
        until_s = monotonic_s() + self._patience_s
        tries = 0
        while True:
            await asyncio.sleep(delay_s(tries))
            tries += 1
            try:
                welcome = await self._dial()
            except TransportError as exc:
                if monotonic_s() < until_s and self._is_needed():
                    continue
                error = TransportError(
                    f"The coordinator at {self._settings.url} was lost and did not come back"
                    f" within {self._patience_s:.0f} s. What it accepted goes on there.",
                    hint="See `gridx jobs` once it answers again; `gridx doctor` looks for the"
                    " cause.",
                    url=self._settings.url,
                    cause=exc.message,
                )
                self._on_gone(error)
                raise error from None
            except GridXError as exc:
                self._on_gone(exc)
                raise
            self._on_up()
            return welcome


def _welcome_of(data: str | bytes | None) -> ClientWelcome:
    if data is None:
        raise TransportError("The coordinator closed the connection before it said a word.")
    message = to_client.decode(data)
    if isinstance(message, Refused):
        raise from_body(message.error)
    if not isinstance(message, ClientWelcome):
        raise ProtocolError("The coordinator did not begin with a welcome.")
    return message


def _take(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()
