"""stdout and stderr of the job, in the exact order in which they were written.

Descriptors 1 and 2 are pipes that this same process reads: a thread takes out what C code and
child processes write, and each write of Python code first takes out what lies there, then joins
the one ordered buffer. Two pipes with a reader elsewhere lose the order between them.

The buffer is sent at once after ``GATHER_S`` of quiet, else when its oldest text is that old or
when it holds ``MAX_GATHER_CHARS``, and before anything else that the job says.

In a session every text belongs to a call. Each call has pipes of its own on descriptors 1 and
2, so that a process which outlives its call goes on writing into that call's output; threads and
tasks belong to the call that started them.
"""

from __future__ import annotations

import codecs
import fcntl
import io
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

from gridx.events import Event, Stream, encode_event

from .epochs import call_of_this_thread

GATHER_S: Final = 0.005
MAX_GATHER_CHARS: Final = 64 * 1024
MAX_STREAM_CHARS: Final = 256 * 1024  # of one event
_QUIET_S: Final = 0.05  # after this the thread sleeps until it is woken
_READ_BYTES: Final = 65536
_SENT_BYTES: Final = 1 << 20  # in one record, but for its last event
_NAMES: Final[tuple[Literal["stdout"], Literal["stderr"]]] = ("stdout", "stderr")


def collapse_progress(text: str) -> str:
    r"""Return ``text`` with only the last state of each line that ``\r`` writes over.

    What stands before a line's first ``\r`` may continue a line that was sent before, so it
    stays. Lines with terminal escapes stay too: what they show cannot be told from here.

    >>> collapse_progress("\r 1%\r 2%\r100%\n")
    '\r100%\n'
    """
    if text.count("\r") < 2:
        return text
    lines = text.split("\n")
    for at, line in enumerate(lines):
        if line.count("\r") < 2 or "\x1b" in line:
            continue
        last_is_newline = line.endswith("\r") and at < len(lines) - 1  # "\r\n"
        first, *states = (line[:-1] if last_is_newline else line).split("\r")
        shown = ""
        for state in states:
            shown = state + shown[len(state) :]
        end = "\r" if last_is_newline or states[-1] == "" else ""
        lines[at] = f"{first}\r{shown}{end}"
    return "\n".join(lines)


def encode_stream(call: int, index: int, text: str) -> Iterator[bytes]:
    """Yield ``text`` as events of stdout (``index`` 0) or stderr (1), as many as it needs."""
    if not text.isascii():
        # Half a surrogate pair cannot be sent; CPython's own stderr shows it escaped.
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    for at in range(0, len(text), MAX_STREAM_CHARS):
        piece = text[at : at + MAX_STREAM_CHARS]
        yield encode_event(Stream(call=call, name=_NAMES[index], text=piece))


class _Pipe:
    """The read end of a pipe that a call's descriptor 1 (``index`` 0) or 2 (1) is."""

    __slots__ = ("call", "decoder", "fd", "index")

    def __init__(self, fd: int, index: int, call: int) -> None:
        self.fd, self.index, self.call = fd, index, call
        self.decoder = utf8_decoder()


class OutputCapture:
    """Everything that the job says, put in order and sent through ``send`` as encoded events.

    Args:
        read_fds: the read ends of the pipes on descriptors 1 and 2.
        send: takes whole encoded events; called with the lock held, may block.
    """

    def __init__(self, read_fds: tuple[int, int], send: Callable[[bytes], None]) -> None:
        self.call = 0
        self.is_session = False
        self.is_interrupted = False  # while something was being written: said when it is done
        self._send = send
        self._pipes = [_Pipe(fd, index, 0) for index, fd in enumerate(read_fds)]
        self._current = (self._pipes[0], self._pipes[1])
        self._are_pipes_new = False
        self._lock = threading.RLock()
        self._buffer: list[tuple[int, int, list[str]]] = []  # stream, call, text
        self._size = 0
        self._held: list[bytes] = []  # encoded events that wait for company
        self._oldest_s = 0.0  # when the buffer became non-empty
        self._sent_s = 0.0
        self._forked = False
        self._lines = (bytearray(), bytearray())  # of a process that the job forked
        self._awake = False
        self._wake_fd = _out_of_the_way(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), read_fds)
        self._ready = select.poll()
        for fd in read_fds:
            os.set_blocking(fd, False)
            self._ready.register(fd, select.POLLIN)

    def start(self) -> None:
        """Start the thread and follow the forks of the job."""
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._lock_release,
            after_in_child=self._after_fork_in_child,
        )
        threading.Thread(target=self._pump, daemon=True, name="gridx-output").start()

    def begin_call(self, call: int, read_fds: tuple[int, int] | None) -> None:
        """Count what is said from now on to ``call``, except what belongs to an earlier one.

        Args:
            call: its number.
            read_fds: of the pipes that are its descriptors 1 and 2; None: those that are there.
        """
        with self._lock:
            self._drain()
            self.call = call
            if read_fds is None:
                for pipe in self._current:
                    pipe.call = call
                return
            for pipe in self._current:  # nobody of the new call will complete it
                if rest := pipe.decoder.decode(b"", final=True):
                    self._append(pipe.index, pipe.call, rest, time.monotonic())
            self._current = (_Pipe(read_fds[0], 0, call), _Pipe(read_fds[1], 1, call))
            for pipe in self._current:
                os.set_blocking(pipe.fd, False)
                self._ready.register(pipe.fd, select.POLLIN)
                self._pipes.append(pipe)
            self._are_pipes_new = True
            self._wake()

    def calling(self) -> int:
        """Return the call that this thread works for."""
        return call_of_this_thread() if self.is_session else self.call

    def write(self, index: int, text: str) -> None:
        """Take ``text`` of Python code for stdout (``index`` 0) or stderr (1)."""
        if self._forked:
            self._write_line(index, text.encode("utf-8", "backslashreplace"))
            return
        call = call_of_this_thread() if self.is_session else self.call
        with self._lock:
            if self._ready.poll(0):
                self._drain()
            now = time.monotonic()
            self._append(index, call, text, now)
            if self._size >= MAX_GATHER_CHARS or (
                text.endswith("\n") and now - self._sent_s >= GATHER_S
            ):
                self._flush(now)
            elif not self._awake:
                self._awake = True
                self._wake()

    def write_bytes(self, index: int, data: bytes) -> None:
        """Take ``data`` that Python code wrote to ``sys.stdout.buffer``."""
        if self._forked:
            self._write_line(index, data)
            return
        with self._lock:
            self.write(index, self._current[index].decoder.decode(data))

    def flush(self) -> None:
        """Send what is there unless something was sent just now; then it follows soon."""
        if self._forked:
            for index in (0, 1):
                self._write_line(index, b"", flush=True)
            return
        with self._lock:
            self._drain()
            now = time.monotonic()
            if self._buffer and now - self._sent_s >= GATHER_S:
                self._flush(now)

    def publish(self, event: Event) -> None:
        """Send ``event`` after everything that was written before it."""
        if self._forked:
            return
        data = encode_event(event)
        with self._lock:
            self._drain()
            self._flush(time.monotonic())
            self._send(data)

    def publish_with_next(self, event: Event) -> None:
        """Send ``event`` in its place, together with whatever is sent next.

        For what is said at the end of a job: one message wakes each program on the way once.
        """
        if self._forked:
            return
        with self._lock:
            self._drain()
            self._held += self._encode_buffer()
            self._held.append(encode_event(event))

    def sync(self) -> None:
        """Return when everything that was written before this call has been sent."""
        if self._forked:
            return
        with self._lock:
            self._drain()
            self._flush(time.monotonic())

    def forget(self) -> None:
        """Drop what the exercise before the job has said: the first line of the job is the first."""
        with self._lock:
            self._drain()
            self._pieces()
            self._sent_s = 0.0

    @contextmanager
    def finished(self) -> Iterator[bytes]:
        """Send the last text, half characters included; give the end of it, still to be sent.
        Nobody else says anything before the block is over."""
        with self._lock:
            self._drain()
            for pipe in self._current:
                if rest := pipe.decoder.decode(b"", final=True):
                    self._append(pipe.index, pipe.call, rest, 0.0)
            *pieces, last = self._pieces() or [b""]
            for piece in pieces:
                self._send(piece)
            yield last

    # -------------------------------------------------------- with the lock held

    def _wake(self) -> None:
        try:
            os.eventfd_write(self._wake_fd, 1)
        except OSError:  # the job closed every descriptor it found; its end is still told
            pass

    def _append(self, index: int, call: int, text: str, now: float) -> None:
        if not self._buffer:
            self._oldest_s = now
            self._buffer.append((index, call, [text]))
        else:
            last = self._buffer[-1]
            if last[0] == index and last[1] == call:
                last[2].append(text)
            else:
                self._buffer.append((index, call, [text]))
        self._size += len(text)

    def _drain(self) -> None:
        """Move what lies in the pipes to the buffer."""
        ended: list[_Pipe] = []
        for pipe in self._pipes:
            # A bound, so that a flood in one pipe does not keep the other one waiting.
            for _ in range(16):
                try:
                    data = os.read(pipe.fd, _READ_BYTES)
                except OSError:  # empty, or the job closed it
                    break
                if not data:
                    ended.append(pipe)
                    break
                if text := pipe.decoder.decode(data):
                    self._append(pipe.index, pipe.call, text, time.monotonic())
                if len(data) < _READ_BYTES:
                    break
        for pipe in ended:
            if pipe not in self._current:  # the last process of an earlier call has ended
                self._pipes.remove(pipe)
                self._ready.unregister(pipe.fd)
                os.close(pipe.fd)  # the thread may wait for it once more, and finds nothing to do
                self._are_pipes_new = True

    def _encode_buffer(self) -> list[bytes]:
        buffer, self._buffer, self._size = self._buffer, [], 0
        return [
            event
            for index, call, parts in buffer
            for event in encode_stream(call, index, collapse_progress("".join(parts)))
        ]

    def _pieces(self) -> list[bytes]:
        """Take everything that waits, in as few pieces as records may be large."""
        events, self._held = [*self._held, *self._encode_buffer()], []
        pieces: list[bytes] = []
        waiting, size = [], 0
        for event in events:
            waiting.append(event)
            size += len(event)
            if size >= _SENT_BYTES:
                pieces.append(b"".join(waiting))
                waiting, size = [], 0
        if waiting:
            pieces.append(b"".join(waiting))
        return pieces

    def _flush(self, now: float) -> None:
        if not self._buffer and not self._held:
            return
        self._sent_s = now
        for piece in self._pieces():
            self._send(piece)

    # -------------------------------------------------------- the thread

    def _pump(self) -> None:
        waiting = self._all_pipes()
        timeout_s: float | None = None
        active_s = time.monotonic()
        while True:
            if self._are_pipes_new:
                waiting = self._all_pipes()
            ready = waiting.poll(None if timeout_s is None else timeout_s * 1000)
            now = time.monotonic()
            for fd, what in ready:
                if not what & select.POLLIN:  # the job closed it: it would be "ready" for ever
                    waiting.unregister(fd)
                elif fd == self._wake_fd:
                    os.eventfd_read(fd)
                    active_s = now
            if any(fd != self._wake_fd for fd, _ in ready):
                active_s = now
                with self._lock:
                    self._drain()
                    if self._buffer and now - self._sent_s >= GATHER_S:
                        self._flush(now)
            if self._buffer:
                active_s = now
                timeout_s = self._oldest_s + GATHER_S - now
                if timeout_s > 0:
                    continue
                with self._lock:
                    self._drain()
                    self._flush(now)
            if now - active_s < _QUIET_S:
                timeout_s = GATHER_S
                continue
            with self._lock:
                self._awake = bool(self._buffer)
                timeout_s = GATHER_S if self._awake else None

    def _all_pipes(self) -> select.poll:
        with self._lock:
            self._are_pipes_new = False
            waiting = select.poll()
            for fd in (*(pipe.fd for pipe in self._pipes), self._wake_fd):
                waiting.register(fd, select.POLLIN)
            return waiting

    # -------------------------------------------------------- forks of the job

    def _before_fork(self) -> None:
        if self._forked:
            return
        self._lock.acquire()
        self._drain()
        self._flush(time.monotonic())

    def _lock_release(self) -> None:
        if not self._forked:
            self._lock.release()

    def _after_fork_in_child(self) -> None:
        # The pump is not in this process: it writes into the pipes like any other program.
        self._forked = True
        self._lock = threading.RLock()
        self._lines = (bytearray(), bytearray())

    def _write_line(self, index: int, data: bytes, *, flush: bool = False) -> None:
        """Write whole lines, so that those of several processes do not mix."""
        line = self._lines[index]
        line += data
        if flush or b"\n" in data or len(line) >= _READ_BYTES:
            whole = bytes(line)
            line.clear()
            _write_all(index + 1, whole)


class JobStream(io.TextIOBase):
    """``sys.stdout`` or ``sys.stderr`` of the job."""

    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None
    line_buffering = True
    write_through = True
    mode = "w"

    def __init__(self, capture: OutputCapture, index: int) -> None:
        self._capture = capture
        self._index = index
        self._write = capture.write
        self.name = f"<{_NAMES[index]}>"
        self.buffer = _BytesStream(capture, index)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text:
            self._write(self._index, text)
            if self._capture.is_interrupted and _is_main_thread():
                self._capture.is_interrupted = False
                raise KeyboardInterrupt
        return len(text)

    def flush(self) -> None:
        self._capture.flush()

    def fileno(self) -> int:
        return self._index + 1

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def reconfigure(self, **_settings: Any) -> None:
        """Accept what ``io.TextIOWrapper.reconfigure`` takes; the stream is UTF-8 either way."""

    def close(self) -> None:
        """Flush; descriptors 1 and 2 stay, for children and for what comes after."""
        self.flush()


class _BytesStream(io.RawIOBase):
    def __init__(self, capture: OutputCapture, index: int) -> None:
        self._capture = capture
        self._index = index
        self.name = f"<{_NAMES[index]}>"
        self.mode = "wb"

    def write(self, data: Any) -> int:
        as_bytes = bytes(data)
        self._capture.write_bytes(self._index, as_bytes)
        return len(as_bytes)

    def flush(self) -> None:
        self._capture.flush()

    def fileno(self) -> int:
        return self._index + 1

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Stay open, as the text stream above it does."""


def _out_of_the_way(fd: int, others: tuple[int, int]) -> int:
    """Return a copy of ``fd`` above ``others``, where a job's own descriptors never come."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(others))
    os.close(fd)
    return moved


def _is_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


def utf8_decoder() -> codecs.IncrementalDecoder:
    """Return a decoder that shows what is not UTF-8 as the replacement character."""
    return codecs.getincrementaldecoder("utf-8")("replace")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_available(fd: int, limit_bytes: int) -> Iterator[bytes]:
    """Yield what lies in the non-blocking ``fd`` now, at most about ``limit_bytes``."""
    taken = 0
    while taken < limit_bytes:
        try:
            data = os.read(fd, _READ_BYTES)
        except OSError:
            return
        if not data:
            return
        taken += len(data)
        yield data
