"""One attempt: a sandbox, its call, its output and its report."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from gridx.errors import ProtocolError, SandboxError
from gridx.protocol import MAX_PAYLOAD_BYTES, AttemptFinished, AttemptRef, StartAttempt
from gridx.resources import ResourceRequest, Usage
from gridx.states import Cause

from .output_cap import OutputCap, checked_events
from .runtime.frames import Cancel, Events, Exited, Ready, Result, Run
from .sandbox.base import Sandbox, SandboxClosed
from .sandbox.metering import checked_usage
from .sandbox.pool import SandboxPool

_log = logging.getLogger(__name__)

HARD_GRACE_S: Final = 3.0  # after its own time limit the supervisor has this long to say so
CANCEL_GRACE_S: Final = 1.0  # and this long after it was asked to stop


class AttemptListener:
    """What the attempt tells whoever runs it. Called on the event loop, in this order:
    ``started``, ``output`` for each piece, then ``ended``; or ``cannot_run`` alone."""

    def __init__(
        self,
        *,
        started: Callable[[AttemptRef], None],
        output: Callable[[AttemptRef, bytes], None],
        ended: Callable[[AttemptFinished], None],
        cannot_run: Callable[[AttemptRef, str], None],
    ) -> None:
        self.started = started
        self.output = output
        self.ended = ended
        self.cannot_run = cannot_run


class AttemptRun:
    """Runs one StartAttempt. ``run`` is a task; cancelling it kills the sandbox silently."""

    def __init__(self, start: StartAttempt, pool: SandboxPool, listener: AttemptListener) -> None:
        self._start = start
        self._pool = pool
        self._tell = listener
        self._cap = OutputCap(call=start.call)
        self._stream_bytes = 0
        self._result: bytes | None = None
        self._stopping = asyncio.Event()
        self._taking: asyncio.Task[Sandbox] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._sandbox: Sandbox | None = None
        self._limit: asyncio.Timeout | None = None
        self._flow = asyncio.Event()
        self._flow.set()
        self._has_exited = False
        self._held_s = 0.0
        self._began_s = 0.0
        self.ref = AttemptRef(job_id=start.job_id, attempt=start.attempt)

    # ---- what may be asked of it from outside

    def stop(self) -> None:
        """End the call on its user's wish: it is metered and reported as cancelled."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self.release()
        if self._limit is None:
            if self._taking is not None:
                self._taking.cancel()
            return
        soon_s = self._now_s() + CANCEL_GRACE_S
        when_s = self._limit.when()
        self._limit.reschedule(soon_s if when_s is None else min(when_s, soon_s))
        if self._sandbox is not None:
            # The loop below reads on; when this cannot be written it sees the end, too.
            self._asking = asyncio.create_task(self._ask_to_stop(self._sandbox))

    def hold(self) -> None:
        """Read no more output until ``release``."""
        if not self._stopping.is_set():
            self._flow.clear()

    def release(self) -> None:
        """Read on."""
        self._flow.set()

    # ---- the run

    async def run(self) -> None:
        """Take a sandbox, run the call, report. Returns when the report is told."""
        request = self._start.job.limits.request()
        sandbox = self._pool.take_warm(request) or await self._wait_for_sandbox(request)
        if sandbox is None:
            return
        self._sandbox = sandbox
        try:
            await self._run_in(sandbox)
        finally:
            self._pool.discard(sandbox, is_idle=self._has_exited)

    async def _wait_for_sandbox(self, request: ResourceRequest) -> Sandbox | None:
        """Return a sandbox, or None when the attempt is told to have ended without one."""
        self._taking = taking = asyncio.create_task(self._pool.take(request))
        try:
            return await taking
        except SandboxError as error:
            self._tell.cannot_run(self.ref, error.message)
            return None
        except asyncio.CancelledError:
            if taking.done() and not taking.cancelled() and taking.exception() is None:
                self._pool.discard(taking.result())
            task = asyncio.current_task()
            if self._stopping.is_set() and task is not None and not task.cancelling():
                self._finish(Cause.CANCELLED, message="Cancelled before it started.")
                return None
            raise

    async def _run_in(self, sandbox: Sandbox) -> None:
        refusal = self._mismatch(sandbox)
        if refusal:
            self._tell.cannot_run(self.ref, refusal)
            return
        if self._stopping.is_set():
            self._finish(Cause.CANCELLED, message="Cancelled before it started.")
            return
        self._began_s = self._now_s()
        limit_s = self._start.job.limits.timeout_s
        try:
            async with asyncio.timeout(limit_s + HARD_GRACE_S) as self._limit:
                try:
                    await sandbox.send(self._run_frame())
                except SandboxClosed:
                    self._tell.cannot_run(self.ref, "The sandbox ended before it had the job.")
                    return
                self._tell.started(self.ref)
                exited = await self._read_to_exit(sandbox)
        except TimeoutError:
            # The pool closes the stream before it kills: an unread one would hang the engine.
            cause = Cause.CANCELLED if self._stopping.is_set() else Cause.TIMEOUT
            self._finish(cause, usage=self._usage_by_own_clock(), message=self._hard_stop_message())
        except SandboxClosed:
            await self._died(sandbox)
        except SandboxError as error:
            _log.error(
                "a sandbox broke the protocol",
                extra={"action": "attempt", "job_id": self.ref.job_id, "error": str(error)},
            )
            self._finish(Cause.SANDBOX_FAILED, message=error.message)
        except ProtocolError as error:
            self._finish(
                Cause.CRASHED,
                usage=self._usage_by_own_clock(),
                message=f"The job wrote into its own output channel. {error.message}",
            )
        else:
            self._finish(
                Cause.CANCELLED
                if self._stopping.is_set() and not _is_done(exited)
                else exited.cause,
                exit_code=exited.exit_code,
                message=exited.message,
                usage=self._checked(exited.usage),
            )

    async def _read_to_exit(self, sandbox: Sandbox) -> Exited:
        while True:
            if not self._flow.is_set():
                await self._wait_for_flow()
            frame = await sandbox.receive()
            match frame:
                case Events(data=data):
                    checked_events(data, call=self._start.call)
                    self._output(self._cap.accept(data))
                case Result(data=data):
                    if len(data) > MAX_PAYLOAD_BYTES:
                        raise SandboxError("The result is larger than was allowed.")
                    self._result = data
                case Exited():
                    self._has_exited = True
                    return frame
                case Ready():
                    raise SandboxError("The sandbox said Ready twice.")

    async def _wait_for_flow(self) -> None:
        # While nobody reads, the worker's own limit stands still; the supervisor's does not.
        assert self._limit is not None
        began_s, when_s = self._now_s(), self._limit.when()
        self._limit.reschedule(None)
        await self._flow.wait()
        waited_s = self._now_s() - began_s
        self._held_s += waited_s
        if not self._stopping.is_set() and when_s is not None:  # else ``stop`` has set a nearer one
            self._limit.reschedule(when_s + waited_s)

    def _mismatch(self, sandbox: Sandbox) -> str:
        wanted = self._start.cell.python if self._start.cell is not None else ""
        has = ".".join(sandbox.ready.python.split(".")[:2])
        if wanted and wanted != has:
            return f"The cell needs Python {wanted}; this sandbox has {has}."
        return ""

    def _run_frame(self) -> Run:
        start, cell = self._start, self._start.cell
        return Run(
            call=start.call,
            kind="script" if cell is None else "cell",
            code=start.job.code,
            timeout_s=start.job.limits.timeout_s,
            inputs=start.inputs,
            expected=() if cell is None else cell.expected,
            watched=() if cell is None else cell.inputs,
            out=None if cell is None else cell.out,
            max_result_bytes=MAX_PAYLOAD_BYTES,
        )

    async def _ask_to_stop(self, sandbox: Sandbox) -> None:
        try:
            await sandbox.send(Cancel())
        except SandboxClosed:
            pass  # it has ended by itself, and says so

    async def _died(self, sandbox: Sandbox) -> None:
        death = await sandbox.post_mortem()
        if self._stopping.is_set():
            self._finish(Cause.CANCELLED, usage=self._usage_by_own_clock())
        elif death.out_of_memory:
            usage = msgspec.structs.replace(
                self._usage_by_own_clock(),
                out_of_memory=True,
                peak_memory_bytes=sandbox.request.memory_bytes,
            )
            self._finish(Cause.OUT_OF_MEMORY, exit_code=137, usage=usage)
        else:
            _log.error(
                "a sandbox died",
                extra={
                    "action": "attempt",
                    "job_id": self.ref.job_id,
                    "exit_code": death.exit_code,
                    "stderr": death.stderr,
                },
            )
            self._finish(
                Cause.SANDBOX_FAILED, exit_code=death.exit_code, message="The sandbox died."
            )

    # ---- output and report

    def _output(self, data: bytes) -> None:
        if data:
            self._stream_bytes += len(data)
            self._tell.output(self.ref, data)

    def _finish(
        self,
        cause: Cause,
        *,
        usage: Usage | None = None,
        exit_code: int | None = None,
        message: str = "",
    ) -> None:
        self._output(self._cap.finish())
        start = self._start
        usage = msgspec.structs.replace(
            usage or Usage(),
            input_bytes=len(start.job.code.encode()) + len(start.inputs),
            output_bytes=self._stream_bytes,
            dropped_bytes=self._cap.dropped_bytes,
        )
        self._tell.ended(
            AttemptFinished(
                job_id=start.job_id,
                attempt=start.attempt,
                call=start.call,
                cause=cause,
                exit_code=exit_code,
                message=message,
                stream_bytes=self._stream_bytes,
                result=self._result if cause in (Cause.COMPLETED, Cause.ERROR) else None,
                usage=usage,
            )
        )

    def _checked(self, said: Usage) -> Usage:
        return checked_usage(
            said,
            host_wall_s=self._now_s() - self._began_s,
            request=self._start.job.limits.request(),
            held_s=self._held_s,
        )

    def _usage_by_own_clock(self) -> Usage:
        wall_s = self._now_s() - self._began_s - self._held_s
        if not self._stopping.is_set():
            wall_s = min(wall_s, self._start.job.limits.timeout_s)
        return Usage(wall_s=wall_s, source="none")

    def _hard_stop_message(self) -> str:
        if self._stopping.is_set():
            return "Stopped."
        return f"Stopped at its time limit of {self._start.job.limits.timeout_s:g} s."

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()


def _is_done(exited: Exited) -> bool:
    """Whether the call ended by itself although it was being stopped."""
    return exited.cause not in (Cause.CANCELLED, Cause.CRASHED)
