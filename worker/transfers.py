"""Blobs over HTTP, from the coordinator and to it: a few at a time, begun again after a cut.

The work is done in threads, each with a connection that is kept: neither a long transfer nor
its digests hold up the worker's other jobs. A blob is at most 8 MiB, so what is resumed is a
blob, never the middle of one.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import urlencode, urlsplit

import msgspec

from gridx.blobs import OCTETS, ZSTD, pack, unpack
from gridx.errors import ErrorBody, GridXError, ProtocolError, TransportError, from_body
from gridx.protocol import AttemptRef
from gridx.resources import KIB
from gridx.schemas import BlobRef

from .connection import reconnect_wait_s

PARALLEL: Final = 4
TIMEOUT_S: Final = 30.0  # of each read and write of a socket
PATIENCE_S: Final = 120.0  # an attempt waits so long for a coordinator that does not answer
_SENT_BYTES: Final = 256 * KIB  # at once
_ENVELOPE_BYTES: Final = 64 * KIB  # more than this is no error body; a packed blob may be longer
_ANYWHERE: Final = ("0.0.0.0", "::", "localhost", "127.0.0.1", "::1")  # noqa: S104  compared only
_TRY_AGAIN: Final = (401, 408, 425, 429)  # 401: a new token comes with the next Welcome


class _Unreachable(Exception):
    """Worth another try: the coordinator is away, busy, or cut the connection."""


class _Cut:
    """Ends the transfer of one thread from outside: its socket is shut while it waits there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self.is_cut = False

    def watch(self, connection: http.client.HTTPConnection | None) -> None:
        """Have ``connection`` cut, until it is another one or none.

        Raises:
            TransportError: it was cut before.
        """
        with self._lock:
            if self.is_cut and connection is not None:
                raise TransportError("The transfer was stopped.")
            self._connection = connection

    def now(self) -> None:
        """Cut."""
        with self._lock:
            self.is_cut = True
            found = self._connection.sock if self._connection is not None else None
            if found is not None:
                try:
                    found.shutdown(socket.SHUT_RDWR)
                except OSError:  # closed by the other side meanwhile
                    pass


def blob_address(http_url: str, coordinator: str) -> str:
    """Return where blobs are, as seen from here.

    A coordinator that is bound to every address, or behind a tunnel, names itself by an address
    that means this machine; then it is the host that the worker has dialled.
    """
    told, dialled = urlsplit(http_url), urlsplit(coordinator)
    host = dialled.hostname
    if told.hostname not in _ANYWHERE or host is None or host in _ANYWHERE:
        return http_url.rstrip("/")
    where = f"[{host}]" if ":" in host else host
    port = f":{told.port}" if told.port else ""
    return told._replace(netloc=f"{where}{port}").geturl().rstrip("/")


class BlobTransfers:
    """The way to the coordinator's blobs, once a Welcome has said where they are."""

    def __init__(self, *, parallel: int = PARALLEL, patience_s: float = PATIENCE_S) -> None:
        # Of their own, so that a large result on a slow line does not hold up anybody's inputs.
        self._getting = ThreadPoolExecutor(parallel, thread_name_prefix="blobs-in")
        self._putting = ThreadPoolExecutor(parallel, thread_name_prefix="blobs-out")
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._url = ""
        self._token: str | None = None

    def connect(self, http_url: str, token: str | None) -> None:
        """Use this address and token from now on."""
        with self._lock:
            if http_url != self._url:
                self._drop_idle()
            self._url, self._token = http_url, token

    def close(self) -> None:
        """Close the connections. Transfers that are under way were cancelled before."""
        for threads in (self._getting, self._putting):
            threads.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._drop_idle()

    # ---- what may be asked

    async def get(self, ref: BlobRef, attempt: AttemptRef, keep: Callable[[bytes], None]) -> None:
        """Fetch a blob and give its raw bytes, checked by size and digest, to ``keep``.

        ``keep`` is called in a thread. Cancelling ends the transfer.

        Raises:
            BlobMismatch: the coordinator sent other bytes.
            GridXError: it refused; or, as TransportError, has not answered for too long.
        """
        await _until_done(
            self._getting,
            lambda cut: keep(self._fetch(ref, attempt, cut)),
            patience_s=self._patience_s,
        )

    async def put(self, ref: BlobRef, attempt: AttemptRef, read: Callable[[], bytes]) -> None:
        """Give a blob to the coordinator, however long it takes to reach it.

        ``read`` returns its raw bytes, and is called in a thread for each try.

        Raises:
            GridXError: the coordinator refused it.
        """
        await _until_done(
            self._putting,
            lambda cut: self._give(ref, attempt, read(), cut),
            patience_s=None,
        )

    # ---- in a thread

    def _fetch(self, ref: BlobRef, attempt: AttemptRef, cut: _Cut) -> bytes:
        query = urlencode({"job_id": attempt.job_id, "attempt": attempt.attempt})
        path = f"/blobs/{ref.digest}?{query}"
        body, encoding = self._ask(
            "GET", path, None, {"Accept-Encoding": ZSTD}, ref.size + _ENVELOPE_BYTES, cut
        )
        return unpack(body, ref, is_zstd=encoding == ZSTD)

    def _give(self, ref: BlobRef, attempt: AttemptRef, data: bytes, cut: _Cut) -> None:
        packed = pack(data)
        headers = {"Content-Type": OCTETS}
        if packed.is_zstd:
            headers["Content-Encoding"] = ZSTD
        query = urlencode({"size": ref.size, "job_id": attempt.job_id, "attempt": attempt.attempt})
        self._ask("PUT", f"/blobs/{ref.digest}?{query}", packed.body, headers, _ENVELOPE_BYTES, cut)

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | bytearray | memoryview | None,
        headers: dict[str, str],
        limit_bytes: int,
        cut: _Cut,
    ) -> tuple[bytes, str]:
        """Return body and content encoding of a good answer.

        Raises:
            _Unreachable: there was none, or one that says to try again.
            GridXError: a refusal.
        """
        with self._lock:
            token = self._token
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        connection, is_used = self._take_connection()
        while True:
            try:
                cut.watch(connection)
                status, encoding, data = _exchange(
                    connection, method, path, body, headers, limit_bytes
                )
                break
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if not is_used or cut.is_cut:
                    raise _Unreachable(_short(error)) from None
                connection, is_used = self._new_connection(), False  # it had been idle too long
            except BaseException:
                connection.close()
                raise
            finally:
                cut.watch(None)
        self._give_back(connection)
        if status in (200, 201, 204):
            return data, encoding
        if status in _TRY_AGAIN or status >= 500:
            raise _Unreachable(f"it answered {status}")
        raise _refusal(status, data)

    def _take_connection(self) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if self._idle:
                return self._idle.pop(), True
        return self._new_connection(), False

    def _new_connection(self) -> http.client.HTTPConnection:
        with self._lock:
            url = urlsplit(self._url)
        if url.hostname is None:
            raise _Unreachable("no coordinator has said where they are")
        if url.scheme == "https":
            return http.client.HTTPSConnection(
                url.hostname, url.port, timeout=TIMEOUT_S, context=ssl.create_default_context()
            )
        return http.client.HTTPConnection(url.hostname, url.port, timeout=TIMEOUT_S)

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            url = urlsplit(self._url)
            is_ours = (connection.host, connection.port) == (
                url.hostname,
                url.port or connection.default_port,
            )
            if is_ours and connection.sock is not None:
                self._idle.append(connection)
                return
        connection.close()

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()


async def _until_done(
    threads: ThreadPoolExecutor, work: Callable[[_Cut], None], *, patience_s: float | None
) -> None:
    """Run ``work`` in a thread until it does not find the coordinator away or busy."""
    loop = asyncio.get_running_loop()
    failing_since_s, failures = 0.0, 0
    while True:
        cut = _Cut()
        try:
            await loop.run_in_executor(threads, work, cut)
            return
        except asyncio.CancelledError:
            cut.now()
            raise
        except _Unreachable as error:
            # From the first failure on: what waits behind other blobs is not impatient.
            failing_since_s = failing_since_s or loop.time()
            failures += 1
            if patience_s is not None and loop.time() - failing_since_s > patience_s:
                raise TransportError(
                    f"The coordinator's blobs could not be reached for {patience_s:.0f} s: {error}."
                ) from None
        await asyncio.sleep(reconnect_wait_s(failures))


def _connect(connection: http.client.HTTPConnection) -> None:
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | bytearray | memoryview | None,
    headers: dict[str, str],
    limit_bytes: int,
) -> tuple[int, str, bytes]:
    if connection.sock is None:
        _connect(connection)
    try:
        if body is None:
            connection.request(method, path, headers=headers)
        else:
            # In pieces, since the time limit is that of each: a slow line is not a dead one.
            view = memoryview(body)
            pieces = (view[at : at + _SENT_BYTES] for at in range(0, len(view), _SENT_BYTES))
            length = {"Content-Length": str(len(body))}
            connection.request(method, path, pieces, headers | length)
    except (BrokenPipeError, ConnectionResetError):
        if body is None:
            raise
        # It may have refused before it had read everything; then the answer says why.
    with connection.getresponse() as answer:
        data = answer.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise http.client.HTTPException(f"it answered more than {limit_bytes} bytes")
        if answer.length:  # a read of so many bytes returns what there is, and says nothing
            raise http.client.IncompleteRead(b"", answer.length)
        return answer.status, answer.headers.get("Content-Encoding", ""), data


class _Envelope(msgspec.Struct):
    error: ErrorBody


def _refusal(status: int, data: bytes) -> GridXError:
    try:
        return from_body(msgspec.json.decode(data, type=_Envelope).error)
    except msgspec.MsgspecError:
        return ProtocolError(f"The coordinator answered {status} to a blob.")


def _short(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:200]
