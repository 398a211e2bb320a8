"""From a connection to an endpoint: the guard, the size of the body, the table of routes.

The order is fixed: body limit, guard, route, method, scope, query, body. Whatever refuses answers
in the one form of an error, also where Tornado itself would send a page.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.iostream import StreamClosedError
from tornado.web import Application, RequestHandler, stream_request_body
from tornado.websocket import WebSocketHandler

from gridx import __version__
from gridx.errors import AuthError, GridXError, PayloadTooLarge
from gridx.protocol import MAX_FRAME_BYTES
from gridx.resources import GIB, KIB, MIB, format_bytes

from ..rules.access import OPEN, Caller, Scope, require
from ..services import accounts
from .base import (
    MAX_BODY_BYTES,
    Call,
    EventStream,
    MethodNotAllowed,
    Reply,
    UnknownRoute,
    as_gridx_error,
    decode_body,
    decode_query,
    envelope,
    status_of,
)
from .client_socket import ClientSocket
from .guard import OpenGuard
from .routes import EVENT_STREAM, Route, find_routes
from .worker_socket import WorkerSocket

if TYPE_CHECKING:
    from .context import Context

CLIENT_PATH = "/ws/client"
WORKER_PATH = "/ws/worker"
MESSAGE_CHUNK_BYTES = 64 * KIB  # read at once
BLOB_CHUNK_BYTES = MIB  # the same of a blob, which comes in twice the pace that way
_DRAIN_LIMIT_BYTES = GIB  # a refused body is read and dropped, so that the answer can be read

_log = logging.getLogger(__name__)


class UpgradeNeeded(UnknownRoute):
    """This address speaks WebSocket."""

    code = "upgrade_needed"
    default_hint = "Connect with a WebSocket client; the messages are in gridx/protocol.py."


class _Handler(RequestHandler):
    """What every answer over HTTP has in common."""

    def set_default_headers(self) -> None:
        self.set_header("Server", f"gridx/{__version__}")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")

    def compute_etag(self) -> None:
        """No answer is stored, so none gets a digest of its body."""

    def check_xsrf_cookie(self) -> None:
        """There are no cookies: nothing that a browser would send by itself is a credential."""

    def send_refusal(self, context: Context, error: GridXError) -> None:
        context.counters.refused[error.code] += 1
        self.clear()
        self.set_status(status_of(error))
        if isinstance(error, AuthError):
            self.set_header("WWW-Authenticate", "Bearer")
        if isinstance(error, MethodNotAllowed):
            self.set_header("Allow", ", ".join(error.details["allowed"]))
        self.set_header("Content-Type", "application/json")
        self.finish(envelope(error))


class RefusalHandler(_Handler):
    """Answers a request that went no further than the door."""

    def initialize(self, context: Context, error: GridXError) -> None:
        self._context, self._error = context, error

    async def prepare(self) -> None:
        self.send_refusal(self._context, self._error)


class EndpointHandler(_Handler):
    """Runs the endpoint of one row of the table."""

    def initialize(self, context: Context, route: Route, parts: dict[str, str]) -> None:
        self._context, self._route, self._parts = context, route, parts

    async def prepare(self) -> None:
        await self._answer()

    async def _answer(self, pieces: Sequence[bytes] = ()) -> None:
        context, route = self._context, self._route
        try:
            caller = await self._identify()
            if route.or_scope is None or route.or_scope not in caller.scopes:
                require(caller, route.scope)
            call = Call(
                caller=caller,
                path=self._parts,
                query=self._query(),
                body=None
                if route.request is None
                else decode_body(self.request.body, route.request),
                last_event_id=self.request.headers.get("Last-Event-ID"),
                pieces=pieces,
                encoding=self.request.headers.get("Content-Encoding"),
                accepts=self._accepted_encodings(),
            )
            answer = await route.endpoint(context, call)
        except Exception as exc:
            self.send_refusal(context, as_gridx_error(exc))
            return
        if isinstance(answer, EventStream):
            await self._stream(answer)
        elif answer.data is not None:
            await self._send_bytes(answer, answer.data)
        else:
            self._reply(answer)

    def _query(self) -> Any:
        kind = self._route.query
        if kind is None:
            return None
        return decode_query(self.request.query_arguments, kind)

    def _accepted_encodings(self) -> frozenset[str]:
        named = self.request.headers.get("Accept-Encoding", "").lower().split(",")
        return frozenset(name.partition(";")[0].strip() for name in named if "q=0" not in name)

    async def _identify(self) -> Caller:
        is_open = self._context.settings.is_open
        given = self.request.headers.get("Authorization", "")
        token = given.removeprefix("Bearer ").strip()
        # In open mode a worker still says which one it is: its rights are those of its jobs.
        if is_open and not token.startswith(accounts.WORKER_PREFIX):
            return OPEN
        if not given.startswith("Bearer "):
            return Caller()
        identity = await self._context.store.read(accounts.identify, token)
        scopes = frozenset({Scope.PUBLIC} | {Scope(scope) for scope in identity.scopes})
        return Caller(user=identity.user, scopes=scopes, worker_id=identity.worker_id)

    def _reply(self, answer: Reply) -> None:
        self.set_status(answer.status)
        self.set_header("Content-Type", answer.content_type)
        if answer.text is not None:
            self.finish(answer.text)
        else:
            self.finish(msgspec.json.encode(answer.value))

    async def _send_bytes(self, answer: Reply, data: bytes) -> None:
        self.set_status(answer.status)
        self.set_header("Content-Type", answer.content_type)
        self.set_header("Content-Length", str(len(data)))
        if answer.encoding is not None:
            self.set_header("Content-Encoding", answer.encoding)
        try:
            await self.flush()  # the head alone: Tornado would copy the body behind it
            self.finish(data)
        except StreamClosedError:
            pass  # the caller went away; it asks again when it needs the bytes

    async def _stream(self, answer: EventStream) -> None:
        self.set_header("Content-Type", EVENT_STREAM)
        events = answer.events
        try:
            await self.flush()
            async for data in events:
                self.write(data)
                await self.flush()
            self.finish()
        except StreamClosedError:
            self.finish()  # the client went away; it resumes from the last id that it has
        except Exception:
            _log.exception("A stream of events failed", extra={"action": "events.failed"})
            self.finish()
        finally:
            await events.aclose()  # type: ignore[attr-defined]  # each is a generator


@stream_request_body
class BytesHandler(EndpointHandler):
    """The same for a route that takes bytes: kept in the pieces in which they come.

    Joined, eight megabytes would cost more than reading them did.
    """

    def initialize(self, context: Context, route: Route, parts: dict[str, str]) -> None:
        super().initialize(context, route, parts)
        self._pieces: list[bytes] = []
        self._size = 0

    async def prepare(self) -> None:
        """Leave the answer until the body is there."""

    def data_received(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size <= MAX_BODY_BYTES:
            self._pieces.append(chunk)
        else:
            self._pieces.clear()  # refused, but read to its end, so that the answer can be read

    async def put(self) -> None:
        if self._size > MAX_BODY_BYTES:
            self.send_refusal(self._context, _too_large())
        else:
            await self._answer(self._pieces)


class _LimitedBody(HTTPMessageDelegate):
    """Passes a body on up to the limit; beyond it the body is dropped and refused with a 413."""

    def __init__(self, inner: HTTPMessageDelegate, refuse: Any, limit_bytes: int) -> None:
        self._inner, self._refuse, self._limit = inner, refuse, limit_bytes
        self._size = 0

    def data_received(self, chunk: bytes) -> Any:
        self._size += len(chunk)
        return self._inner.data_received(chunk) if self._size <= self._limit else None

    def finish(self) -> None:
        if self._size > self._limit:
            self._inner = self._refuse()
        self._inner.finish()

    def on_connection_close(self) -> None:
        self._inner.on_connection_close()


class Listener(Application):
    """One port: the HTTP API with the clients' socket, or the workers' socket."""

    def __init__(
        self,
        context: Context,
        guard: OpenGuard | None,
        sockets: dict[str, type[WebSocketHandler]],
        *,
        has_api: bool,
    ) -> None:
        super().__init__(
            websocket_max_message_size=MAX_FRAME_BYTES,
            log_function=_log_request,
        )
        self._context, self._guard, self._sockets = context, guard, sockets
        self._has_api = has_api

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        connection: Any = request.connection
        connection.set_max_body_size(_DRAIN_LIMIT_BYTES)
        try:
            if self._guard is not None:
                self._guard.check(request)
            inner = self._route(request)
        except Exception as exc:
            inner = self._refusal(request, as_gridx_error(exc))
        if getattr(inner, "stream_request_body", False):
            return inner  # it sees to the limit itself
        return _LimitedBody(inner, lambda: self._refusal(request, _too_large()), MAX_BODY_BYTES)

    def _route(self, request: HTTPServerRequest) -> Any:
        path, method = request.path, request.method or ""
        if socket := self._sockets.get(path):
            if request.headers.get("Upgrade", "").lower() != "websocket":
                raise UpgradeNeeded(f"{path} speaks WebSocket, not plain HTTP.")
            return self.get_handler_delegate(request, socket, {"context": self._context})
        routes, parts = find_routes(path) if self._has_api else ({}, {})
        if not routes:
            raise UnknownRoute(f"There is nothing at {path[:200]}.")
        route = routes.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = sorted(routes)
            raise MethodNotAllowed(
                f"{path[:200]} does not take {method[:20]}.",
                hint=f"Use {' or '.join(allowed)}.",
                allowed=allowed,
            )
        arguments = {"context": self._context, "route": route, "parts": parts}
        if not route.takes_bytes:
            return self.get_handler_delegate(request, EndpointHandler, arguments)
        connection: Any = request.connection
        connection.stream.read_chunk_size = BLOB_CHUNK_BYTES
        return self.get_handler_delegate(request, BytesHandler, arguments)

    def _refusal(self, request: HTTPServerRequest, error: GridXError) -> Any:
        # The body is never looked at: without its type Tornado does not try to take it apart.
        request.headers.pop("Content-Type", None)
        arguments = {"context": self._context, "error": error}
        return self.get_handler_delegate(request, RefusalHandler, arguments)


def _too_large() -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The body is over the limit of {format_bytes(MAX_BODY_BYTES)}.",
        hint=f"Code may have {format_bytes(MIB)}; larger data travels as blobs of 8 MiB.",
        limit_bytes=MAX_BODY_BYTES,
    )


def _log_request(handler: RequestHandler) -> None:
    request = handler.request
    _log.debug(
        "%s %s %d",
        request.method,
        request.path,
        handler.get_status(),
        extra={"action": "web.request", "status": handler.get_status()},
    )


def make_api_listener(context: Context, guard: OpenGuard | None) -> Listener:
    """Return the application of the HTTP port."""
    return Listener(context, guard, {CLIENT_PATH: ClientSocket}, has_api=True)


def make_worker_listener(context: Context, guard: OpenGuard | None) -> Listener:
    """Return the application of the workers' port."""
    return Listener(context, guard, {WORKER_PATH: WorkerSocket}, has_api=False)
