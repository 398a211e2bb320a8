"""A coordinator that does what a test tells it, for workers: the real protocol, real sockets.

It keeps each attempt's stream as the real one does (contiguous, acknowledged when stored), and
the test decides what is acknowledged, settled, refused or cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from tornado import web, websocket
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from gridx.errors import GridXError
from gridx.events import Event, decode_events
from gridx.ids import new_job_id
from gridx.protocol import (
    MAX_FRAME_BYTES,
    PROTOCOL,
    AttemptFinished,
    AttemptRef,
    AttemptStarted,
    CallFinished,
    CallSettled,
    FromWorker,
    HandBack,
    Heartbeat,
    Hello,
    Output,
    OutputAck,
    OutputResend,
    Refused,
    Settled,
    StartAttempt,
    StartCall,
    StoredEnd,
    ToWorker,
    Welcome,
    from_worker,
    to_worker,
)
from gridx.resources import GIB
from gridx.schemas import BlobRef, CellSpec, JobRequest, Limits, SessionSpec

M = TypeVar("M")
PATIENCE_S = 60.0


class WorkerCoordinator:
    """One coordinator's worker socket."""

    def __init__(self) -> None:
        self.received: list[FromWorker] = []
        self.streams: dict[AttemptRef, bytearray] = {}
        self.settled: dict[AttemptRef, AttemptFinished] = {}
        self.stopped: set[AttemptRef] = set()
        self.call_reports: dict[tuple[AttemptRef, int], CallFinished] = {}
        self.hellos: list[Hello] = []
        self.acknowledges = True  # False: stores nothing new, answers nothing
        self.settles = True
        self.refusal: Callable[[Hello], GridXError | None] = lambda hello: None
        self.protocol = PROTOCOL
        self.heartbeat_s = 0.2
        self.token: str | None = "gxw_scripted"
        self.http_url = "http://127.0.0.1:1"  # where blobs are: nowhere, unless a test has some
        self.changed = asyncio.Condition()
        self._socket: _WorkerSocket | None = None
        self._server: HTTPServer | None = None
        self.notifying: asyncio.Future[None] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/worker"

    async def start(self) -> None:
        app = web.Application(
            [("/ws/worker", _WorkerSocket, {"coordinator": self})],
            websocket_max_message_size=MAX_FRAME_BYTES,
        )
        sockets = bind_sockets(self.port, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        self._server = HTTPServer(app)
        self._server.add_sockets(sockets)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self.cut()
            await self._server.close_all_connections()
            self._server = None

    def cut(self) -> None:
        """Break the connection without a farewell."""
        if self._socket is not None and self._socket.ws_connection is not None:
            stream = self._socket.ws_connection.stream
            if stream is not None:
                stream.close()

    def send(self, message: ToWorker) -> None:
        assert self._socket is not None
        self._socket.write_message(to_worker.encode(message), binary=True)

    def give(
        self,
        code: str,
        *,
        user: str = "somebody",
        cell: bool | CellSpec = False,
        blobs: tuple[BlobRef, ...] = (),
        **limits: Any,
    ) -> AttemptRef:
        """Send one job; return its name."""
        ref = AttemptRef(job_id=new_job_id(), attempt=1)
        limits.setdefault("memory_bytes", GIB)
        spec = CellSpec(python="", expected=()) if cell is True else cell or None
        self.streams[ref] = bytearray()
        self.send(
            StartAttempt(
                job_id=ref.job_id,
                attempt=ref.attempt,
                user=user,
                job=JobRequest(code=code, user_id=user, limits=Limits(**limits)),
                cell=spec,
                blobs=blobs,
            )
        )
        return ref

    def open_session(self, code: str, *, user: str = "somebody", **limits: Any) -> AttemptRef:
        """Open a session whose call 0 is ``code``; return its name."""
        ref = AttemptRef(job_id=new_job_id(), attempt=1)
        limits.setdefault("memory_bytes", GIB)
        self.streams[ref] = bytearray()
        self.send(
            StartAttempt(
                job_id=ref.job_id,
                attempt=ref.attempt,
                user=user,
                job=JobRequest(code=code, user_id=user, limits=Limits(**limits)),
                cell=CellSpec(python=""),
                session=SessionSpec(name="s"),
                call_timeout_s=30,
            )
        )
        return ref

    def start_call(self, ref: AttemptRef, call: int, code: str, *, timeout_s: float = 30) -> None:
        """Start the next call of a session."""
        self.send(
            StartCall(
                job_id=ref.job_id,
                attempt=ref.attempt,
                call=call,
                code=code,
                timeout_s=timeout_s,
                cell=CellSpec(python=""),
            )
        )

    async def wait_call(self, ref: AttemptRef, call: int) -> CallFinished:
        """Return the report of a call, settled."""
        report: CallFinished = await self.wait(lambda: self.call_reports.get((ref, call)))
        return report

    def events(self, ref: AttemptRef) -> list[Event]:
        return list(decode_events(bytes(self.streams[ref])))

    def text(self, ref: AttemptRef, name: str = "stdout") -> str:
        return "".join(
            getattr(e, "text", "") for e in self.events(ref) if getattr(e, "name", "") == name
        )

    async def wait(self, holds: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
        """Return the first true value of ``holds``, asked after every message and connection."""
        async with asyncio.timeout(within_s), self.changed:
            while not (value := holds()):
                await self.changed.wait()
            return value

    async def wait_settled(self, ref: AttemptRef) -> AttemptFinished:
        report: AttemptFinished = await self.wait(lambda: self.settled.get(ref))
        return report

    async def wait_lines(self, ref: AttemptRef, lines: int) -> None:
        await self.wait(lambda: self.text(ref).count("\n") >= lines)

    def of(self, kind: type[M]) -> list[M]:
        return [message for message in self.received if isinstance(message, kind)]

    def handed_back(self, ref: AttemptRef) -> list[HandBack]:
        return [m for m in self.of(HandBack) if (m.job_id, m.attempt) == (ref.job_id, ref.attempt)]

    def has_started(self, ref: AttemptRef) -> bool:
        return any(m.job_id == ref.job_id for m in self.of(AttemptStarted))

    # ---- what a connection does

    async def on_message(self, socket: _WorkerSocket, message: FromWorker) -> None:
        self.received.append(message)
        match message:
            case Hello():
                self._on_hello(socket, message)
            case Output():
                self._on_output(message)
            case AttemptFinished():
                self._on_finished(message)
            case CallFinished():
                self._on_call_finished(message)
            case Heartbeat() | AttemptStarted() | HandBack():
                pass
        await self.notify()

    async def notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    def _on_hello(self, socket: _WorkerSocket, hello: Hello) -> None:
        self.hellos.append(hello)
        self._socket = socket
        error = self.refusal(hello)
        if error is not None:
            self.send(Refused(error=error.to_body()))
            socket.close()
            return
        live = [ref for ref in hello.running if ref in self.streams and ref not in self.stopped]
        live = [ref for ref in live if ref not in self.settled]
        self.send(
            Welcome(
                protocol=self.protocol,
                http_url=self.http_url,
                heartbeat_s=self.heartbeat_s,
                max_frame_bytes=MAX_FRAME_BYTES,
                token=self.token,
                adopted=tuple(
                    StoredEnd(job_id=r.job_id, attempt=r.attempt, offset=len(self.streams[r]))
                    for r in live
                ),
                stop=tuple(ref for ref in hello.running if ref not in live),
            )
        )

    def _on_output(self, output: Output) -> None:
        ref = AttemptRef(job_id=output.job_id, attempt=output.attempt)
        stream = self.streams[ref]
        if not self.acknowledges:
            return
        if output.offset > len(stream):
            self.send(OutputResend(job_id=ref.job_id, attempt=ref.attempt, offset=len(stream)))
            return
        list(decode_events(output.data))  # whole events, always
        stream += output.data[len(stream) - output.offset :]
        self.send(OutputAck(job_id=ref.job_id, attempt=ref.attempt, offset=len(stream)))

    def _on_finished(self, report: AttemptFinished) -> None:
        ref = AttemptRef(job_id=report.job_id, attempt=report.attempt)
        end = len(self.streams[ref])
        if not self.settles:
            return
        if end < report.stream_bytes:
            self.send(OutputResend(job_id=ref.job_id, attempt=ref.attempt, offset=end))
            return
        assert ref not in self.settled or self.settled[ref] == report
        self.settled[ref] = report
        self.send(Settled(job_id=ref.job_id, attempt=ref.attempt, call=report.call))

    def _on_call_finished(self, report: CallFinished) -> None:
        ref = AttemptRef(job_id=report.job_id, attempt=report.attempt)
        end = len(self.streams[ref])
        if not self.settles:
            return
        if end < report.stream_bytes:
            self.send(OutputResend(job_id=ref.job_id, attempt=ref.attempt, offset=end))
            return
        assert self.call_reports.get((ref, report.call), report) == report
        self.call_reports[ref, report.call] = report
        self.send(CallSettled(job_id=ref.job_id, attempt=ref.attempt, call=report.call))


class _WorkerSocket(websocket.WebSocketHandler):
    def initialize(self, coordinator: WorkerCoordinator) -> None:
        self.coordinator = coordinator

    def open(self) -> None:
        self.set_nodelay(True)

    async def on_message(self, message: str | bytes) -> None:
        assert isinstance(message, bytes)
        await self.coordinator.on_message(self, from_worker.decode(message))

    def on_close(self) -> None:
        if self.coordinator._socket is self:
            self.coordinator._socket = None
        self.coordinator.notifying = asyncio.ensure_future(self.coordinator.notify())


@asynccontextmanager
async def worker_coordinator() -> AsyncIterator[WorkerCoordinator]:
    """A scripted coordinator on a free port of loopback."""
    coordinator = WorkerCoordinator()
    await coordinator.start()
    try:
        yield coordinator
    finally:
        await coordinator.stop()
