"""The job's own process: warms itself, shuts itself in, waits for its job, runs it, ends.

A session's process waits for the next call instead, with everything that the last one left in
its namespace. It holds no descriptor of the protocol between worker and supervisor. Everything here shares its
process with the user's code from the first job byte on, so nothing here is a protection: the
filter is the kernel's, and the supervisor trusts nothing that this process writes.
"""

from __future__ import annotations

import _thread
import atexit
import builtins
import ctypes
import fcntl
import gc
import getpass
import importlib.util
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import msgspec

from gridx.errors import ProtocolError
from gridx.events import ErrorOutput, Stream
from gridx.resources import format_bytes

from . import records, streams, syscalls
from .epochs import begin_epoch, follow_threads
from .frames import Run
from .programs import EXIT_NOT_FOUND, NoSuchProgram, done_of, end_by, run_program
from .records import EVENTS, RESULT_RECORD_BYTES, WARM, Done, RecordWriter
from .script import exit_code_of, hide_runtime_frames, one_line, run_script
from .streams import JobStream, OutputCapture
from .text_bars import show_bars_as_text

if TYPE_CHECKING:
    from gridx.codec.results import ResultPieces

    from .shell import CellShell

SITE_DIR: Final = "/opt/gridx/site"  # the image's packages; absent outside of it
# What a job's --pip installed, and what the lender added: the job's process alone has them.
ADDED_DIRS: Final = ("/opt/gridx/env", "/opt/gridx/family")
FONTS_DIR: Final = "/opt/gridx/mpl"  # what matplotlib has found in the image
MATPLOTLIB_DIR: Final = "/tmp/mpl"
PIPE_BYTES: Final = 1 << 20
EXIT_NOT_WARM: Final = 70
EXIT_NOTHING_TO_DO: Final = 0
NO_CELLS: Final = "This image has no IPython, so it runs scripts and no notebook cells."
F_SETPIPE_SZ: Final = 1031
WARM_ROUNDS: Final = 8
_WARM_CELL: Final = Run(
    kind="cell", code="x = 1\nprint(x)\n[x, 2.0, 'three']", timeout_s=1.0, expected=("x",)
)
_WARM_ERROR: Final = Run(kind="cell", code="def f():\n    return 1 / 0\nf()", timeout_s=1.0)
_RESERVED_FDS: Final = 40
_INTERRUPT_AGAIN_S: Final = 0.005
# An interrupt in the middle of these would cut a record in two.
_NOT_INTERRUPTED: Final = frozenset({streams.__file__, records.__file__})
_KEPT: Final = frozenset({"gridx", "gridx_runtime", "msgspec", "IPython", "traitlets"})
_exit_now: Final = os._exit
# What the interpreter puts into __main__; multiprocessing asks for most of it.
_MAIN_NAMES: Final[dict[str, Any]] = {
    "__name__": "__main__",
    "__doc__": None,
    "__package__": None,
    "__loader__": None,
    "__spec__": None,
    "__annotations__": {},
    "__builtins__": builtins,
}


class ChildPipes(NamedTuple):
    """The ends that the child keeps."""

    job_read: int
    record_write: int
    out_read: int
    out_write: int
    err_read: int
    err_write: int


class ChildOptions(NamedTuple):
    """How the child shuts itself in."""

    filtered: bool
    limits: tuple[tuple[int, int], ...] = ()  # (resource.RLIMIT_*, value)


def run_child(pipes: ChildPipes, options: ChildOptions) -> NoReturn:
    """Be the job's process. Never returns."""
    try:
        child = _Child(_alone_with(pipes))
        child.warm()
        child.shut_in(options)
    except BaseException:
        # Descriptor 2 is still the container's: the worker keeps it as diagnostics.
        import traceback

        traceback.print_exc(file=sys.__stderr__)
        os._exit(EXIT_NOT_WARM)
    child.serve()


def _alone_with(pipes: ChildPipes) -> ChildPipes:
    """Close every other descriptor, and move these where a job's own never come."""
    highest = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 16)
    floor = max(highest - _RESERVED_FDS, 16)
    moved = ChildPipes(*(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor) for fd in pipes))
    os.closerange(3, min(moved))
    os.closerange(max(moved) + 1, highest)
    return moved


class _Child:
    def __init__(self, pipes: ChildPipes) -> None:
        self._pipes = pipes
        self._pid = os.getpid()
        self._records = RecordWriter(pipes.record_write)
        self._muted = True
        self._capture = OutputCapture((pipes.out_read, pipes.err_read), self._send_events)
        self._main = types.ModuleType("__main__")
        self._shell: CellShell | None = None
        self._result: ResultPieces | None = None
        self._work = os.getcwd()
        self._takes_interrupts = False
        self._was_interrupted = False
        self._is_second_try = False
        os.setsid()
        signal.signal(signal.SIGINT, self._on_interrupt)
        syscalls.die_with_parent()

    def _send_events(self, data: bytes) -> None:
        if self._muted:
            return
        try:
            self._records.send(EVENTS, data)
        except OSError:  # the job closed the pipe: nothing more can be said
            self._muted = True

    # -------------------------------------------------------- before the job

    def warm(self) -> None:
        """Import and use what a cell needs, so that the job finds it ready."""
        if os.path.isdir(SITE_DIR):
            if SITE_DIR not in sys.path:
                sys.path.append(SITE_DIR)
            os.environ["PYTHONPATH"] = SITE_DIR  # for the programs that a job starts
        os.environ.update(
            MPLBACKEND="module://matplotlib_inline.backend_inline",
            PYTHONUNBUFFERED="1",
            TQDM_MININTERVAL="0.5",
            COLUMNS="120",
            TERM="dumb",
        )
        os.environ.setdefault("IPYTHONDIR", "/tmp/.ipython")
        _prepare_matplotlib()
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  for the whole life
        # Before anything is imported: handlers of ``logging`` keep the stream that they find.
        # Typed as the stream of the interpreter; ours has its methods.
        sys.stdout = sys.__stdout__ = JobStream(self._capture, 0)  # type: ignore[assignment,misc]
        sys.stderr = JobStream(self._capture, 1)
        self._be_main()
        _complete_builtins()
        _start_others_as_usual()
        show_bars_as_text()
        self._flush_c_stdout = _c_stdout_flusher()

        if importlib.util.find_spec("IPython") is not None:  # an image for scripts alone has none
            self._warm_shell()
        _prefer_added_packages()
        # The thread that reads the pipes is ours; the job need not hear about it when it forks.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        warnings.filterwarnings("ignore", "To exit: use 'exit'", UserWarning)
        gc.collect()
        gc.freeze()

    def _warm_shell(self) -> None:
        from .shell import make_shell

        shell = self._shell = make_shell(self._main, self._capture)
        # The interpreter specialises code that has run a few times, so once is not warm.
        for _ in range(WARM_ROUNDS):
            self._run_cell(_WARM_CELL)
        self._run_cell(_WARM_ERROR)
        self._result = None
        shell.reset(new_session=True)
        self._main.__dict__.update(_MAIN_NAMES)
        shell.execution_count = 1
        atexit.unregister(shell.atexit_operations)  # a script's own functions run at its end

    def _be_main(self) -> None:
        # Pickles, multiprocessing and dataclasses look for the job's classes there.
        sys.modules["__main__"] = self._main
        self._main.__dict__["__builtins__"] = builtins
        sys.argv = [""]
        builtins.input = _no_input
        getpass.getpass = _no_password

    def shut_in(self, options: ChildOptions) -> None:
        """Give up what the job must not have: after this, only the job pipe is waited for."""
        os.dup2(self._pipes.out_write, 1)
        os.dup2(self._pipes.err_write, 2)
        os.close(self._pipes.out_write)
        os.close(self._pipes.err_write)
        sys.__stderr__ = sys.stderr  # type: ignore[assignment,misc]  # as above
        for fd in (1, 2, self._pipes.record_write):
            try:
                fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES)
            except OSError:  # above this user's share of pipe memory: the smaller pipe does too
                pass
        random.seed()
        for name, value in options.limits:
            resource.setrlimit(name, (value, value))
        # Inherited from the supervisor, and it would shut the job out of its own /proc/self.
        syscalls.set_dumpable(True)
        if options.filtered:
            syscalls.install()
        self._capture.forget()
        self._capture.start()
        os.register_at_fork(after_in_child=self._forget_records)
        self._muted = False
        os._exit = self._exit  # what was written before it is shown

    def _exit(self, status: int) -> NoReturn:
        try:
            self._capture.sync()
        finally:
            _exit_now(status)

    def _forget_records(self) -> None:
        for fd in (self._pipes.record_write, self._pipes.job_read):
            try:
                os.close(fd)
            except OSError:  # closed already, by the runtime or by the job
                pass

    # -------------------------------------------------------- the job

    def serve(self) -> NoReturn:
        """Wait for the job, run it, and end; in a session, wait for the next call."""
        self._records.send(WARM)
        run = self._wait()
        if run is None:
            _exit_now(EXIT_NOTHING_TO_DO)
        sys.path.insert(0, "" if run.kind == "cell" else os.getcwd())
        if not run.keep:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.close(self._pipes.job_read)
            self._capture.call = run.call
            self._run(run)
            self._rest()
        self._be_a_session()
        while run is not None:
            begin_epoch(run.call)
            self._run(run)
            # Freed now, while nobody waits; the next call finds the process as it would a new one.
            self._result = None
            run = self._wait_for_next()
        _exit_now(EXIT_NOTHING_TO_DO)

    def _run(self, run: Run) -> None:
        """Run one call and say how it went."""
        try:
            if run.kind == "cell":
                done = self._run_cell(run)
            elif run.language == "python":
                done = self._run_script(run)
            else:
                done = self._run_program(run)
        except BaseException as error:  # ours, or the job took the runtime apart
            done = Done(completed=False, exit_code=1, message=one_line(error))
        if os.getpid() != self._pid:
            # A process that the job forked came to the end of the job's code.
            self._capture.flush()
            _exit_now(done.exit_code)
        self._flush_c_stdout()
        try:
            with self._capture.finished() as events:
                pieces = () if self._result is None else self._result.blocks(RESULT_RECORD_BYTES)
                self._records.end(b"" if self._muted else events, pieces, done)
        except OSError:  # the job closed the pipe: its exit code is all that it can still say
            _exit_now(done.exit_code)

    @staticmethod
    def _rest() -> NoReturn:
        # The supervisor ends this process. Giving its memory back takes longer than a small cell
        # does, and the answer need not wait for that.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            signal.pause()

    def _wait(self, header: bytes = b"") -> Run | None:
        """Return the job, or None when the supervisor has gone."""
        fd = self._pipes.job_read
        header += _read(fd, 4 - len(header))
        self._was_interrupted = False  # by what was meant for the call before
        length = int.from_bytes(header, "big")
        body = _read(fd, length)
        return msgspec.msgpack.decode(body, type=Run) if length and len(body) == length else None

    # -------------------------------------------------------- sessions

    def _be_a_session(self) -> None:
        follow_threads()
        self._capture.is_session = True
        # Who asks whether the handler is still the interpreter's own (asyncio.Runner) means this.
        signal.default_int_handler = self._on_interrupt  # type: ignore[assignment]

    def _on_interrupt(self, _number: int, frame: types.FrameType | None) -> None:
        """Interrupt the cell, but never half a record, and nothing between two calls."""
        is_second_try, self._is_second_try = self._is_second_try, False
        if is_second_try and not self._capture.is_interrupted:
            return  # it was said in the meantime
        if not self._takes_interrupts:
            self._was_interrupted = True
            return
        while frame is not None:
            if frame.f_code.co_filename in _NOT_INTERRUPTED:
                self._capture.is_interrupted = True
                _thread.start_new_thread(self._interrupt_soon, ())
                return
            frame = frame.f_back
        self._capture.is_interrupted = False
        raise KeyboardInterrupt

    def _interrupt_soon(self) -> None:
        time.sleep(_INTERRUPT_AGAIN_S)
        if self._capture.is_interrupted:
            self._is_second_try = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _wait_for_next(self) -> Run | None:
        """Return the next call of the session, with pipes of its own on descriptors 1 and 2."""
        with socket.socket(fileno=os.dup(self._pipes.job_read)) as channel:
            try:
                header, fds, _, _ = socket.recv_fds(channel, 4, 4)
            except OSError:  # the job closed it
                return None
        if len(fds) != 4 or not header:
            return None
        highest = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 16)
        floor = max(highest - 2 * _RESERVED_FDS, 16)
        out_read, err_read = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor) for fd in fds[:2])
        run = self._wait(header)
        if run is not None:
            self._capture.begin_call(run.call, (out_read, err_read))
            os.dup2(fds[2], 1)
            os.dup2(fds[3], 2)
        for fd in fds:
            os.close(fd)
        return run

    def _run_script(self, run: Run) -> Done:
        namespace = self._main.__dict__
        namespace.clear()
        namespace.update(_MAIN_NAMES)
        return run_script(run.code, namespace)

    def _run_program(self, run: Run) -> Done:
        try:
            ended = run_program(run.language, run.code, folder=self._work)
        except NoSuchProgram as missing:
            return Done(completed=False, exit_code=EXIT_NOT_FOUND, message=str(missing))
        if ended < 0:
            with self._capture.finished() as events:
                if events:
                    self._send_events(events)
            end_by(-ended)
        return done_of(ended)

    def _run_cell(self, run: Run) -> Done:
        if self._shell is None:
            return Done(completed=False, exit_code=1, message=NO_CELLS)
        from gridx.codec.results import result_pieces, snapshot
        from gridx.ship.restore import restore

        from .shell import last_value, run_cell

        namespace = self._shell.user_ns
        error: BaseException | None
        try:
            with self._interruptible(run):
                if run.files:
                    from .files import lay_out

                    lay_out(run.files, work=self._work, blobs=run.inputs_dir)
                if run.inputs:
                    restore(run.inputs, namespace, run.inputs_dir)
                error = self._run_prelude(run.prelude) if run.prelude else None
                before = snapshot(namespace, run.watched)
        except BaseException as failure:
            error = failure
        if error is not None:
            return self._failed(error, run)
        try:
            with self._interruptible(run):
                error = run_cell(self._shell, run.code, run.call)
        except BaseException as failure:  # an interrupt that met IPython's own code
            error = failure
        if os.getpid() != self._pid:
            return Done(completed=error is None, exit_code=int(error is not None))
        expected = [n for n in run.expected if run.out is None or n in run.out]
        files: list[tuple[str, bytes | memoryview]] = []
        try:
            with self._interruptible(run):  # large variables take their time, too
                files = self._gathered(run) if run.fetch else []
                pieces = result_pieces(
                    before,
                    namespace,
                    expected=expected,
                    cell=run.code,
                    files=files,
                    last=last_value(),
                )
        except KeyboardInterrupt as interrupt:
            error = error or interrupt
            pieces = result_pieces(before, namespace, expected=(), cell=run.code)
        if pieces.size_bytes > run.max_result_bytes:
            parts = {name: namespace[name] for name in expected if name in namespace} | dict(files)
            self._say_too_large(pieces.size_bytes, run.max_result_bytes, parts)
            pieces = result_pieces(before, namespace, expected=(), cell=run.code)
        done = self._failed(error, run) if error is not None else Done(completed=True, exit_code=0)
        if pieces.size_bytes <= run.max_result_bytes:
            self._result = pieces
        return done

    def _run_prelude(self, code: str) -> BaseException | None:
        """Run ``code`` unheard; return what it raised."""
        from .shell import run_prelude

        assert self._shell is not None
        self._capture.sync()
        was_muted, self._muted = self._muted, True
        try:
            return run_prelude(self._shell, code)
        finally:
            self._capture.forget()
            self._muted = was_muted

    def _gathered(self, run: Run) -> list[tuple[str, bytes | memoryview]]:
        """Return the files that go home, and say which do not."""
        from .files import gather

        found = gather(run.fetch, work=self._work, max_bytes=run.max_result_bytes)
        if found.notes:
            self._say_in_stderr("".join(f"--fetch: {note}\n" for note in found.notes))
        return found.files

    @contextmanager
    def _interruptible(self, run: Run) -> Iterator[None]:
        """Let an interrupt end the block. (A job that is no session is interrupted by nobody but
        itself.)"""
        if not run.keep:
            yield
            return
        try:
            self._takes_interrupts = True
            if self._was_interrupted:
                raise KeyboardInterrupt
            yield
        finally:
            self._takes_interrupts = False
            self._capture.is_interrupted = False  # too late to be said
            try:
                signal.signal(signal.SIGINT, self._on_interrupt)  # whatever the cell has set
            except BaseException:  # its own handler, called for the last time
                signal.signal(signal.SIGINT, self._on_interrupt)

    def _failed(self, error: BaseException, run: Run) -> Done:
        from gridx.remote_error import exception_to_data

        from .shell import file_of

        hide_runtime_frames(error)
        data = exception_to_data(error, {file_of(run.call)})
        self._capture.publish_with_next(ErrorOutput(call=run.call, error=data))
        return Done(
            completed=False,
            exit_code=exit_code_of(error) if isinstance(error, SystemExit) else 1,
            message=one_line(error),
            memory_error=isinstance(error, MemoryError),
            interrupted=isinstance(error, KeyboardInterrupt),
        )

    def _say_too_large(self, size_bytes: int, limit_bytes: int, parts: Mapping[str, Any]) -> None:
        from .sizes import largest

        named = ", ".join(f"{name} ({format_bytes(size)})" for name, size in largest(parts))
        self._say_in_stderr(
            f"What this cell would bring home takes {format_bytes(size_bytes)}, more than the "
            f"{format_bytes(limit_bytes)} that may come. Nothing was sent"
            f"{'. The largest: ' + named if named else ''}. "
            "Name the variables that you need with --out, or make them smaller in the cell.\n"
        )

    def _say_in_stderr(self, text: str) -> None:
        self._capture.publish(Stream(call=self._capture.call, name="stderr", text=text))


def _read(fd: int, size_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < size_bytes:
        piece = os.read(fd, size_bytes - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)


def _c_stdout_flusher() -> Callable[[], object]:
    """Return what writes the text that C code has printed and left in its own buffer.

    In a kernel it would come out with some later cell; here the process ends. Only that stream:
    flushing all of them waits for whoever reads from one.
    """
    libc = ctypes.CDLL(None)
    try:
        stdout = ctypes.c_void_p.in_dll(libc, "stdout")
    except ValueError:  # another C library than glibc or musl
        return lambda: None
    return lambda: libc.fflush(stdout)


def _no_input(prompt: object = "", /) -> str:
    raise EOFError("input() cannot ask anybody here; pass the value as a variable.")


def _no_password(prompt: object = "", stream: object = None) -> str:
    raise EOFError("getpass() cannot ask anybody here; pass the value as a variable.")


def _prefer_added_packages() -> None:
    """Let the job find added packages first: after the runtime has imported its own."""
    added = [folder for folder in ADDED_DIRS if os.path.isdir(folder)]
    if not added:
        return
    at = sys.path.index(SITE_DIR) if SITE_DIR in sys.path else len(sys.path)
    sys.path[at:at] = added
    os.environ["PYTHONPATH"] = os.pathsep.join([*added, SITE_DIR])
    names = {name.partition(".")[0] for folder in added for name in os.listdir(folder)}
    # Another version of what the warm shell has imported is the job's all the same. The shell
    # itself goes on with the one that it has; what PID 1 shares with it is not exchanged.
    names -= _KEPT | sys.stdlib_module_names
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]
    importlib.invalidate_caches()


def _prepare_matplotlib() -> None:
    """Give matplotlib a folder that it may write to, with the image's list of fonts in it."""
    if not os.path.isdir(FONTS_DIR):
        return
    os.makedirs(MATPLOTLIB_DIR, exist_ok=True)
    for name in os.listdir(FONTS_DIR):
        target = f"{MATPLOTLIB_DIR}/{name}"
        if name.startswith("fontlist") and not os.path.lexists(target):
            os.symlink(f"{FONTS_DIR}/{name}", target)
    os.environ["MPLCONFIGDIR"] = MATPLOTLIB_DIR


def _start_others_as_usual() -> None:
    """Have interpreters that the job starts (joblib, multiprocessing) look for packages.

    They take over the flags of this one, which was started with as little as it needs.
    """
    own_flags: Callable[[], list[str]] = subprocess._args_from_interpreter_flags  # type: ignore[attr-defined]

    def flags_for_others() -> list[str]:
        return [flag for flag in own_flags() if flag not in ("-I", "-S", "-s", "-E", "-P")]

    subprocess._args_from_interpreter_flags = flags_for_others  # type: ignore[attr-defined]


def _complete_builtins() -> None:
    """Add exit, quit and help, which ``-S`` leaves out."""
    import site

    site.setquit()
    site.sethelper()


def parse_limits(words: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Return resource limits from words such as ``as=1073741824`` and ``nofile=1024``.

    Raises:
        ProtocolError: a word is not of that form.
    """
    limits: list[tuple[int, int]] = []
    for word in words:
        name, _, value = word.partition("=")
        number: Any = getattr(resource, f"RLIMIT_{name.upper()}", None)
        if number is None or not value.isdecimal():
            raise ProtocolError(f"{word!r} is not a resource limit, such as nofile=1024.")
        limits.append((number, int(value)))
    return tuple(limits)
