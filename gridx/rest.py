"""The coordinator's REST API, as typed calls; its errors become ours again."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine, Mapping
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import msgspec
from tornado.httpclient import HTTPClientError, HTTPRequest, HTTPResponse
from tornado.iostream import StreamClosedError
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from .blobs import OCTETS, ZSTD, Packed
from .clock import now_us
from .errors import ErrorBody, GridXError, ProtocolError, TransportError, from_body
from .resources import MIB
from .schemas import BlobRef
from .settings import ConnectionSettings

T = TypeVar("T")

_TIMEOUT_S: Final = 20.0
_STALLED_S: Final = 60.0  # a blob of which nothing moved for so long will not come
_BLOB_TIMEOUT_S: Final = 3600.0
_PIECE_BYTES: Final = MIB  # of a blob, written at once
_MAX_REPLY_BYTES: Final = 256 * MIB  # the output of a job, as text


class _Envelope(msgspec.Struct):
    error: ErrorBody


def unreachable(url: str, cause: object) -> TransportError:
    """Return the error of a coordinator that cannot be reached: what, why, and what to do."""
    return TransportError(
        f"No coordinator answers at {url}: {_reason(cause)}.",
        hint="Start one with `gridx up`, or name the right address with `gridx login URL`"
        " or GRIDX_URL.",
        url=url,
    )


def _reason(cause: object) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({cause.verify_message})"
    if isinstance(cause, ssl.SSLError):
        return "it does not speak TLS as https:// asks for"
    if isinstance(cause, socket.gaierror):
        return "this host name is unknown"
    if isinstance(cause, ConnectionRefusedError):
        return "the connection was refused"
    if isinstance(cause, TimeoutError | asyncio.TimeoutError):
        return "it took too long"
    if isinstance(cause, StreamClosedError):
        return _reason(cause.real_error) if cause.real_error else "the connection was closed"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return str(cause).strip(".") or type(cause).__name__


def error_of(url: str, cause: Exception, body: bytes | None = None) -> GridXError:
    """Return what ``cause``, an HTTP call that failed, means for the caller.

    ``body``: of the answer, where it was taken while it came.
    """
    if not isinstance(cause, HTTPClientError) or cause.response is None or cause.code == 599:
        return unreachable(url, cause)
    try:
        said = cause.response.body or b"" if body is None else body
        return from_body(msgspec.json.decode(said, type=_Envelope).error)
    except msgspec.MsgspecError:
        return TransportError(
            f"What answers at {url} is not a Grid-X coordinator (HTTP {cause.code}"
            f" {cause.message}).",
            hint="Check the address with `gridx doctor`; a proxy in between must let"
            " WebSockets through.",
            url=url,
            http_status=cause.code,
        )


class Rest:
    """Calls of one coordinator, for the event loop that is running."""

    def __init__(self, settings: ConnectionSettings) -> None:
        self._settings = settings
        self._http = SimpleAsyncHTTPClient(
            force_instance=True, max_body_size=_MAX_REPLY_BYTES, max_buffer_size=_MAX_REPLY_BYTES
        )

    def close(self) -> None:
        """Let go of the sockets."""
        self._http.close()

    async def get(self, path: str, reply: type[T], **query: object) -> T:
        """Return what ``GET path`` answers; a query value of None is left out."""
        given = {key: str(value) for key, value in query.items() if value is not None}
        return self._decode(
            await self._fetch(f"{path}?{urlencode(given)}" if given else path, "GET"), reply
        )

    async def post(self, path: str, body: Any, reply: type[T]) -> T:
        """Return what ``POST path`` answers to ``body``, sent as JSON."""
        headers = {"Content-Type": "application/json"}
        response = await self._fetch(path, "POST", msgspec.json.encode(body), headers)
        return self._decode(response, reply)

    async def put_blob(
        self, user: str, ref: BlobRef, packed: Packed, on_piece: Callable[[int], None]
    ) -> None:
        """Put a blob of ``user``; it is durable when this returns.

        Args:
            on_piece: called with how many bytes have left, again and again.
        """
        query = urlencode({"size": ref.size, "user_id": user})
        headers = {"Content-Type": OCTETS, "Content-Length": str(len(packed.body))}
        if packed.is_zstd:
            headers["Content-Encoding"] = ZSTD
        body = memoryview(packed.body)
        sent_bytes = 0
        given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def produce(write: Callable[[memoryview], asyncio.Future[None]]) -> None:
            nonlocal sent_bytes
            for at in range(0, len(body), _PIECE_BYTES):
                piece = body[at : at + _PIECE_BYTES]
                await asyncio.wait([write(piece), given_up], return_when=asyncio.FIRST_COMPLETED)
                if given_up.done():
                    raise StreamClosedError  # closes the connection: nobody waits for it
                sent_bytes += len(piece)
                on_piece(sent_bytes)

        fetching = self._fetch(
            f"/blobs/{ref.digest}?{query}",
            "PUT",
            headers=headers,
            timeout_s=_BLOB_TIMEOUT_S,
            produce=produce,
        )
        await self._unless_stalled(
            fetching, lambda: sent_bytes, give_up=lambda: given_up.set_result(None)
        )

    async def get_blob(self, user: str, job_id: str, ref: BlobRef) -> tuple[list[bytes], bool]:
        """Return a blob that a job of ``user`` refers to, as it came, and whether it is packed."""
        query = urlencode({"job_id": job_id, "user_id": user})
        pieces: list[bytes] = []
        fetching = self._fetch(
            f"/blobs/{ref.digest}?{query}",
            "GET",
            headers={"Accept": OCTETS, "Accept-Encoding": ZSTD},
            timeout_s=_BLOB_TIMEOUT_S,
            pieces=pieces,
        )
        response = await self._unless_stalled(fetching, lambda: len(pieces))
        return pieces, response.headers.get("Content-Encoding") == ZSTD

    async def _unless_stalled(
        self,
        fetching: Coroutine[Any, Any, HTTPResponse],
        moved: Callable[[], int],
        give_up: Callable[[], None] = lambda: None,
    ) -> HTTPResponse:
        """Return the answer; give up when ``moved`` does not change for a while.

        A line may be slow, and a machine that slept has connections that nobody will ever end.
        ``give_up`` is called when nobody waits for the answer any more. The call itself is never
        cancelled: Tornado would log its end as an error of the program.
        """
        task = asyncio.ensure_future(fetching)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        before = -1
        try:
            while not task.done():
                if (now := moved()) == before:
                    raise unreachable(self._settings.url, TimeoutError())
                before = now
                await asyncio.wait([task], timeout=_STALLED_S)
            return task.result()
        finally:
            if not task.done():
                give_up()

    async def clock_offset_s(self) -> float | None:
        """Return how far the coordinator's clock is ahead of ours, to about a second.

        None when it does not say (its ``Date`` header; RFC 9110, section 6.6.1).
        """
        response = await self._fetch("/health", "GET")
        try:
            theirs = parsedate_to_datetime(response.headers.get("Date", ""))
        except ValueError:
            return None
        return theirs.timestamp() - now_us() / 1_000_000

    async def _fetch(
        self,
        path: str,
        method: str,
        body: bytes | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        timeout_s: float = _TIMEOUT_S,
        pieces: list[bytes] | None = None,
        produce: Any = None,  # as Tornado's body_producer, whose type leaves out coroutines
    ) -> HTTPResponse:
        headers = {"Accept": "application/json", **headers}
        if self._settings.token:
            headers["Authorization"] = f"Bearer {self._settings.token}"
        request = HTTPRequest(
            self._settings.url + path,
            method=method,
            headers=headers,
            body=body,
            body_producer=produce,
            request_timeout=timeout_s,
            connect_timeout=_TIMEOUT_S,
            follow_redirects=False,  # a redirect would carry the token elsewhere
            decompress_response="Accept-Encoding" not in headers,
            streaming_callback=None if pieces is None else pieces.append,
        )
        try:
            return await self._http.fetch(request)
        except (HTTPClientError, OSError) as exc:
            said = None if pieces is None else b"".join(pieces)
            raise error_of(self._settings.url, exc, said) from None

    def _decode(self, response: HTTPResponse, reply: type[T]) -> T:
        try:
            return msgspec.json.decode(response.body, type=reply)
        except msgspec.MsgspecError as exc:
            raise ProtocolError(
                f"{self._settings.url} answered something unexpected: {exc}.",
                hint="Check the address with `gridx doctor`, or upgrade the older side:"
                " `pip install -U gridx-jupyter`.",
            ) from None
