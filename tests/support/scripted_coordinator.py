"""A coordinator that does what a test tells it: the real client protocol over real sockets.

It keeps jobs in memory, moves no credits and has no workers; the test writes the output, ends
the jobs and cuts the connections.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from tornado import web, websocket
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from gridx.credits import Rates
from gridx.errors import AuthError, Conflict, GridXError, NotFound
from gridx.events import Event, encode_event, split_events
from gridx.protocol import (
    CLIENT_MSGPACK,
    MAX_FRAME_BYTES,
    PROTOCOL,
    Cancel,
    ClientHello,
    ClientWelcome,
    JobChanged,
    Message,
    Output,
    Position,
    Refused,
    Submit,
    Unwatch,
    Watch,
    from_client,
    to_client,
)
from gridx.schemas import (
    AccountView,
    GridStatus,
    Health,
    JobList,
    JobView,
    Limits,
    Reason,
    WorkerList,
)

T = TypeVar("T")

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


class ScriptedJob:
    """One job: its state, and the output stream of its newest attempt."""

    def __init__(self, job_id: str, user: str, limits: Limits) -> None:
        self.view = JobView(
            job_id=job_id,
            user_id=user,
            status="queued",
            language="python",
            kind="script",
            limits=limits,
            reserved=6.0,
            cost=0.0,
            attempt=0,
            created_at=NOW,
        )
        self.stream = b""
        self.cost_ucr = 0
        self.result: bytes | None = None
        self.says_end = True

    @property
    def is_over(self) -> bool:
        return self.view.status in ("completed", "failed", "cancelled")

    def changed(self) -> JobChanged:
        end = Position(attempt=self.view.attempt, offset=len(self.stream))
        return JobChanged(
            job=self.view,
            cost_ucr=self.cost_ucr,
            balance_ucr=90_000_000 if self.is_over else None,
            held_ucr=0 if self.is_over else None,
            result=self.result if self.is_over else None,
            end=end if self.is_over and self.says_end else None,
        )


class ScriptedCoordinator:
    """Call its methods from the loop that serves it."""

    def __init__(self) -> None:
        self.port = 0
        self.jobs: dict[str, ScriptedJob] = {}
        self.sockets: list[ClientSocket] = []
        self.received: list[Message] = []
        self.refusals: dict[type[Message], GridXError] = {}  # answered instead
        self.silent_for: set[type[Message]] = set()  # taken, done, but not answered
        self.cut_after: Callable[[Message], bool] = lambda message: False
        self.overlap_bytes = 0  # pieces after Watch begin so much too early, at an event
        self.cancel_ends_job = True
        self.protocol = PROTOCOL
        self.blobs_asked = 0  # how often a client has begun to send what is large
        self.on_submit: Callable[[ScriptedJob], Awaitable[None]] | None = None
        self._server: HTTPServer | None = None
        self._app = web.Application(
            [
                (r"/ws/client", ClientSocket, {"grid": self}),
                (r"/health", Canned, {"body": Health(status="ok", version="0.1.0")}),
                (r"/workers", Canned, {"body": WorkerList(workers=())}),
                (r"/credits/(.*)", CannedAccount),
                (r"/status", Canned, {"body": STATUS}),
                (r"/jobs", JobsHandler, {"grid": self}),
                (r"/blobs/missing", NeverAnswering, {"grid": self}),
            ],
            websocket_max_message_size=MAX_FRAME_BYTES + 65536,
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def listen(self) -> None:
        """Take connections, on the port of before when there was one."""
        sockets = bind_sockets(self.port, "127.0.0.1", family=socket.AF_INET)
        self.port = sockets[0].getsockname()[1]
        self._server = HTTPServer(self._app)
        self._server.add_sockets(sockets)

    async def stop(self) -> None:
        """Be gone, as a killed coordinator is."""
        if self._server is not None:
            self._server.stop()
            self.cut()
            await self._server.close_all_connections()
            self._server = None

    def cut(self) -> None:
        """Cut every connection without a word."""
        for client in self.sockets:
            client.cut()

    def only_job(self) -> ScriptedJob:
        (job,) = self.jobs.values()
        return job

    def start(self, job: ScriptedJob) -> None:
        """Begin the next attempt."""
        job.stream = b""
        self.change(job, status="running", attempt=job.view.attempt + 1, started_at=NOW)

    def emit(self, job: ScriptedJob, *events: Event) -> None:
        """Let the job say something."""
        data = b"".join(map(encode_event, events))
        offset = len(job.stream)
        job.stream += data
        self._tell(
            job, Output(job_id=job.view.job_id, attempt=job.view.attempt, offset=offset, data=data)
        )

    def finish(
        self,
        job: ScriptedJob,
        status: str = "completed",
        *,
        cost_ucr: int = 1_500_000,
        result: bytes | None = None,
        reason: Reason | None = None,
    ) -> None:
        """End the job."""
        job.cost_ucr, job.result = cost_ucr, result
        self.change(job, status=status, cost=cost_ucr / 1e6, finished_at=NOW, reason=reason)

    def change(self, job: ScriptedJob, **fields: object) -> None:
        """Change what is shown of the job, and tell its watchers."""
        job.view = msgspec.structs.replace(job.view, **fields)
        self._tell(job, job.changed())

    def _tell(self, job: ScriptedJob, message: Message) -> None:
        for client in self.sockets:
            if job.view.job_id in client.watched:
                client.say(message)

    # --- what clients say -------------------------------------------------------------------

    async def on_message(self, client: ClientSocket, message: Message) -> None:
        self.received.append(message)
        if (refusal := self.refusals.get(type(message))) is not None:
            job_id = message.job.job_id if isinstance(message, Submit) else None
            client.say(Refused(error=refusal.to_body(), job_id=getattr(message, "job_id", job_id)))
            return
        match message:
            case ClientHello():
                if not message.user:
                    client.say(Refused(error=AuthError("Who are you?").to_body()))
                    return
                client.user = message.user
                client.say(
                    ClientWelcome(
                        user=message.user,
                        protocol=self.protocol,
                        balance_ucr=100_000_000,
                        held_ucr=0,
                        rates=Rates(),
                    )
                )
            case Submit():
                job_id = message.job.job_id
                assert job_id is not None
                is_new = job_id not in self.jobs
                if is_new:
                    self.jobs[job_id] = ScriptedJob(job_id, client.user, message.job.limits)
                self._watch(client, self.jobs[job_id], Position(), message)
                if is_new and self.on_submit is not None:
                    await self.on_submit(self.jobs[job_id])
            case Watch():
                if message.job_id not in self.jobs:
                    error = NotFound(f"There is no job {message.job_id}.")
                    client.say(Refused(error=error.to_body(), job_id=message.job_id))
                    return
                self._watch(client, self.jobs[message.job_id], message.after, message)
            case Unwatch():
                client.watched.discard(message.job_id)
            case Cancel():
                self._cancel(client, self.jobs[message.job_id], message)
        if self.cut_after(message):
            client.cut()

    def _watch(
        self, client: ClientSocket, job: ScriptedJob, after: Position, message: Message
    ) -> None:
        client.watched.add(job.view.job_id)
        if type(message) in self.silent_for:
            return
        if not job.is_over:
            client.say(job.changed())
        begin = after.offset if after.attempt == job.view.attempt else 0
        begin = self._event_border(job, max(0, begin - self.overlap_bytes))
        if begin < len(job.stream):
            client.say(
                Output(
                    job_id=job.view.job_id,
                    attempt=job.view.attempt,
                    offset=begin,
                    data=job.stream[begin:],
                )
            )
        if job.is_over:
            client.say(job.changed())

    @staticmethod
    def _event_border(job: ScriptedJob, offset: int) -> int:
        at = 0
        for piece in split_events(job.stream):
            if at + len(piece) > offset:
                break
            at += len(piece)
        return at

    def _cancel(self, client: ClientSocket, job: ScriptedJob, message: Message) -> None:
        if job.is_over:
            error = Conflict("The job has ended.")
            client.say(Refused(error=error.to_body(), job_id=job.view.job_id))
        elif type(message) not in self.silent_for:
            if self.cancel_ends_job:
                self.finish(
                    job,
                    "cancelled",
                    cost_ucr=250_000,
                    reason=Reason(code="cancelled", message="Cancelled by its user."),
                )
            else:
                client.say(job.changed())


class ClientSocket(websocket.WebSocketHandler):
    """One client's connection."""

    def initialize(self, grid: ScriptedCoordinator) -> None:
        self.grid = grid
        self.user = ""
        self.watched: set[str] = set()

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return CLIENT_MSGPACK if CLIENT_MSGPACK in subprotocols else None

    def open(self, *args: str, **kwargs: str) -> None:
        self.set_nodelay(True)
        self.grid.sockets.append(self)

    async def on_message(self, message: str | bytes) -> None:
        await self.grid.on_message(self, from_client.decode(message))

    def on_close(self) -> None:
        if self in self.grid.sockets:
            self.grid.sockets.remove(self)

    def say(self, message: Message) -> None:
        if self.ws_connection is None or self.ws_connection.is_closing():
            return
        written = self.write_message(to_client.encode(message), binary=True)
        written.add_done_callback(lambda done: done.cancelled() or done.exception())

    def cut(self) -> None:
        self.watched.clear()
        if self.ws_connection is not None:
            self.ws_connection.stream.close()


class Canned(web.RequestHandler):
    """Answers the same to everybody."""

    def initialize(self, body: msgspec.Struct) -> None:
        self.body = body

    def get(self, *args: str) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(self.body))


class CannedAccount(web.RequestHandler):
    """Everybody has 100 credits; nobody is unknown but 'nobody'."""

    def get(self, user: str) -> None:
        self.set_header("Content-Type", "application/json")
        if user == "nobody":
            error = NotFound("There is no account nobody.").to_body()
            self.set_status(404)
            self.finish(msgspec.json.encode({"error": error, "detail": error.message}))
            return
        self.finish(
            msgspec.json.encode(AccountView(user_id=user, balance=100.0, available=94.0, held=6.0))
        )


class JobsHandler(web.RequestHandler):
    """The jobs of one user."""

    def initialize(self, grid: ScriptedCoordinator) -> None:
        self.grid = grid

    def get(self) -> None:
        user = self.get_query_argument("user_id")
        jobs = tuple(j.view for j in self.grid.jobs.values() if j.view.user_id == user)
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(JobList(jobs=jobs)))


class NeverAnswering(web.RequestHandler):
    """Keeps who wants to send blobs waiting."""

    def initialize(self, grid: ScriptedCoordinator) -> None:
        self.grid = grid
        self.left = asyncio.Event()

    async def post(self) -> None:
        self.grid.blobs_asked += 1
        await self.left.wait()

    def on_connection_close(self) -> None:
        self.left.set()


STATUS = GridStatus(
    version="0.1.0",
    protocol=1,
    auth="open",
    workers_online=0,
    cores=0.0,
    jobs_queued=0,
    jobs_running=0,
    rates=Rates(),
    worker_share=0.85,
    uptime_s=1.0,
)


@asynccontextmanager
async def scripted_coordinator() -> AsyncIterator[ScriptedCoordinator]:
    """Serve until the block ends; the socket is bound before it begins."""
    grid = ScriptedCoordinator()
    grid.listen()
    try:
        yield grid
    finally:
        await grid.stop()


class ScriptedGridThread:
    """The same in a thread of its own, for clients that block."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.grid = self.call(self._make())

    @staticmethod
    async def _make() -> ScriptedCoordinator:
        grid = ScriptedCoordinator()
        grid.listen()
        return grid

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run ``coroutine`` in the grid's loop and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def do(self, function: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Call ``function`` in the grid's loop."""

        async def run() -> None:
            function(*args, **kwargs)

        self.call(run())

    def close(self) -> None:
        self.call(self.grid.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
