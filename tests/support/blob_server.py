"""Blobs over HTTP as a coordinator serves them, told by a test when to lie, refuse or break off."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from tornado import web
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from gridx.blobs import OCTETS, ZSTD, cut, pack, to_blob, unpack
from gridx.errors import GridXError
from gridx.resources import MIB
from gridx.schemas import BlobRef


class BlobServer:
    """Call its methods from the loop that serves it."""

    def __init__(self) -> None:
        self.port = 0
        self.blobs: dict[str, bytes] = {}  # by digest, as sent
        self.packed: set[str] = set()  # of these, those that are zstd frames
        self.got: list[str] = []  # digests that were asked for, in order
        self.put: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.queries: list[dict[str, str]] = []
        self.tokens: set[str | None] = set()
        self.refusal: GridXError | None = None  # answered instead
        self.refusal_status = 404
        self.cuts = 0  # so many answers break off in their middle
        self.flow = asyncio.Event()  # answers wait for it
        self.flow.set()
        self._server: HTTPServer | None = None
        self._app = web.Application([(r"/blobs/([0-9a-f]+)", _Handler, {"server": self})])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def offer(self, data: bytes) -> tuple[BlobRef, ...]:
        """Have ``data`` as blobs, in order."""
        blobs = [to_blob(piece) for piece in cut(data)]
        self.blobs.update({blob.ref.digest: bytes(blob.data) for blob in blobs})
        return tuple(blob.ref for blob in blobs)

    def pack_all(self) -> None:
        """Send from now on in a packed form whatever gains by it."""
        for name, data in self.blobs.items():
            packed = pack(data)
            if packed.is_zstd and name not in self.packed:
                self.blobs[name] = packed.body
                self.packed.add(name)

    def whole(self, refs: tuple[BlobRef, ...]) -> bytes:
        """Return the bytes that were put as these blobs."""
        return b"".join(self.put[ref.digest] for ref in refs)

    def listen(self) -> None:
        """Take connections, on the port of before when there was one."""
        sockets = bind_sockets(self.port, "127.0.0.1", family=socket.AF_INET)
        self.port = sockets[0].getsockname()[1]
        self._server = HTTPServer(self._app, max_body_size=16 * MIB)
        self._server.add_sockets(sockets)

    async def stop(self) -> None:
        """Be gone, as a killed coordinator is."""
        if self._server is not None:
            self._server.stop()
            await self._server.close_all_connections()
            self._server = None


class _Handler(web.RequestHandler):
    def initialize(self, server: BlobServer) -> None:
        self.server = server

    async def prepare(self) -> None:
        server = self.server
        server.tokens.add(self.request.headers.get("Authorization"))
        server.queries.append(
            {name: self.get_query_argument(name) for name in self.request.arguments}
        )
        await server.flow.wait()
        if server.refusal is not None:
            self.set_status(server.refusal_status)
            body = {"error": server.refusal.to_body(), "detail": server.refusal.message}
            self.finish(msgspec.json.encode(body))

    def get(self, name: str) -> None:
        server = self.server
        server.got.append(name)
        data = server.blobs.get(name)
        if data is None:
            self.set_status(404)
            self.finish(b'{"error": {"code": "not_found", "message": "No such blob."}}')
            return
        self.set_header("Content-Type", OCTETS)
        if name in server.packed:
            self.set_header("Content-Encoding", ZSTD)
        if server.cuts:
            server.cuts -= 1
            self.set_header("Content-Length", str(len(data)))
            self.write(data[: len(data) // 2])
            self.flush().add_done_callback(lambda done: self.request.connection.stream.close())  # type: ignore[union-attr]
            self._auto_finish = False
            return
        self.finish(data)

    def put(self, name: str) -> None:
        server = self.server
        server.puts.append(name)
        if server.cuts:
            server.cuts -= 1
            self.request.connection.stream.close()  # type: ignore[union-attr]
            self._auto_finish = False
            return
        ref = BlobRef(digest=name, size=int(self.get_query_argument("size")))
        is_zstd = self.request.headers.get("Content-Encoding") == ZSTD
        server.put[name] = unpack(self.request.body, ref, is_zstd=is_zstd)
        self.finish(b"{}")

    def on_connection_close(self) -> None:
        """A worker may break off, too."""


@asynccontextmanager
async def blob_server() -> AsyncIterator[BlobServer]:
    """Serve until the block ends; the socket is bound before it begins."""
    server = BlobServer()
    server.listen()
    try:
        yield server
    finally:
        await server.stop()
