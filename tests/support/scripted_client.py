"""A client whose every message a test can see: REST by Tornado's client, and the client socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

import msgspec
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, websocket_connect

from gridx.protocol import (
    CLIENT_JSON,
    CLIENT_MSGPACK,
    MAX_FRAME_BYTES,
    ClientHello,
    ClientWelcome,
    FromClient,
    JobChanged,
    Output,
    Refused,
    ToClient,
    from_client,
    from_client_json,
    to_client,
    to_client_json,
)

from .inbox import first, found

M = TypeVar("M")
PATIENCE_S = 60.0
FINAL = ("completed", "failed", "cancelled")


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    """Return once ``check`` holds: a state to wait for that nobody announces."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if await check():
                return
            await asyncio.sleep(0.01)


class Rest:
    """Speaks REST with one coordinator."""

    def __init__(self, http_url: str) -> None:
        self.http_url = http_url

    async def fetch(
        self, method: str, path: str, body: bytes | str | None = None, **headers: str | None
    ) -> HTTPResponse:
        """Return the answer, whatever its status. Underscores in header names become hyphens."""
        if body is None and method in ("POST", "PUT", "PATCH"):
            body = b""
        sent = {name.replace("_", "-"): text for name, text in headers.items() if text is not None}
        request = HTTPRequest(
            self.http_url + path,
            method=method,
            body=body,
            headers=sent,
            allow_nonstandard_methods=True,
            follow_redirects=False,
            request_timeout=PATIENCE_S,
        )
        return await AsyncHTTPClient().fetch(request, raise_error=False)

    async def get(self, path: str, *, status: int = 200) -> Any:
        """Return the JSON of a GET; any other status fails the test."""
        response = await self.fetch("GET", path)
        assert response.code == status, (response.code, response.body)
        return json.loads(response.body)

    async def post(self, path: str, body: Any = None, *, status: int | None = None) -> Any:
        """Return the JSON of a POST."""
        sent = b"" if body is None else msgspec.json.encode(body)
        kind = None if body is None else "application/json"
        response = await self.fetch("POST", path, sent, Content_Type=kind)
        expected = (200, 201) if status is None else (status,)
        assert response.code in expected, (response.code, response.body)
        return json.loads(response.body)

    async def wait_for(self, job_id: str, *states: str) -> Any:
        """Return the job once it is in one of ``states`` (default: any final one)."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                job = await self.get(f"/jobs/{job_id}")
                if job["status"] in (states or FINAL):
                    return job
                await asyncio.sleep(0.01)


class ScriptedClient:
    """One connection to the client socket."""

    def __init__(self, http_url: str, *, user: str = "alice", as_json: bool = False) -> None:
        self.url = http_url.replace("http://", "ws://") + "/ws/client"
        self.user = user
        self.received: list[ToClient] = []
        self.is_closed = False
        self._subprotocol = CLIENT_JSON if as_json else CLIENT_MSGPACK
        self._encode = (from_client_json if as_json else from_client).encode
        self._decode = (to_client_json if as_json else to_client).decode
        self._is_json = as_json
        self._changed = asyncio.Condition()
        self._connection: WebSocketClientConnection | None = None
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        self.send(ClientHello(user=self.user))
        await self.expect(ClientWelcome)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect without a hello."""
        self._connection = await websocket_connect(
            self.url, subprotocols=[self._subprotocol], max_message_size=MAX_FRAME_BYTES * 2
        )
        assert self._connection.protocol is not None
        self._connection.protocol.set_nodelay(True)
        self._reading = asyncio.get_running_loop().create_task(self._read(self._connection))

    async def close(self) -> None:
        """Leave."""
        if self._connection is not None:
            self._connection.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    def send(self, message: FromClient) -> None:
        """Send one message."""
        self.send_raw(self._encode(message))

    def send_raw(self, data: bytes | str) -> None:
        """Send one frame: text on the JSON subprotocol."""
        assert self._connection is not None
        try:
            future = self._connection.write_message(data, binary=not self._is_json)
        except WebSocketClosedError:
            return
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _read(self, connection: WebSocketClientConnection) -> None:
        while (data := await connection.read_message()) is not None:
            message = self._decode(data)
            async with self._changed:
                self.received.append(message)
                self._changed.notify_all()
        async with self._changed:
            self.is_closed = True
            self._changed.notify_all()

    async def expect(
        self, kind: type[M] | tuple[type[M], ...], *, after: int = 0, **fields: Any
    ) -> M:
        """Return the first message of this kind (with these values) since index ``after``."""
        return await found(
            self._changed, lambda: first(self.received[after:], kind, fields), PATIENCE_S
        )

    async def expect_close(self) -> None:
        """Wait until the coordinator has closed the connection."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: self.is_closed)

    async def final(self, job_id: str) -> JobChanged:
        """Return the final state of a job, or fail with what refused it."""

        def find() -> JobChanged | Refused | None:
            for message in self.received:
                if isinstance(message, Refused) and message.job_id == job_id:
                    return message
                is_change = isinstance(message, JobChanged) and message.job.job_id == job_id
                if is_change and message.job.status in FINAL:
                    return message
            return None

        answer = await found(self._changed, find, PATIENCE_S)
        assert isinstance(answer, JobChanged), answer
        return answer

    def output(self, job_id: str, attempt: int = 1) -> bytes:
        """Return the output of an attempt so far, checked for gaps and doubles."""
        whole = b""
        for message in self.received:
            if isinstance(message, Output) and message.job_id == job_id:
                if message.attempt != attempt:
                    continue
                assert message.offset == len(whole), (message.offset, len(whole))
                whole += message.data
        return whole
