"""One attempt: a sandbox, its calls, their output and their reports.

A job of one call is the usual case. A session keeps its sandbox, which is its own alone, and
runs one call after another in it until it is closed, runs out of time, or dies.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from gridx.errors import EnvironmentFailed, GridXError, ProtocolError, SandboxError
from gridx.events import split_events
from gridx.protocol import (
    AttemptFinished,
    AttemptRef,
    CallFinished,
    StartAttempt,
    StartCall,
)
from gridx.resources import KIB, MIB, Image, ResourceRequest, Usage, serving_image
from gridx.schemas import BlobRef, CellSpec
from gridx.states import Cause

from .blob_cache import BlobCache
from .gpu_meter import GpuSampler
from .meters import NOWHERE, Mark, OutsideMeters
from .output_cap import HEAD_BYTES, TAIL_BYTES, OutputCap, call_of, checked_events
from .results import Results, ResultSpool
from .runtime.frames import (
    INTERRUPT_GRACE_S,
    CallExited,
    Cancel,
    Events,
    Exited,
    Frame,
    Interrupt,
    Ready,
    Result,
    Run,
)
from .sandbox.base import Sandbox, SandboxClosed
from .sandbox.metering import checked_usage
from .sandbox.pool import SandboxPool

_log = logging.getLogger(__name__)

HARD_GRACE_S: Final = 3.0  # after its own time limit the supervisor has this long to say so
CANCEL_GRACE_S: Final = 1.0  # and this long after it was asked to stop
# What threads of earlier calls may say while a session lives; a call has its own, larger limit.
LATE_HEAD_BYTES: Final = MIB
LATE_TAIL_BYTES: Final = 64 * KIB
_WITH_RESULT: Final = (Cause.COMPLETED, Cause.ERROR, Cause.TIMEOUT)


class AttemptListener:
    """What the attempt tells whoever runs it. Called on the event loop, in this order:
    ``started`` and ``output`` for each piece, ``call_ended`` for each call but the last of a
    session, then ``ended``; or ``cannot_run`` alone. ``preparing`` comes before all of them, for
    each step of what an attempt waits for."""

    def __init__(
        self,
        *,
        started: Callable[[AttemptRef, int], None],
        output: Callable[[AttemptRef, bytes], None],
        call_ended: Callable[[CallFinished], None],
        ended: Callable[[AttemptFinished], None],
        cannot_run: Callable[[AttemptRef, str], None],
        preparing: Callable[[AttemptRef, str], None] = lambda ref, step: None,
    ) -> None:
        self.started = started
        self.output = output
        self.call_ended = call_ended
        self.ended = ended
        self.cannot_run = cannot_run
        self.preparing = preparing


@dataclass(kw_only=True, slots=True, eq=False)
class _Call:
    """One call: what it needs, and what it has said so far."""

    number: int
    code: str
    timeout_s: float
    cell: CellSpec | None
    inputs: bytes
    blobs: tuple[BlobRef, ...]
    cap: OutputCap
    spool: ResultSpool
    files: dict[str, Path] | None = None  # its blobs, once they are here
    result: bytes | None = None
    result_blobs: tuple[BlobRef, ...] = ()
    is_handed_over: bool = False  # its sandbox has it
    is_interrupted: bool = False
    preparing: asyncio.Task[None] | None = None
    began_s: float = 0.0
    held_s: float = 0.0  # of the attempt, when the call began
    frozen_s: float = 0.0  # likewise
    stream_bytes: int = 0  # likewise
    mark: Mark = NOWHERE  # where its meters stood then

    @property
    def input_bytes(self) -> int:
        """Return what the call brought along, in its own message and around it."""
        around = sum(ref.size for ref in self.blobs)
        return len(self.code.encode()) + len(self.inputs) + around


class AttemptRun:
    """Runs one StartAttempt. ``run`` is a task; cancelling it kills the sandbox silently."""

    def __init__(
        self,
        start: StartAttempt,
        pool: SandboxPool,
        listener: AttemptListener,
        *,
        blobs: BlobCache,
        results: Results,
        gpus: GpuSampler | None = None,
    ) -> None:
        limit_s = start.job.limits.timeout_s
        self.ref = AttemptRef(job_id=start.job_id, attempt=start.attempt)
        self._start = start
        self._pool = pool
        self._tell = listener
        self._results = results
        self._loan = blobs.loan(start.user, self.ref)
        self._is_session = start.session is not None
        self._call: _Call | None = _Call(
            number=start.call,
            code=start.job.code,
            timeout_s=limit_s if start.call_timeout_s is None else start.call_timeout_s,
            cell=start.cell,
            inputs=start.inputs,
            blobs=start.blobs,
            cap=OutputCap(call=start.call),
            spool=results.spool(self.ref, start.call),
        )
        self._newest = start.call
        self._next_calls: deque[_Call] = deque()
        self._late = OutputCap(head_bytes=LATE_HEAD_BYTES, tail_bytes=LATE_TAIL_BYTES)
        self._stream_bytes = 0
        self._past_input_bytes = 0  # of the calls that have ended
        self._past_dropped_bytes = 0
        self._ending: Cause | None = None  # why this worker ends it, when it does
        self._has_begun = False
        self._is_timed = False  # ``_limit`` can still be moved
        self._is_killing = False
        self._taking: asyncio.Task[Sandbox] | None = None
        self._work: set[asyncio.Task[None]] = set()
        self._sandbox: Sandbox | None = None
        self._gpus = gpus
        self._meters = OutsideMeters(None, None)
        self._limit: asyncio.Timeout | None = None
        self._deadline_s: float | None = None
        self._time_is_up: asyncio.TimerHandle | None = None  # of a session
        self._flow = asyncio.Event()
        self._flow.set()
        self._has_exited = False
        self._held_s = 0.0
        self._began_s = 0.0
        self._moving = asyncio.Event()  # cleared while the sandbox stands still, or is about to
        self._moving.set()
        self._freezing = asyncio.Lock()  # one freeze or thaw at a time
        self._frozen_at_s: float | None = None
        self._frozen_s = 0.0  # until the last thaw
        self._open_until_s: float | None = None  # of a session

    # ---- what may be asked of it from outside

    @property
    def user(self) -> str:
        """Whose job it is."""
        return self._start.user

    @property
    def running_s(self) -> float:
        """For how long its sandbox has had it, without the time in which it stood still."""
        return self._now_s() - self._began_s - self._stood_s() if self._has_begun else 0.0

    def stop(self) -> None:
        """End it on its user's wish: it is metered and reported as cancelled."""
        self._kill(Cause.CANCELLED)

    def begin_call(self, start: StartCall) -> None:
        """Run this call of a session when those before it have ended."""
        self._next_calls.append(
            _Call(
                number=start.call,
                code=start.code,
                timeout_s=start.timeout_s,
                cell=start.cell,
                inputs=start.inputs,
                blobs=start.blobs,
                cap=OutputCap(call=start.call),
                spool=self._results.spool(self.ref, start.call),
            )
        )
        self._begin_next()

    def interrupt(self, number: int) -> None:
        """Interrupt a call of a session as a kernel is interrupted."""
        for call in (self._call, *self._next_calls):
            if call is None or call.number != number:
                continue
            call.is_interrupted = True
            if call.is_handed_over:
                self._say(Interrupt())
            elif call.preparing is not None:
                call.preparing.cancel()

    def end_session(self) -> None:
        """Close a session: its running call is interrupted, and it is reported as completed."""
        if self._limit is None:
            self.stop()
        elif self._ending is None:
            self._ending = Cause.COMPLETED
            self._next_calls.clear()
            self.release()
            if self._call is None or not self._moving.is_set():
                self._kill(Cause.COMPLETED)
            else:
                self.interrupt(self._call.number)

    def hold(self) -> None:
        """Read no more output until ``release``."""
        if self._ending is None:
            self._flow.clear()

    def release(self) -> None:
        """Read on."""
        self._flow.set()

    async def freeze(self) -> bool:
        """Let the sandbox stand still, with its deadlines and its meter, until ``thaw``.

        Returns:
            Whether it stands still now; what is ending, or has not begun, does not.

        Raises:
            SandboxError: it cannot be frozen, and goes on.
        """
        self._moving.clear()
        async with self._freezing:
            if self._moving.is_set():
                return False  # thawed meanwhile
            if not self._has_begun or self._has_exited or self._is_killing:
                self._go_on()
                return False
            if self._frozen_at_s is None and self._sandbox is not None:
                self._stop_clocks()
                try:
                    await self._sandbox.freeze()
                except SandboxError as error:
                    self._start_clocks()
                    self._go_on()
                    if isinstance(error, SandboxClosed):
                        return False  # it has ended by itself, and says so
                    raise
            return self._frozen_at_s is not None

    async def thaw(self) -> bool:
        """Let it go on.

        Returns:
            Whether it does; it may have been frozen again meanwhile.

        Raises:
            SandboxError: it cannot; it is better killed.
        """
        self._moving.set()
        async with self._freezing:
            if not self._moving.is_set():
                return False
            if self._sandbox is not None and not self._has_exited:
                await _unless_closed(self._sandbox.thaw())
            self._start_clocks()
        self._begin_next()
        return True

    def _go_on(self) -> None:
        self._moving.set()
        self._begin_next()

    def _stop_clocks(self) -> None:
        self._frozen_at_s = self._now_s()
        if self._time_is_up is not None:
            self._time_is_up.cancel()
        self._apply_deadline()

    def _start_clocks(self) -> None:
        if self._frozen_at_s is None:
            return
        stood_s, self._frozen_at_s = self._now_s() - self._frozen_at_s, None
        self._frozen_s += stood_s
        if self._deadline_s is not None:
            self._deadline_s += stood_s
        if self._open_until_s is not None:
            self._open_until_s += stood_s
            self._set_time_is_up()
        self._apply_deadline()

    def _set_time_is_up(self) -> None:
        assert self._open_until_s is not None
        loop = asyncio.get_running_loop()
        self._time_is_up = loop.call_at(self._open_until_s, self._kill, Cause.TIMEOUT)

    def _stood_s(self) -> float:
        """Return for how long the sandbox has stood still until now."""
        at_s = self._frozen_at_s
        return self._frozen_s + (0.0 if at_s is None else self._now_s() - at_s)

    # ---- the run

    async def run(self) -> None:
        """Take a sandbox, run the calls, report. Returns when the report is told."""
        request = self._start.job.limits.request()
        image = self._serving_image()
        if image is None:
            self._tell.cannot_run(self.ref, self._has_no_image())
            self._loan.end()
            return
        needs_nothing = not self._start.blobs and not self._start.job.pip
        sandbox = self._pool.take_warm(request, image) if needs_nothing else None
        try:
            self._sandbox = sandbox = sandbox or await self._wait_for_sandbox(request, image)
            if sandbox is not None:
                await self._run_in(sandbox)
        finally:
            for task in self._work:
                task.cancel()
            self._meters.close()
            if sandbox is not None:
                self._pool.discard(sandbox, is_idle=self._has_exited)
            self._loan.end()

    def _serving_image(self) -> Image | None:
        job, cell = self._start.job, self._start.cell
        return serving_image(
            self._pool.images,
            language=job.language,
            python="" if cell is None else cell.python,
            family=job.image,
        )

    def _has_no_image(self) -> str:
        job, cell = self._start.job, self._start.cell
        wanted = f"named {job.image!r}" if job.image else f"of {job.language}"
        if cell is not None and cell.python:
            wanted += f" with Python {cell.python}"
        has = ", ".join(
            image.family + (f" {image.python}" if image.python else "")
            for image in self._pool.images
        )
        return f"This worker has no image {wanted}; it has {has or 'none'}."

    async def _take_sandbox(self, request: ResourceRequest, image: Image) -> Sandbox:
        """Return a sandbox when packages and the first call's blobs are here: none waits for a
        slow line."""
        call = self._call
        if self._start.job.pip:
            image = await self._pool.environment(
                self._start.job.pip, base=image, say=self._say_step
            )
        if call is not None and call.blobs:
            call.files = await self._loan.take(call.blobs)
        return await self._pool.take(request, image)

    def _say_step(self, step: str) -> None:
        # A build that nobody can stop may speak when its attempt is over.
        if self._sandbox is None and self._taking is not None and not self._taking.done():
            count = len(self._start.job.pip)
            packages = "1 package" if count == 1 else f"{count} packages"
            self._tell.preparing(self.ref, f"Installing {packages}: {step}")

    async def _wait_for_sandbox(self, request: ResourceRequest, image: Image) -> Sandbox | None:
        """Return a sandbox, or None when the attempt is told to have ended without one."""
        self._taking = taking = asyncio.create_task(self._take_sandbox(request, image))
        try:
            return await taking
        except EnvironmentFailed as error:
            self._finish(Cause.ENVIRONMENT, message=error.message)
            return None
        except GridXError as error:
            self._tell.cannot_run(self.ref, error.message)
            return None
        except asyncio.CancelledError:
            if taking.done() and not taking.cancelled() and taking.exception() is None:
                self._pool.discard(taking.result())
            task = asyncio.current_task()
            if self._ending is not None and task is not None and not task.cancelling():
                self._finish(Cause.CANCELLED, message="Cancelled before it started.")
                return None
            raise

    async def _run_in(self, sandbox: Sandbox) -> None:
        if self._is_over_before(sandbox):
            return
        self._began_s = self._now_s()
        try:
            async with asyncio.timeout(None) as self._limit:
                self._is_timed = True
                try:
                    exited = await self._hand_over_and_read(sandbox)
                finally:
                    self._is_timed = False
            if exited is None:
                return
        except TimeoutError:
            # The pool closes the stream before it kills: an unread one would hang the engine.
            cause = Cause.TIMEOUT if self._ending is None else self._ending
            self._finish(cause, usage=self._usage_by_own_clock(), message=self._hard_stop_message())
        except SandboxClosed:
            await self._died(sandbox)
        except SandboxError as error:
            _log.error(
                "a sandbox broke the protocol",
                extra={"action": "attempt", "job_id": self.ref.job_id, "error": str(error)},
            )
            if sandbox.is_open_inside:  # nobody but the job can have said that
                self._finish(
                    Cause.CRASHED,
                    usage=self._usage_by_own_clock(),
                    message=f"The job spoke in its sandbox's name. {error.message}",
                )
            else:
                self._finish(Cause.SANDBOX_FAILED, message=error.message)
        except ProtocolError as error:
            self._finish(
                Cause.CRASHED,
                usage=self._usage_by_own_clock(),
                message=f"The job wrote into its own output channel. {error.message}",
            )
        else:
            ours = None if _is_done(exited) else self._ending
            self._finish(
                ours or exited.cause,
                exit_code=None if ours is Cause.COMPLETED else exited.exit_code,
                message=self._hard_stop_message() if ours else exited.message,
                usage=self._checked(
                    exited.usage, since_s=self._began_s, held_s=self._held_s, frozen_before_s=0.0
                ),
            )
        finally:
            if self._time_is_up is not None:
                self._time_is_up.cancel()

    async def _hand_over_and_read(self, sandbox: Sandbox) -> Exited | None:
        """Return how it ended, or None when it is told that it could not begin."""
        assert self._call is not None
        try:
            await self._hand_over(sandbox, self._call)
        except SandboxClosed:
            self._tell.cannot_run(self.ref, "The sandbox ended before it had the job.")
            return None
        except GridXError as error:
            self._tell.cannot_run(self.ref, error.message)
            return None
        return await self._read_to_exit(sandbox)

    def _is_over_before(self, sandbox: Sandbox) -> bool:
        """Tell of an attempt that ends before it begins; return whether it does."""
        refusal = self._mismatch(sandbox)
        if refusal:
            self._tell.cannot_run(self.ref, refusal)
        elif self._ending is not None:
            self._finish(Cause.CANCELLED, message="Cancelled before it started.")
        return bool(refusal) or self._ending is not None

    async def _read_to_exit(self, sandbox: Sandbox) -> Exited:
        while True:
            if not self._flow.is_set():
                await self._wait_for_flow()
            frame = await sandbox.receive()
            match frame:
                case Events(data=data):
                    self._take_events(data)
                case Result(data=data):
                    await self._take_result(data)
                case CallExited():
                    if self._call is not None:
                        usage = self._meters.of_call(frame.usage, self._call.mark)
                        frame = msgspec.structs.replace(frame, usage=usage)
                    await self._close_result()
                    self._call_over(frame)
                case Exited():
                    self._has_exited = True
                    # Before the result is written: what is read is what the call has used.
                    usage = self._meters.of_all(frame.usage)
                    await self._close_result()
                    return msgspec.structs.replace(frame, usage=usage)
                case Ready():
                    raise SandboxError("The sandbox said Ready twice.")

    async def _wait_for_flow(self) -> None:
        # While nobody reads, the worker's own limit stands still; the supervisor's does not.
        began_s, stood_s = self._now_s(), self._stood_s()
        self._apply_deadline()
        await self._flow.wait()
        # What stood still meanwhile has its own account.
        waited_s = max(0.0, self._now_s() - began_s - (self._stood_s() - stood_s))
        self._held_s += waited_s
        if self._ending is None and self._deadline_s is not None:  # else a nearer one was set
            self._deadline_s += waited_s
        self._apply_deadline()

    # ---- calls

    async def _prepare(self, sandbox: Sandbox, call: _Call) -> None:
        """Make ready what the call needs beside its message, before its sandbox has it.

        Raises:
            GridXError: a blob cannot be had, or the disk is full.
        """
        if call.files is None:
            call.files = await self._loan.take(call.blobs)
        await sandbox.put_inputs(call.files)

    async def _hand_over(self, sandbox: Sandbox, call: _Call) -> None:
        """Give the call to its sandbox.

        Raises:
            SandboxClosed: it has ended.
            GridXError: it is the first, and what it needs cannot be had.
        """
        if call.blobs:
            call.preparing = asyncio.create_task(self._prepare(sandbox, call))
            try:
                await call.preparing
            except GridXError as error:
                if not self._has_begun:
                    raise
                self._end_call(call, Cause.SANDBOX_FAILED, message=error.message)
                return
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not call.is_interrupted or task is None or task.cancelling():
                    raise
        if self._has_begun:  # in a session: while it stands still no call begins
            await self._moving.wait()
            call.is_interrupted |= self._is_killing
        if call.is_interrupted:
            if self._is_session:
                self._end_call(call, Cause.CANCELLED, message="Interrupted before it began.")
            return  # else it is being stopped, and the sandbox says so
        if not self._has_begun:
            held = self._pool.gpus_of(sandbox) if sandbox.request.gpus else ()
            watch = self._gpus.watch(held) if self._gpus is not None and held else None
            self._meters = OutsideMeters(sandbox.meter, watch)
        call.is_handed_over = True
        call.mark = self._meters.begin_call()
        call.began_s, call.held_s = self._now_s(), self._held_s
        call.frozen_s = self._stood_s()
        call.stream_bytes = self._stream_bytes
        if self._is_session:
            call.cap = self._share_of_output(call.number)
        self._newest = call.number
        if not self._has_begun:
            self._has_begun = True
            self._began_s = call.began_s
            if self._is_session:  # of a single call the supervisor keeps the time
                self._open_until_s = self._began_s + self._start.job.limits.timeout_s
                self._set_time_is_up()
            self._set_deadline()
            await sandbox.send(self._run_frame(sandbox, call))
            self._tell.started(self.ref, call.number)
        else:  # its output may be read while it is still being written
            self._set_deadline()
            self._tell.started(self.ref, call.number)
            await sandbox.send(self._run_frame(sandbox, call))

    def _share_of_output(self, number: int) -> OutputCap:
        """Return the cap of a call of a session: half of what the attempt has left, so that no
        call is silent because another was loud, and the attempt keeps the limit of any other."""
        left_bytes = max(0, HEAD_BYTES - self._stream_bytes)
        tail_bytes = min(TAIL_BYTES, left_bytes // 8)
        return OutputCap(call=number, head_bytes=left_bytes // 2, tail_bytes=tail_bytes)

    def _begin_next(self) -> None:
        """Hand over the next call of a session, when none runs and one waits."""
        sandbox = self._sandbox
        if not self._moving.is_set():
            return  # it stands still: ``thaw`` comes here again
        if self._call is None and self._next_calls and self._ending is None and sandbox is not None:
            self._call = self._next_calls.popleft()
            self._run_aside(self._hand_over(sandbox, self._call))

    def _call_over(self, exited: CallExited) -> None:
        call = self._call
        if not self._is_session or call is None or call.number != exited.call:
            raise SandboxError("The sandbox reported the end of a call that it did not have.")
        self._end_call(
            call,
            exited.cause,
            exit_code=exited.exit_code,
            message=exited.message,
            usage=self._checked(
                exited.usage,
                since_s=call.began_s,
                held_s=self._held_s - call.held_s,
                frozen_before_s=call.frozen_s,
            ),
            came_to_an_end=True,
        )

    def _end_call(
        self,
        call: _Call,
        cause: Cause,
        *,
        exit_code: int | None = None,
        message: str = "",
        usage: Usage | None = None,
        came_to_an_end: bool = False,
    ) -> None:
        """Report a call of a session, which goes on, or is closed now.

        What it bound before an interrupt that it obeyed comes home, as in a kernel.
        """
        self._output(call.cap.finish())
        has_result = came_to_an_end or self._has_result(call, cause)
        self._call = None
        self._past_input_bytes += call.input_bytes
        self._past_dropped_bytes += call.cap.dropped_bytes
        self._tell.call_ended(
            CallFinished(
                job_id=self.ref.job_id,
                attempt=self.ref.attempt,
                call=call.number,
                cause=cause,
                exit_code=exit_code,
                message=message,
                stream_bytes=self._stream_bytes,
                result=call.result if has_result else None,
                result_blobs=call.result_blobs if has_result else (),
                usage=msgspec.structs.replace(
                    usage or Usage(),
                    input_bytes=call.input_bytes,
                    output_bytes=self._stream_bytes - call.stream_bytes,
                    dropped_bytes=call.cap.dropped_bytes,
                ),
            )
        )
        if self._ending is None:
            self._set_deadline()
            self._begin_next()
        else:
            self._kill(self._ending)

    def _kill(self, cause: Cause) -> None:
        """Have the sandbox ended, for this cause, and its last word read."""
        if self._is_killing:
            return
        self._is_killing = True
        self._ending = cause
        self.release()
        if self._limit is None:
            if self._taking is not None:
                self._taking.cancel()
            return
        self._start_clocks()  # of what stands still; it goes on in a moment, to hear this
        soon_s = self._now_s() + CANCEL_GRACE_S
        self._deadline_s = soon_s if self._deadline_s is None else min(self._deadline_s, soon_s)
        self._apply_deadline()
        if self._call is not None and self._call.preparing is not None:
            self._call.is_interrupted = True
            self._call.preparing.cancel()
        # The loop above reads on; when this cannot be written it sees the end, too.
        self._say(Cancel())
        if not self._moving.is_set():  # nothing that stands still can be ended in order
            self._run_aside(self._thaw_or_kill())

    async def _thaw_or_kill(self) -> None:
        try:
            await self.thaw()
        except SandboxError:
            if self._sandbox is not None:
                await self._sandbox.kill()

    def _say(self, frame: Frame) -> None:
        if self._sandbox is not None:
            self._run_aside(self._sandbox.send(frame))

    def _run_aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(_unless_closed(work))
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def _set_deadline(self) -> None:
        """Set when this worker loses patience: the supervisor keeps the same limits, sooner."""
        end_s = self._began_s + self._start.job.limits.timeout_s + self._frozen_s
        call = self._call
        if self._is_session and call is not None and call.is_handed_over:
            stood_s = self._frozen_s - call.frozen_s
            end_s = min(end_s, call.began_s + call.timeout_s + INTERRUPT_GRACE_S + stood_s)
        self._deadline_s = end_s + HARD_GRACE_S
        self._apply_deadline()

    def _apply_deadline(self) -> None:
        if self._limit is not None and self._is_timed and not self._limit.expired():
            is_running = self._flow.is_set() and self._frozen_at_s is None
            self._limit.reschedule(self._deadline_s if is_running else None)

    def _mismatch(self, sandbox: Sandbox) -> str:
        wanted = self._start.cell.python if self._start.cell is not None else ""
        has = ".".join(sandbox.ready.python.split(".")[:2])
        if wanted and wanted != has:
            return f"The cell needs Python {wanted}; this sandbox has {has}."
        return ""

    def _run_frame(self, sandbox: Sandbox, call: _Call) -> Run:
        cell = call.cell
        return Run(
            call=call.number,
            kind="script" if cell is None else "cell",
            language=self._start.job.language,
            code=call.code,
            timeout_s=call.timeout_s,
            inputs=call.inputs,
            expected=() if cell is None else cell.expected,
            watched=() if cell is None else cell.inputs,
            out=None if cell is None else cell.out,
            max_result_bytes=self._results.limit_bytes,
            keep=self._is_session,
            inputs_dir=sandbox.inputs_dir,
            files=() if cell is None else cell.files,
            fetch=() if cell is None else cell.fetch,
            prelude="" if cell is None else cell.prelude,
        )

    async def _died(self, sandbox: Sandbox) -> None:
        death = await sandbox.post_mortem()
        if self._ending is not None:
            self._finish(self._ending, usage=self._usage_by_own_clock())
        elif death.out_of_memory:
            usage = msgspec.structs.replace(
                self._usage_by_own_clock(),
                out_of_memory=True,
                peak_memory_bytes=sandbox.request.memory_bytes,
            )
            self._finish(Cause.OUT_OF_MEMORY, exit_code=137, usage=usage)
        elif death.from_inside:
            self._finish(
                Cause.CRASHED,
                exit_code=death.exit_code,
                usage=self._usage_by_own_clock(),
                message="The job ended its own sandbox.",
            )
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

    def _take_events(self, data: bytes) -> None:
        first = self._start.call if self._is_session else self._newest
        is_all_new = checked_events(data, call=self._newest, first=first)
        call = self._call if self._call is not None and self._call.is_handed_over else None
        if is_all_new and call is not None:
            self._output(call.cap.accept(data))
            return
        for event in split_events(data):  # threads of calls that have ended say something, too
            is_late = call is None or call_of(event) != call.number
            cap = self._late if is_late or call is None else call.cap
            self._output(cap.accept(bytes(event)))

    async def _take_result(self, data: bytes) -> None:
        if self._call is None or not self._call.is_handed_over:
            raise SandboxError("The sandbox sent a result of no call.")
        await self._call.spool.add(data)

    async def _close_result(self) -> None:
        if self._call is not None:
            self._call.result, self._call.result_blobs = await self._call.spool.finish()

    def _has_result(self, call: _Call, cause: Cause) -> bool:
        """Return whether the call's result is reported; else it is dropped."""
        # A call that obeyed an interrupt keeps what it had bound by then.
        allows = cause in _WITH_RESULT or (self._is_session and cause is Cause.CANCELLED)
        if allows and (call.result is not None or call.result_blobs):
            return True
        self._results.drop(self.ref, call.number)
        return False

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
        """Report the attempt; the cause is that of the call, too, when one was running."""
        if self._is_session and self._call is not None and cause is Cause.COMPLETED:
            # It was closed, and its call had to be killed for that.
            self._is_killing = True  # there is nothing left to be killed
            self._end_call(self._call, Cause.CANCELLED, message="Its session was closed.")
        call = self._call
        input_bytes, dropped_bytes = self._past_input_bytes, self._past_dropped_bytes
        if call is not None:
            self._output(call.cap.finish())
            input_bytes += call.input_bytes
            dropped_bytes += call.cap.dropped_bytes
        self._output(self._late.finish())
        has_result = call is not None and self._has_result(call, cause)
        self._tell.ended(
            AttemptFinished(
                job_id=self.ref.job_id,
                attempt=self.ref.attempt,
                call=self._newest if call is None else call.number,
                cause=cause,
                exit_code=exit_code,
                message=message,
                stream_bytes=self._stream_bytes,
                result=call.result if call is not None and has_result else None,
                result_blobs=call.result_blobs if call is not None and has_result else (),
                usage=msgspec.structs.replace(
                    usage or Usage(),
                    input_bytes=input_bytes,
                    output_bytes=self._stream_bytes,
                    dropped_bytes=dropped_bytes + self._late.dropped_bytes,
                ),
            )
        )

    def _checked(
        self, said: Usage, *, since_s: float, held_s: float, frozen_before_s: float
    ) -> Usage:
        frozen_s = self._stood_s() - frozen_before_s
        usage = checked_usage(
            said,
            host_wall_s=max(0.0, self._now_s() - since_s - frozen_s),
            request=self._start.job.limits.request(),
            held_s=held_s,
        )
        return msgspec.structs.replace(usage, frozen_s=frozen_s)

    def _usage_by_own_clock(self) -> Usage:
        frozen_s = self._stood_s()
        wall_s = max(0.0, self._now_s() - self._began_s - self._held_s - frozen_s)
        if self._ending is None:
            wall_s = min(wall_s, self._start.job.limits.timeout_s)
        said = Usage(wall_s=wall_s, frozen_s=frozen_s, source="none")
        usage = checked_usage(
            self._meters.of_all(said),
            host_wall_s=wall_s,
            request=self._start.job.limits.request(),
        )
        return msgspec.structs.replace(usage, frozen_s=frozen_s)

    def _hard_stop_message(self) -> str:
        limit_s = self._start.job.limits.timeout_s
        match self._ending:
            case Cause.CANCELLED:
                return "Cancelled."
            case Cause.COMPLETED:
                return ""
            case Cause.TIMEOUT:
                return f"The session was open for its limit of {limit_s:g} s."
            case _:
                return f"Stopped at its time limit of {limit_s:g} s."

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()


def _is_done(exited: Exited) -> bool:
    """Whether the call ended by itself although it was being stopped."""
    return exited.cause not in (Cause.CANCELLED, Cause.CRASHED)


async def _unless_closed(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except SandboxClosed:
        pass  # it has ended by itself, and says so
