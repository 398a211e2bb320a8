"""PID 1 of a sandbox: speaks with the worker, and watches the one process that runs the job.

    python3 -I -S supervisor.py                      in the container, as PID 1
    python  -I supervisor.py --process [--namespace user ...] [--limit as=1073741824 ...]
                                                     without a container

It imports and runs nothing of the user's. The job's process is forked and warmed before the
worker hears ``Ready``; what it writes afterwards is bytes from a stranger. A job
ends when it says so in a whole record or when that process ends, never with the end of a pipe:
a stray may hold one open, and a job may close its own and spin. A session is the same process,
which says so for each call and then waits for the next.
"""

from __future__ import annotations

import os
import sys

if not __package__:  # started as a file, so that the image needs nothing but files

    def _as_part_of_its_package() -> None:
        folder = os.path.dirname(os.path.abspath(__file__))
        names = ["supervisor"]
        while os.path.exists(os.path.join(folder, "__init__.py")):
            names.insert(0, os.path.basename(folder))
            folder = os.path.dirname(folder)
        sys.path.insert(0, folder)
        site = os.path.join(os.path.dirname(folder), "site")
        if sys.flags.no_site and os.path.isdir(site):
            sys.path.append(site)
        from importlib import import_module

        sys.exit(import_module(".".join(names)).main(sys.argv[1:]))

    if __name__ == "__main__":
        _as_part_of_its_package()

import fcntl
import resource
import select
import signal
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from gridx.errors import GridXError, ProtocolError
from gridx.events import decode_events, split_events
from gridx.resources import MIB, Usage
from gridx.states import Cause

from . import syscalls
from .child import F_SETPIPE_SZ, PIPE_BYTES, ChildOptions, parse_limits
from .frames import (
    INTERRUPT_GRACE_S,
    MAX_EVENTS_BYTES,
    MAX_RESULT_BYTES,
    CallExited,
    Cancel,
    Events,
    Exited,
    Frame,
    Freeze,
    Interrupt,
    Ready,
    Result,
    Run,
    Thaw,
    encode_frame,
    to_supervisor,
)
from .metering import (
    Meter,
    Reading,
    process_cpu_s,
    process_peak_bytes,
    used,
    was_out_of_memory,
)
from .processes import JobProcess, kill_strays
from .records import DONE, EVENTS, RESULT, WARM, Done, RecordReader, decode_done
from .streams import encode_stream, read_available, utf8_decoder
from .verdict import GARBAGE, Kill, Verdict, judge_call, judge_death, judge_done

MAX_FRAME_BYTES: Final = 256 * MIB  # from the worker, which is trusted; against a broken stream
MAX_WAITING_BYTES: Final = 4 * MIB  # towards the worker; above it the job has to wait
GATHERED_BYTES: Final = MIB  # of events in one frame, where so many lie ready
EVENT_FRAMES_PER_S: Final = 1000
EVENT_FRAMES_BURST: Final = 200
ALLOWANCE_TICK_S: Final = 0.002
RESCUE_TICK_S: Final = 0.1
RESCUE_AFTER_TICKS: Final = 2
RESCUE_FILL: Final = 0.75
ANSWER_FIRST_S: Final = 0.02  # the job's process lives on for this long after the answer
FAREWELL_S: Final = 30.0
DISOBEYED: Final = f"It went on for {INTERRUPT_GRACE_S:g} s after an interrupt and was ended."
_READ_BYTES: Final = 64 * 1024


class Options(NamedTuple):
    """What the command line says."""

    process: bool = False
    filtered: bool = True
    limits: tuple[tuple[int, int], ...] = ()
    # Of --process alone; see namespaces.py.
    namespaces: tuple[str, ...] = ()
    work_bytes: int = 0
    keep: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    probe: bool = False  # tell what a job would find, and end


def parse_options(words: Sequence[str]) -> Options:
    """Return the options of a command line. (argparse takes as long to import as all of this.)

    Raises:
        ProtocolError: a word is unknown.
    """
    flags = {"--process": False, "--unfiltered": False, "--probe": False}
    values: dict[str, list[str]] = {"--limit": [], "--namespace": [], "--keep": [], "--hide": []}
    sizes = {"--work-bytes": 0}
    rest = iter(words)
    for word in rest:
        if word in flags:
            flags[word] = True
        elif word in values:
            values[word].append(next(rest, ""))
        elif word in sizes and (size := next(rest, "")).isdecimal():
            sizes[word] = int(size)
        else:
            raise ProtocolError(f"{word!r} is not an option of the supervisor.")
    return Options(
        process=flags["--process"],
        filtered=not flags["--unfiltered"],
        limits=parse_limits(values["--limit"]),
        namespaces=tuple(values["--namespace"]),
        work_bytes=sizes["--work-bytes"],
        keep=tuple(values["--keep"]),
        hide=tuple(values["--hide"]),
        probe=flags["--probe"],
    )


class Allowance:
    """How often something may happen: ``per_s`` on average, ``burst`` at once."""

    def __init__(self, per_s: float, burst: float, now_s: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._left, self._at_s = burst, now_s

    def is_open(self, now_s: float) -> bool:
        """Return whether it may happen now."""
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        return self._left >= 1

    def take(self) -> None:
        """Say that it happened."""
        self._left -= 1


class Supervisor:
    """One sandbox: ready, one call or those of one session, gone.

    Args:
        in_fd, out_fd: the worker's ends.
        options: of the command line.
    """

    def __init__(self, in_fd: int, out_fd: int, options: Options) -> None:
        self._in_fd, self._out_fd = in_fd, out_fd
        self._options = options
        self._started_s = time.monotonic()
        os.set_blocking(in_fd, False)
        os.set_blocking(out_fd, False)
        self._received = bytearray()
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._job = memoryview(b"")
        self._needs_pipes = False  # the job takes those of its call with it
        self._records = RecordReader(max_result_bytes=MAX_RESULT_BYTES)
        self._decoders = (utf8_decoder(), utf8_decoder())
        self._early = b""  # a job that came before its child was warm
        self._run: Run | None = None
        self._is_session = False
        self._first_call = self._newest_call = -1
        self._before: Reading | None = None  # the call
        self._before_all: Reading | None = None  # the first call
        self._past_cpu_s = 0.0  # of the job's process, before the call
        self._warm_cpu_s = 0.0  # before the first
        self._kind: str | None = None
        self._input_bytes = 0
        self._deadline_s: float | None = None
        self._killed: Kill | None = None
        self._interrupted: Kill | None = None  # what the call is killed for when it goes on
        self._patience_s = 0.0  # until then
        self._patience_from_s = 0.0  # since when
        self._frozen_at_s: float | None = None  # since when the sandbox stands still
        self._frozen_s = 0.0  # it stood still before, all in all
        self._frozen_before_s = self._frozen_before_all_s = 0.0  # the call, the first call
        self._awake_s = self._started_s  # since when it has not stood still, as far as is known
        self._done: Done | None = None
        self._warm = False
        self._listening = True  # to the child's records
        self._worker_gone = False
        self._frames = Allowance(EVENT_FRAMES_PER_S, EVENT_FRAMES_BURST, self._started_s)
        self._full_ticks = 0
        self._heard = False  # the child, since the last look at its pipes
        self._rescuing = False
        self._next_tick_s = 0.0
        self._child = JobProcess(ChildOptions(options.filtered, options.limits))
        self._meter = Meter(own_cgroup=not options.process)
        self._exercise()

    def serve(self) -> int:
        """Run until the worker has its answer or is gone. Return the exit code."""
        try:
            ended = False
            while not ended and not self._worker_gone:
                ended = self._step()
            if not self._worker_gone:
                self._finish()
                self._wait_for_hang_up(ANSWER_FIRST_S)
        finally:
            kill_strays(alone=os.getpid() == 1)
        # The worker reads to the end, hangs up, and destroys the container anyway.
        self._wait_for_hang_up(FAREWELL_S)
        return 0

    def _exercise(self) -> None:
        """Do once what an answer needs, while the child warms itself."""
        run = encode_frame(Run(kind="cell", code="", timeout_s=1.0))
        reading = self._meter.read()
        for _ in range(4):
            to_supervisor.decode(memoryview(run)[4:])
            usage = used(reading, self._meter.read(), [], warm_cpu_s=0.0, input_bytes=0)
            encode_frame(Exited(cause=Cause.COMPLETED, exit_code=0, usage=usage))
            event = b"".join(encode_stream(0, 0, "1"))
            encode_frame(Events(data=b"".join(bytes(e) for e in split_events(event))))
            list(decode_events(event))

    # -------------------------------------------------------- one turn of the loop

    def _step(self) -> bool:
        """Wait for something and handle it. Return whether the child has ended."""
        child = self._child
        now = time.monotonic()
        readers = [self._in_fd, child.pidfd]
        timeout_s = self._until_next_event(now)
        if self._listening and self._waiting_bytes < MAX_WAITING_BYTES:
            if self._frames.is_open(now):
                readers.append(child.record_read)
            else:  # what is said meanwhile gathers in the pipe and goes in one frame
                timeout_s = ALLOWANCE_TICK_S
        if self._rescuing and self._waiting_bytes < MAX_WAITING_BYTES:
            readers += child.output_reads
        writers = [self._out_fd] if self._waiting else []
        if self._job:
            writers.append(child.job_write)
        ready, writable, _ = select.select(readers, writers, [], timeout_s)
        if self._in_fd in ready:
            self._read_worker()
        if child.job_write in writable:
            self._hand_over()
        if child.record_read in ready:
            self._read_records()
        if self._rescuing and any(fd in ready for fd in child.output_reads):
            self._read_output()
        if self._done is not None:
            return True
        self._write_worker()
        self._check_clock()
        return child.pidfd in ready

    def _until_next_event(self, now: float) -> float | None:
        if self._run is None or self._killed is not None or self._frozen_at_s is not None:
            return None
        moments = [self._next_tick_s]
        if self._interrupted is not None:
            moments.append(self._patience_s)
        elif self._deadline_s is not None:
            moments.append(self._deadline_s)
        return max(0.0, min(moments) - now)

    def _check_clock(self) -> None:
        if self._run is None or self._killed is not None or self._frozen_at_s is not None:
            return
        now = time.monotonic()
        if self._interrupted is not None and now >= self._patience_s and not self._has_word():
            self._kill_for(*self._interrupted)
        elif self._interrupted is None and self._deadline_s is not None and now >= self._deadline_s:
            if self._has_word():
                return  # it may have stood still, and be about to hear for how long
            limit_s = self._run.timeout_s
            self._stop_for(Cause.TIMEOUT, f"Stopped at its time limit of {limit_s:g} s.")
        elif now >= self._next_tick_s:
            self._next_tick_s = now + RESCUE_TICK_S
            self._look_after_pipes()

    def _has_word(self) -> bool:
        """Return whether the worker has said something that was not read yet."""
        return bool(select.select([self._in_fd], [], [], 0)[0])

    def _look_after_pipes(self) -> None:
        """Drain the output for a child that cannot: C code may hold the interpreter's lock.

        A child that says something, or that nobody could hear, drains it by itself: two that
        read would mix up the order.
        """
        was_silent = not self._heard and self._waiting_bytes < MAX_WAITING_BYTES
        self._heard = False
        fill = self._child.fullest()
        if self._rescuing:
            self._rescuing = fill > 0 and was_silent
        elif fill > RESCUE_FILL and was_silent:
            self._full_ticks += 1
            self._rescuing = self._full_ticks > RESCUE_AFTER_TICKS
        if not self._rescuing and (fill <= RESCUE_FILL or not was_silent):
            self._full_ticks = 0

    # -------------------------------------------------------- with the worker

    def _read_worker(self) -> None:
        try:
            data = os.read(self._in_fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._worker_gone = True
            return
        received = self._received
        received += data
        while len(received) >= 4:
            end = 4 + int.from_bytes(received[:4], "big")
            if end > MAX_FRAME_BYTES:
                raise ProtocolError("A frame of the worker is too large.")
            if len(received) < end:
                return
            whole = bytes(memoryview(received)[:end])
            del received[:end]
            self._obey(whole)

    def _obey(self, whole: bytes) -> None:
        frame = to_supervisor.decode(memoryview(whole)[4:])
        if isinstance(frame, Cancel):
            self._kill_for(Cause.CANCELLED, "Cancelled.")
        elif isinstance(frame, Interrupt):
            if self._run is not None:
                self._stop_for(Cause.CANCELLED, DISOBEYED)
        elif isinstance(frame, Freeze):
            self._stand_still()
        elif isinstance(frame, Thaw):
            self._go_on(frame.stood_s)
        elif not self._warm:
            self._early = whole
        elif self._run is None and (self._before_all is None or self._is_session):
            self._begin(frame, whole)

    def _stand_still(self) -> None:
        """Stop the clocks of the call."""
        if self._frozen_at_s is None:
            self._frozen_at_s = time.monotonic()

    def _go_on(self, stood_s: float) -> None:
        """Set the clocks of the call going again from where they stood.

        Args:
            stood_s: how long that was, by the worker's clock. What was stopped before it had
                read Freeze finds it in its pipe afterwards, and knows no better.
        """
        now = time.monotonic()
        if self._frozen_at_s is None:
            return
        stood_s = min(max(stood_s, now - self._frozen_at_s), now - self._awake_s)
        self._frozen_at_s = None
        self._frozen_s += stood_s
        self._awake_s = now
        self._patience_s += min(stood_s, max(0.0, now - self._patience_from_s))
        if self._deadline_s is not None:
            self._deadline_s += stood_s

    def _stood_s(self, now: float) -> float:
        """Return for how long it has stood still until ``now``, all in all."""
        return self._frozen_s + (0.0 if self._frozen_at_s is None else now - self._frozen_at_s)

    def _wait_for_obedience(self) -> None:
        """Give what was interrupted, or is bringing its result home, its time from now."""
        self._patience_from_s = time.monotonic()
        self._patience_s = self._patience_from_s + INTERRUPT_GRACE_S

    def _begin(self, run: Run, whole: bytes) -> None:
        is_first = self._before_all is None
        self._run, self._kind, self._newest_call = run, run.kind, run.call
        self._records.limit_result(run.max_result_bytes)
        self._decoders = (utf8_decoder(), utf8_decoder())
        self._job = memoryview(whole)
        self._needs_pipes = not is_first
        self._hand_over()
        # Read while the child wakes up: what it has used by then is a few microseconds.
        self._before = self._meter.read()
        if self._before.cpu_s is None:
            self._past_cpu_s = process_cpu_s(self._child.pid)
        if is_first:
            self._before_all, self._warm_cpu_s = self._before, self._past_cpu_s
            self._is_session, self._first_call = run.keep, run.call
        self._input_bytes += len(run.inputs)
        now = self._before.monotonic_s
        if self._frozen_at_s is not None:  # what came before is none of this call's time
            self._frozen_s = self._stood_s(now)
            self._frozen_at_s = now
        self._awake_s = now
        self._frozen_before_s = self._frozen_s
        if is_first:
            self._frozen_before_all_s = self._frozen_s
        self._deadline_s = now + run.timeout_s
        self._next_tick_s = now + RESCUE_TICK_S

    def _send(self, frame: Frame) -> None:
        data = encode_frame(frame)
        self._waiting.append(memoryview(data))
        self._waiting_bytes += len(data)

    def _write_worker(self) -> None:
        waiting = self._waiting
        while waiting:
            try:
                written = os.write(self._out_fd, waiting[0])
            except BlockingIOError:
                return
            except OSError:
                self._worker_gone = True
                return
            self._waiting_bytes -= written
            if written == len(waiting[0]):
                waiting.popleft()
            else:
                waiting[0] = waiting[0][written:]

    # -------------------------------------------------------- with the child

    def _hand_over(self) -> None:
        try:
            if self._needs_pipes:
                self._job = self._job[self._child.send_with_pipes(self._job) :]
                self._needs_pipes = False
            while self._job:
                self._job = self._job[os.write(self._child.job_write, self._job) :]
        except BlockingIOError:
            return
        except OSError:  # it ended before it had read its job: its end says why
            self._job = memoryview(b"")

    def _read_records(self) -> None:
        try:
            data = b"".join(read_available(self._child.record_read, GATHERED_BYTES))
            self._heard = True
            if not data:  # closed by the child: only its own end is left to wait for
                self._listening = False
            self._take_records(data)
        except ProtocolError:
            self._listening = False
            self._kill_for(Cause.CRASHED, GARBAGE)

    def _take_records(self, data: bytes) -> None:
        events: list[bytes] = []
        size = 0
        try:
            for kind, body in self._records.feed(data):
                if kind == EVENTS:
                    self._check_events(body)
                    if events and size + len(body) > MAX_EVENTS_BYTES:
                        self._send_events(events)
                        events, size = [], 0
                    events.append(body)
                    size += len(body)
                elif kind == WARM and not self._warm:
                    self._be_ready()
                elif self._run is None:
                    raise ProtocolError(GARBAGE)
                elif kind == RESULT:
                    # Its code has ended. What it bound is on its way, and that takes its time.
                    self._wait_for_obedience()
                    self._send_events(events)
                    events, size = [], 0
                    self._send(Result(data=body))
                elif kind == DONE and self._is_session:
                    self._send_events(events)
                    events, size = [], 0
                    self._end_call(self._run, decode_done(body))
                elif kind == DONE:
                    self._done = decode_done(body)
                    return  # whatever comes after it, nobody waits for
        finally:
            self._send_events(events)

    def _check_events(self, body: bytes) -> None:
        # Threads and processes of earlier calls of a session say something, too.
        newest = self._newest_call
        oldest = self._first_call if self._is_session else newest
        for event in decode_events(body):
            if newest < 0 or not oldest <= event.call <= newest:
                raise ProtocolError(GARBAGE)

    def _send_events(self, events: list[bytes]) -> None:
        if events:
            self._frames.take()
            self._send(Events(data=b"".join(events)))

    def _be_ready(self) -> None:
        self._warm = True
        version = sys.version_info
        self._send(
            Ready(
                python=f"{version.major}.{version.minor}.{version.micro}",
                filtered=self._options.filtered,
                warm_s=time.monotonic() - self._started_s,
                meter=self._meter.source,
            )
        )
        if self._early:
            self._obey(self._early)

    def _read_output(self, limit_bytes: int = PIPE_BYTES) -> None:
        """Take what lies in the child's own pipes, and send it on its behalf."""
        call = max(self._newest_call, 0)
        for index, fd in enumerate(self._child.output_reads):
            for data in read_available(fd, limit_bytes):
                if text := self._decoders[index].decode(data):
                    self._send(Events(data=b"".join(encode_stream(call, index, text))))

    def _kill_for(self, cause: Cause, why: str) -> None:
        if self._killed is None:
            self._killed = Kill(cause, why)
            self._child.kill()

    def _stop_for(self, cause: Cause, why: str) -> None:
        """End the call: in a session it is interrupted first, and killed when it goes on."""
        if not self._is_session:
            self._kill_for(cause, why)
        elif self._interrupted is None and self._killed is None:
            self._interrupted = Kill(cause, why)
            self._wait_for_obedience()
            self._child.interrupt()

    def _end_call(self, run: Run, done: Done) -> None:
        """Say how a call of the session went. Its process waits for the next."""
        assert self._before is not None
        after = self._meter.read()
        verdict = judge_call(
            done, stopped=self._interrupted, memory_error_is_the_limit=self._memory_is_limited()
        )
        usage = used(
            self._before,
            after,
            [],
            warm_cpu_s=0.0,
            input_bytes=len(run.inputs),
            frozen_s=self._stood_s(after.monotonic_s) - self._frozen_before_s,
        )
        if after.cpu_s is None:
            pid = self._child.pid
            usage = msgspec.structs.replace(
                usage,
                cpu_s=max(0.0, process_cpu_s(pid) - self._past_cpu_s),
                peak_memory_bytes=process_peak_bytes(pid),
            )
        if verdict.cause is Cause.OUT_OF_MEMORY:
            usage = msgspec.structs.replace(usage, out_of_memory=True)
        self._run = self._interrupted = self._deadline_s = None
        self._job = memoryview(b"")  # it may not have waited for all of it
        self._rescuing, self._full_ticks = False, 0
        self._send(
            CallExited(
                call=run.call,
                cause=verdict.cause,
                exit_code=verdict.exit_code,
                message=verdict.message,
                usage=usage,
            )
        )

    # -------------------------------------------------------- the end

    def _finish(self) -> None:
        """Send what is left and say how the call went."""
        status: int | None = None
        reaped: list[resource.struct_rusage] = []
        if self._done is None:
            _, status, usage = os.wait4(self._child.pid, 0)
            reaped = [usage, *kill_strays(alone=os.getpid() == 1)]
            if self._listening:
                self._read_records()
        # Else the child waits to be ended, and its records are complete. It is ended after the
        # answer has gone: to give its memory back takes longer than many a cell.
        self._read_output()
        if self._before is None:
            self._before = self._meter.read()
        after = self._meter.read()
        out_of_memory = was_out_of_memory(self._before, after)
        verdict = self._judge(status, out_of_memory)
        usage_of_call = Usage()
        if self._before_all is not None:
            if not reaped and after.cpu_s is None:
                reaped = kill_strays(alone=os.getpid() == 1)
            usage_of_call = used(
                self._before_all,
                after,
                reaped,
                warm_cpu_s=self._warm_cpu_s,
                input_bytes=self._input_bytes,
                frozen_s=self._stood_s(after.monotonic_s) - self._frozen_before_all_s,
            )
        if verdict.cause is Cause.OUT_OF_MEMORY:
            usage_of_call = msgspec.structs.replace(usage_of_call, out_of_memory=True)
        self._send(
            Exited(
                cause=verdict.cause,
                exit_code=verdict.exit_code,
                message=verdict.message,
                usage=usage_of_call,
            )
        )
        self._write_worker()

    def _judge(self, status: int | None, out_of_memory: bool) -> Verdict:
        if self._done is not None:
            return judge_done(
                self._done,
                memory_error_is_the_limit=self._memory_is_limited(),
                out_of_memory=out_of_memory,
            )
        assert status is not None
        return judge_death(
            status, self._kind, warm=self._warm, kill=self._killed, out_of_memory=out_of_memory
        )

    def _memory_is_limited(self) -> bool:
        return any(name == resource.RLIMIT_AS for name, _ in self._options.limits)

    def _wait_for_hang_up(self, limit_s: float) -> None:
        end_s = time.monotonic() + limit_s
        while not self._worker_gone and (left_s := end_s - time.monotonic()) > 0:
            writers = [self._out_fd] if self._waiting else []
            ready, _, _ = select.select([self._in_fd], writers, [], left_s)
            self._write_worker()
            if ready:
                try:
                    self._worker_gone = not os.read(self._in_fd, _READ_BYTES)
                except OSError:
                    self._worker_gone = True


def main(argv: Sequence[str]) -> int:
    """Be the supervisor of one sandbox. Return the exit code."""
    # Private copies, out of the way of everything that is started later.
    in_fd = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 10)
    out_fd = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 10)
    try:
        # A large result goes half as fast again when its reader is woken less often.
        fcntl.fcntl(out_fd, F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:  # above this user's share of pipe memory, or no pipe at all
        pass
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    try:
        options = parse_options(argv)
        if options.filtered:
            syscalls.machine()
        if options.process:
            from .outside import leave_the_machine, probe

            leave_the_machine(options)
            if options.probe:
                return probe(out_fd, options)
            syscalls.become_subreaper()
        elif os.getpid() != 1:
            # It ends strays with kill(-1), which anywhere else means everything of this user.
            raise ProtocolError("Outside a container the supervisor needs --process.")
        syscalls.set_dumpable(False)
        # Without a container, Ctrl-C reaches every process of the terminal; the worker decides.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return Supervisor(in_fd, out_fd, options).serve()
    except (GridXError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
