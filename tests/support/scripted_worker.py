"""Workers that do what a test tells them: the real protocol over a real socket, no sandbox.

Each named double fails in the way that its name says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, websocket_connect

from gridx.events import Stream, encode_event
from gridx.ids import new_worker_id
from gridx.protocol import (
    MAX_FRAME_BYTES,
    OLDEST_PROTOCOL,
    PROTOCOL,
    AttemptFinished,
    AttemptFrozen,
    AttemptRef,
    AttemptStarted,
    CallFinished,
    CapabilityChanged,
    EndAttempt,
    FromWorker,
    HandBack,
    Heartbeat,
    Hello,
    InterruptCall,
    Output,
    OutputAck,
    OutputResend,
    Preparing,
    Refused,
    Settled,
    StartAttempt,
    StartCall,
    StopAttempt,
    ToWorker,
    Welcome,
    from_worker,
    to_worker,
)
from gridx.resources import GIB, Capability, Image, Load, Pause, PauseReason, Usage
from gridx.schemas import BlobRef
from gridx.states import Cause

from .inbox import first, found

M = TypeVar("M")
PATIENCE_S = 20.0

PYTHON_IMAGE = Image(name="gridx/python:3.11", digest="sha256:0", language="python", python="3.11")


def offer(
    *,
    cores: float = 4,
    memory_bytes: int = 8 * GIB,
    slots: int = 4,
    sandbox: str = "docker",
    **more: Any,
) -> Capability:
    """Return what a test's worker offers; ``more`` are other fields of Capability."""
    fields: dict[str, Any] = {"images": (PYTHON_IMAGE,), **more}
    return Capability(
        cores=cores,
        memory_bytes=memory_bytes,
        slots=slots,
        sandbox=sandbox,
        **fields,
    )


def text_events(*texts: str, name: str = "stdout", call: int = 0) -> bytes:
    """Return a piece of output: one event for each text."""
    return b"".join(
        encode_event(Stream(name=name, text=text, call=call))  # type: ignore[arg-type]
        for text in texts
    )


class ScriptedWorker:
    """One worker. By itself it beats, and prints the code of each job back as its output."""

    def __init__(
        self,
        ws_url: str,
        *,
        user: str = "lender",
        name: str = "scripted",
        worker_id: str | None = None,
        capability: Capability | None = None,
        password: str | None = None,
        token: str | None = None,
        beats: bool = True,
        obeys: bool = True,
    ) -> None:
        self.ws_url, self.user, self.name = ws_url, user, name
        self.worker_id = worker_id or new_worker_id()
        self.capability = capability or offer()
        self.password, self.token = password, token
        self.beats, self.obeys = beats, obeys
        self.received: list[ToWorker] = []
        self.running: dict[str, int] = {}
        self.welcome: Welcome | None = None
        self.close_code: int | None = None
        self._connection: WebSocketClientConnection | None = None
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- connecting --------------------------------------------------------------------------

    async def connect(self, *, running: Sequence[AttemptRef] = (), **hello: Any) -> ToWorker:
        """Connect and say hello; return the answer (Welcome or Refused)."""
        self._connection = await websocket_connect(
            self.ws_url, max_message_size=MAX_FRAME_BYTES, ping_interval=0
        )
        assert self._connection.protocol is not None
        self._connection.protocol.set_nodelay(True)  # else each answer waits 40 ms for an ack
        fields: dict[str, Any] = {
            "protocol_min": OLDEST_PROTOCOL,
            "protocol_max": PROTOCOL,
            "worker_id": self.worker_id,
            "name": self.name,
            "user": self.user,
            "password": self.password,
            "token": self.token,
            "capability": self.capability,
            "running": tuple(running),
        }
        self._spawn(self._read(self._connection))
        self.send(Hello(**{**fields, **hello}))
        answer = await self.expect((Welcome, Refused))
        if isinstance(answer, Welcome):
            self.welcome = answer
            self.running = {one.job_id: one.attempt for one in answer.adopted}
            if self.beats:
                self._spawn(self._beat(answer.heartbeat_s))
        return answer

    async def __aenter__(self) -> Self:
        answer = await self.connect()
        assert isinstance(answer, Welcome), answer
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.leave()

    async def leave(self) -> None:
        """Close the connection in good order and end everything."""
        if self._connection is not None:
            self._connection.close()
        await self._end_tasks()

    def vanish(self) -> None:
        """Cut the connection without a word, as a machine does that loses its power."""
        assert self._connection is not None
        protocol = self._connection.protocol
        if protocol is not None:
            protocol.stream.close()  # type: ignore[attr-defined]

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- talking -----------------------------------------------------------------------------

    def send(self, message: FromWorker) -> None:
        """Send one message; into a connection that is gone it vanishes."""
        self.send_raw(from_worker.encode(message))

    def send_raw(self, data: bytes | str) -> None:
        """Send one frame as it is."""
        assert self._connection is not None
        try:
            future = self._connection.write_message(data, binary=isinstance(data, bytes))
        except WebSocketClosedError:
            return
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _read(self, connection: WebSocketClientConnection) -> None:
        while (data := await connection.read_message()) is not None:
            assert isinstance(data, bytes)
            message = to_worker.decode(data)
            async with self._changed:
                self.received.append(message)
                self._changed.notify_all()
            if self.obeys:
                self._obey(message)
        async with self._changed:
            self.close_code = connection.close_code or 1006
            self._changed.notify_all()

    async def _beat(self, every_s: float) -> None:
        while True:
            running = tuple(AttemptRef(job_id=j, attempt=n) for j, n in self.running.items())
            self.send(Heartbeat(running=running, load=Load(warm_sandboxes=2)))
            await asyncio.sleep(every_s)

    def _obey(self, message: ToWorker) -> None:
        match message:
            case StartAttempt():
                self.running[message.job_id] = message.attempt
                self._spawn(self.run(message))
            case StopAttempt():
                if message.fenced:
                    self.running.pop(message.job_id, None)
                else:
                    self.finish(message, cause=Cause.CANCELLED, exit_code=None)
            case Settled():
                self.running.pop(message.job_id, None)
            case _:
                pass

    async def expect(
        self, kind: type[M] | tuple[type[M], ...], *, after: int = 0, **fields: Any
    ) -> M:
        """Return the first message of this kind (with these values) since index ``after``."""
        return await found(
            self._changed, lambda: first(self.received[after:], kind, fields), PATIENCE_S
        )

    async def closed(self) -> int:
        """Wait until the coordinator has closed the connection; return the code."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: self.close_code is not None)
            assert self.close_code is not None
            return self.close_code

    # --- doing the job -----------------------------------------------------------------------

    async def run(self, start: StartAttempt) -> None:
        """Print the code back and complete; doubles do something else."""
        self.started(start)
        piece = text_events(start.job.code + "\n")
        self.output(start, 0, piece)
        self.finish(start, stream_bytes=len(piece))

    def started(self, ref: Any, call: int = 0) -> None:
        self.send(AttemptStarted(job_id=ref.job_id, attempt=ref.attempt, call=call))

    def output(self, ref: Any, offset: int, data: bytes, call: int = 0) -> None:
        self.send(
            Output(job_id=ref.job_id, attempt=ref.attempt, offset=offset, data=data, call=call)
        )

    def prepare(self, ref: Any, message: str) -> None:
        """Say what an attempt waits for that has not started."""
        self.send(Preparing(job_id=ref.job_id, attempt=ref.attempt, message=message))

    def freeze(self, ref: Any, *, is_frozen: bool = True, message: str = "") -> None:
        """Say that an attempt stands still, since its owner uses the machine; or goes on."""
        self.send(
            AttemptFrozen(
                job_id=ref.job_id,
                attempt=ref.attempt,
                frozen=is_frozen,
                reason=PauseReason.ACTIVE,
                message=message,
            )
        )

    def announce(self, capability: Capability) -> None:
        """Say what it offers from now on."""
        self.capability = capability
        self.send(CapabilityChanged(capability=capability))

    def hand_back(self, ref: Any, message: str = "") -> None:
        """Give an attempt back."""
        self.running.pop(ref.job_id, None)
        self.send(HandBack(job_id=ref.job_id, attempt=ref.attempt, message=message))

    def finish_call(
        self,
        ref: Any,
        call: int,
        *,
        cause: Cause = Cause.COMPLETED,
        stream_bytes: int = 0,
        result: bytes | None = None,
        result_blobs: tuple[BlobRef, ...] = (),
        message: str = "",
        wall_s: float = 3600.0,
    ) -> None:
        self.send(
            CallFinished(
                job_id=ref.job_id,
                attempt=ref.attempt,
                call=call,
                cause=cause,
                message=message,
                stream_bytes=stream_bytes,
                result=result,
                result_blobs=result_blobs,
                usage=Usage(wall_s=wall_s),
            )
        )

    def finish(
        self,
        ref: Any,
        *,
        cause: Cause = Cause.COMPLETED,
        exit_code: int | None = 0,
        stream_bytes: int = 0,
        result: bytes | None = None,
        result_blobs: tuple[BlobRef, ...] = (),
        message: str = "",
        wall_s: float = 3600.0,
        call: int = 0,
        usage: Usage | None = None,
    ) -> None:
        self.send(
            AttemptFinished(
                job_id=ref.job_id,
                attempt=ref.attempt,
                call=call,
                cause=cause,
                exit_code=exit_code,
                message=message,
                stream_bytes=stream_bytes,
                result=result,
                result_blobs=result_blobs,
                usage=usage or Usage(wall_s=wall_s),
            )
        )


class WorkerByHand(ScriptedWorker):
    """Does nothing by itself but beat: the test sends each message."""

    async def run(self, start: StartAttempt) -> None:
        """Leave it to the test."""


class WorkerWithSessions(ScriptedWorker):
    """Keeps sessions: each call prints its code, and its result is what it has run so far.

    The code ``wait`` goes on until it is interrupted.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ran: dict[str, list[str]] = {}
        self.streams: dict[str, bytes] = {}

    async def run(self, start: StartAttempt) -> None:
        assert start.session is not None
        self.ran[start.job_id], self.streams[start.job_id] = [], b""
        self._run_call(start, 0, start.job.code)

    def _run_call(self, ref: Any, call: int, code: str) -> None:
        self.started(ref, call)
        self.ran[ref.job_id].append(code)
        self._print(ref, call, f"{code}\n")
        if code != "wait":
            self.end_call(ref, call)

    def _print(self, ref: Any, call: int, text: str) -> None:
        piece = text_events(text, call=call)
        self.output(ref, len(self.streams[ref.job_id]), piece, call)
        self.streams[ref.job_id] += piece

    def end_call(self, ref: Any, call: int, cause: Cause = Cause.COMPLETED) -> None:
        """End a call, with all that the session has run as its result."""
        self.finish_call(
            ref,
            call,
            cause=cause,
            stream_bytes=len(self.streams[ref.job_id]),
            result=";".join(self.ran[ref.job_id]).encode(),
        )

    def end_session(self, ref: Any, cause: Cause = Cause.COMPLETED) -> None:
        """Report the end of a session."""
        self.finish(
            ref,
            cause=cause,
            stream_bytes=len(self.streams[ref.job_id]),
            call=len(self.ran[ref.job_id]) - 1,
        )

    def _obey(self, message: ToWorker) -> None:
        match message:
            case StartCall():
                if message.call == len(self.ran[message.job_id]):
                    self._run_call(message, message.call, message.code)
            case InterruptCall():
                self._print(message, message.call, "KeyboardInterrupt\n")
                self.end_call(message, message.call, Cause.ERROR)
            case EndAttempt():
                self.end_session(message)
            case OutputResend():
                stream = self.streams[message.job_id]
                self.output(message, message.offset, stream[message.offset :])
            case StopAttempt() if not message.fenced:
                self.end_session(message, Cause.CANCELLED)
            case _:
                super()._obey(message)


class WorkerThatVanishes(ScriptedWorker):
    """Starts its job, prints a line, then loses its connection and never comes back."""

    async def run(self, start: StartAttempt) -> None:
        self.started(start)
        self.output(start, 0, text_events("before the end\n"))
        # The acknowledgement shows that the coordinator has it; only then the power fails.
        await self.expect(OutputAck, job_id=start.job_id)
        self.vanish()


class WorkerThatNeverStarts(ScriptedWorker):
    """Takes jobs and says nothing of them, not even in its heartbeats."""

    async def run(self, start: StartAttempt) -> None:
        self.running.pop(start.job_id, None)


class WorkerThatHandsBack(ScriptedWorker):
    """Hands every job back."""

    async def run(self, start: StartAttempt) -> None:
        self.hand_back(start, "going home")


class WorkerThatPauses(ScriptedWorker):
    """Pauses as soon as it is given a job, and hands it back; it takes the next when resumed."""

    PAUSE = Pause(reason=PauseReason.ACTIVE, message="The owner is using the machine.")

    async def run(self, start: StartAttempt) -> None:
        self.announce(offer(slots=0, pause=self.PAUSE))
        self.hand_back(start, "Paused by its lender: the owner is using the machine.")


class WorkerThatFails(ScriptedWorker):
    """Cannot run anything: the infrastructure's fault."""

    async def run(self, start: StartAttempt) -> None:
        self.finish(start, cause=Cause.SANDBOX_FAILED, exit_code=None, message="no space left")


class WorkerThatResends(ScriptedWorker):
    """Sends pieces out of order, twice and cut, and answers OutputResend as a worker must."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.streams: dict[str, tuple[StartAttempt, bytes]] = {}

    async def run(self, start: StartAttempt) -> None:
        texts = [f"line {number}\n" for number in range(20)]
        pieces = [text_events(text) for text in texts]
        whole = b"".join(pieces)
        self.streams[start.job_id] = (start, whole)
        self.started(start)
        begin = [sum(map(len, pieces[:number])) for number in range(len(pieces))]
        self.output(start, begin[0], pieces[0])
        self.output(start, begin[0], pieces[0])  # doubled
        self.output(start, begin[5], pieces[5])  # a gap
        await self.expect(OutputResend, job_id=start.job_id)
        self.output(start, 0, b"".join(pieces[:3]))  # overlaps what is known
        self.output(start, begin[2], b"".join(pieces[2:10]))
        self.finish(start, stream_bytes=len(whole))  # too early: half of it is missing

    def _obey(self, message: ToWorker) -> None:
        super()._obey(message)
        asked = sum(isinstance(one, OutputResend) for one in self.received)
        if isinstance(message, OutputResend) and asked > 1:
            start, whole = self.streams[message.job_id]
            self.output(start, message.offset, whole[message.offset :])
            self.finish(start, stream_bytes=len(whole))


@asynccontextmanager
async def workers(*many: ScriptedWorker) -> AsyncIterator[None]:
    """Connect all of them; let all of them go at the end."""
    try:
        for worker in many:
            answer = await worker.connect()
            assert isinstance(answer, Welcome), answer
        yield
    finally:
        for worker in many:
            await worker.leave()


class WorkerWithSpool(ScriptedWorker):
    """Behaves as a worker must: keeps what is not acknowledged, and goes on after a reconnect.

    Its output is a function of the job alone (``text_of``), so a test can compare every byte.
    """

    def __init__(self, *args: Any, pieces: int = 8, **options: Any) -> None:
        super().__init__(*args, **options)
        self.pieces = pieces
        self.starts: dict[str, StartAttempt] = {}
        self.sent: dict[str, int] = {}
        self._playing: dict[str, asyncio.Task[Any]] = {}

    @staticmethod
    def text_of(code: str, pieces: int = 8) -> list[bytes]:
        """Return the pieces of output of a job."""
        return [text_events(f"{code}: {number}\n" * (number + 1)) for number in range(pieces)]

    async def reconnect(self) -> None:
        """Lose the connection and come back with everything that is still held."""
        self.vanish()
        await self.leave()
        self._playing.clear()
        self.received.clear()
        self.close_code = None
        held = tuple(
            AttemptRef(job_id=job_id, attempt=start.attempt)
            for job_id, start in self.starts.items()
        )
        answer = await self.connect(running=held)
        assert isinstance(answer, Welcome), answer
        adopted = {one.job_id: one.offset for one in answer.adopted}
        for job_id, start in list(self.starts.items()):
            if job_id in adopted and self.running.get(job_id) == start.attempt:
                self._play(start, adopted[job_id])
            else:
                del self.starts[job_id]

    def _play(self, start: StartAttempt, offset: int) -> None:
        before = self._playing.pop(start.job_id, None)
        if before is not None:
            before.cancel()
        task = asyncio.get_running_loop().create_task(self._play_from(start, offset))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._playing[start.job_id] = task

    async def run(self, start: StartAttempt) -> None:
        self.starts[start.job_id] = start
        self.started(start)
        self._play(start, 0)

    async def _play_from(self, start: StartAttempt, offset: int) -> None:
        begin, whole = 0, self.text_of(start.job.code, self.pieces)
        for piece in whole:
            if begin + len(piece) > offset:
                known = max(0, offset - begin)
                self.output(start, begin + known, piece[known:])
                await asyncio.sleep(0.005)  # the pace of the job, not a wait for anything
            begin += len(piece)
        self.finish(start, stream_bytes=begin, result=start.job.code.encode())

    def _obey(self, message: ToWorker) -> None:
        match message:
            case Settled() | StopAttempt():
                start = self.starts.get(message.job_id)
                if start is not None and start.attempt == message.attempt:
                    playing = self._playing.pop(message.job_id, None)
                    if playing is not None:
                        playing.cancel()
                    if isinstance(message, Settled) or message.fenced:
                        del self.starts[message.job_id]
                        self.running.pop(message.job_id, None)
                    else:
                        end = sum(map(len, self.text_of(start.job.code, self.pieces)))
                        self._spawn(self._stop(start, end))
            case OutputResend():
                start = self.starts.get(message.job_id)
                if start is not None and start.attempt == message.attempt:
                    self._play(start, message.offset)
            case _:
                super()._obey(message)

    async def _stop(self, start: StartAttempt, end: int) -> None:
        """Report the cancel with the output that was sent so far: none of it, to be simple."""
        whole = b"".join(self.text_of(start.job.code, self.pieces))
        self.output(start, 0, whole)
        self.finish(start, cause=Cause.CANCELLED, exit_code=None, stream_bytes=end)
