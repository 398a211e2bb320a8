"""The same client for scripts and notebook kernels, without ``await``.

No second implementation: one event loop runs in one daemon thread of the process, and every
call here is a call of ``gridx.client`` there. A job's updates are read by the caller's own
thread, with short waits, so that an interrupt gets through at once.

An interrupt may come between any two instructions of the caller's thread. Nothing here that it
leaves half done may hold up the loop, or leave a job running that nobody sees.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar, overload

import msgspec

from .blobs import Blob
from .client import Client, Job
from .clock import monotonic_s
from .errors import InvalidRequest, JobError, TransportError
from .events import Stream
from .feed import START
from .ids import new_job_id
from .link import PATIENCE_S
from .protocol import ClientWelcome, Position
from .resources import MIB
from .schemas import (
    MAX_RETRIES,
    AccountView,
    BlobRef,
    CellSpec,
    GridStatus,
    Health,
    JobDetail,
    JobList,
    JobRequest,
    JobView,
    Limits,
    SessionSpec,
    TokenView,
    WorkerView,
)
from .session import Call, Session
from .settings import ConnectionSettings, load
from .transfer import MAX_DOWNLOAD_BYTES, Progress
from .updates import EventArrived, Finished, Restarted, Update

T = TypeVar("T")

# An interrupt ends a wait at once in the main thread; elsewhere, and where the signal was
# delivered to another thread, it is seen after this long.
_WAIT_S: Final = 0.2
_CANCEL_S: Final = 2.0
_STOP_S: Final = 4.0  # more than Client.close() takes
_KEPT_TEXT_CHARS: Final = 16 * MIB


class _Call(Generic[T]):
    """One call in the loop, and the way of its result to the thread that waits for it.

    It can be taken back at any time, before it begins and after its result is there. No
    concurrent Future: an interrupt at the wrong moment leaves its lock locked, and the loop,
    which has to set the result, behind it.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, function: Callable[[], Coroutine[Any, Any, T]]
    ) -> None:
        self._loop = loop
        self._function = function
        self._task: asyncio.Task[T] | None = None
        self._ended: queue.SimpleQueue[asyncio.Task[T]] = queue.SimpleQueue()

    def begin(self) -> None:
        """Let the loop call the function."""
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._function())
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # taken: who waits for it may have left
        self._ended.put(task)

    def result(
        self, timeout_s: float | None = None, on_wait: Callable[[], None] | None = None
    ) -> T:
        """Wait for the result, and call ``on_wait`` now and then meanwhile.

        Raises:
            TimeoutError: it did not come within ``timeout_s``; the call goes on.
            TransportError: the loop was ended before.
        """
        until_s = None if timeout_s is None else monotonic_s() + timeout_s
        while True:
            left_s = _WAIT_S if until_s is None else max(0.0, until_s - monotonic_s())
            try:
                task = self._ended.get(timeout=min(_WAIT_S, left_s))
            except queue.Empty:
                if left_s == 0.0:
                    raise TimeoutError(f"No answer came within {timeout_s} s.") from None
                if on_wait is not None:
                    on_wait()
                continue
            if on_wait is not None:
                on_wait()
            if task.cancelled():
                raise TransportError("This client is closed.", hint="Make a new one.")
            return task.result()

    def take_back(self, undo: Callable[[T], object]) -> None:
        """Cancel the call, or ``undo`` it when its result is there and reached nobody."""
        self._loop.call_soon_threadsafe(self._take_back, undo)

    def _take_back(self, undo: Callable[[T], object]) -> None:
        task = self._task
        if task is None:
            return  # interrupted before it was begun
        if not task.done():
            task.cancel()
        elif not task.cancelled() and task.exception() is None:
            undo(task.result())


class _LoopThread:
    """The event loop of this process, in its one daemon thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.clients: weakref.WeakSet[Client] = weakref.WeakSet()
        self._thread = threading.Thread(target=self._run, name="gridx", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Call ``function`` in the loop and wait for its result."""
        call = _Call(self.loop, function)
        call.begin()
        return call.result()

    def stop(self) -> None:
        """End the loop and its tasks, in bounded time."""
        if self.pid == os.getpid() and self._thread.is_alive():
            self.loop.call_soon_threadsafe(lambda: self.loop.create_task(self._wind_up()))
            self._thread.join(_STOP_S)
            if not self._thread.is_alive():
                self.loop.close()

    async def _wind_up(self) -> None:
        await asyncio.gather(*(client.close() for client in list(self.clients)))
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        self.loop.stop()


_start_lock = threading.Lock()
_thread: _LoopThread | None = None


def _loop_thread() -> _LoopThread:
    """Return this process's loop; after a fork, the child gets its own."""
    global _thread
    with _start_lock:
        if _thread is None:
            _thread = _LoopThread()
        return _thread


def _after_fork() -> None:
    """In the child there is no loop thread, and the lock may be held by a thread that is not."""
    global _thread, _start_lock, _default
    _start_lock = threading.Lock()
    _thread = None
    _default = None


def _at_exit() -> None:
    if _thread is not None:
        _thread.stop()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


class _ShownProgress:
    """Progress that the loop notes and the caller's thread shows: a callback that draws in a
    notebook must not do so from another thread."""

    def __init__(self, show: Progress | None) -> None:
        self._show = show
        self._noted: tuple[int, int] | None = None
        self._shown: tuple[int, int] | None = None

    def note(self, done_bytes: int, total_bytes: int) -> None:
        """Called in the loop."""
        self._noted = done_bytes, total_bytes

    def show(self) -> None:
        """Called in the caller's thread."""
        noted = self._noted
        if self._show is not None and noted is not None and noted != self._shown:
            self._shown = noted
            self._show(*noted)


class BlockingJob:
    """One watched job. ``updates`` has one reader at a time."""

    def __init__(self, job: Job | Call, thread: _LoopThread) -> None:
        self._job: Job | Call = job
        self._thread = thread
        self._texts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._room_chars = _KEPT_TEXT_CHARS

    @property
    def id(self) -> str:
        """The job's id."""
        return self._job.id

    @property
    def sent_bytes(self) -> int:
        """What was sent of variables and blobs, as it travelled; 0 when attached."""
        return self._job.sent_bytes

    @property
    def view(self) -> JobView:
        """The newest state that came."""
        return self._job.view

    @property
    def position(self) -> Position:
        """Where the output is that was read last: attach there to go on."""
        return self._job.position

    @property
    def finished(self) -> Finished | None:
        """The last update, once it was read."""
        return self._job.finished

    @property
    def stdout(self) -> str:
        """What the job printed, as far as its updates were read (at most 16 Mi characters)."""
        return "".join(self._texts["stdout"])

    @property
    def stderr(self) -> str:
        """What the job wrote on stderr, as far as its updates were read."""
        return "".join(self._texts["stderr"])

    @overload
    def updates(self, *, idle_s: None = None) -> Iterator[Update]: ...

    @overload
    def updates(self, *, idle_s: float) -> Iterator[Update | None]: ...

    def updates(self, *, idle_s: float | None = None) -> Iterator[Update | None]:
        """Yield what happens, ``Finished`` last; with ``idle_s``, None after so long a silence.

        Raises:
            TransportError: the coordinator was lost and stayed away.
            ProtocolError: what came is not in the protocol.
        """
        while self._job.finished is None:
            self._same_process()
            update = self._job.take(_WAIT_S if idle_s is None else idle_s)
            if update is not None:
                self._note(update)
                yield update
            elif idle_s is not None:
                yield None

    def _note(self, update: Update) -> None:
        if isinstance(update, Restarted):
            for texts in self._texts.values():
                texts.clear()
            self._room_chars = _KEPT_TEXT_CHARS
        elif isinstance(update, EventArrived) and isinstance(update.event, Stream):
            text = update.event.text[: self._room_chars]
            self._room_chars -= len(text)
            self._texts[update.event.name].append(text)

    def wait(self, timeout_s: float | None = None) -> Finished:
        """Read the updates to the end and return the last.

        Raises:
            TimeoutError: the job did not end within ``timeout_s``; it goes on.
        """
        until_s = None if timeout_s is None else monotonic_s() + timeout_s
        for _ in self.updates(idle_s=_WAIT_S if timeout_s is None else min(_WAIT_S, timeout_s)):
            if until_s is not None and self.finished is None and monotonic_s() >= until_s:
                raise TimeoutError(f"Job {self.id} did not end within {timeout_s} s.")
        assert self.finished is not None, "updates() ends with it or raises"
        return self.finished

    def cancel(self, timeout_s: float = _CANCEL_S) -> Finished | None:
        """Ask for the job's end and wait for it at most ``timeout_s``.

        Returns:
            the end with its cost and balance; None when it has not come yet. The request
            stands, and is repeated after a cut.

        Raises:
            GridXError: the coordinator refuses; never that it cannot be reached.
        """
        until_s = monotonic_s() + timeout_s
        if self.finished is not None:
            return self.finished
        self._same_process()
        asked = _Call(self._thread.loop, self._job.cancel)
        asked.begin()
        try:
            asked.result(timeout_s)
            return self.wait(max(0.0, until_s - monotonic_s()))
        except (TransportError, TimeoutError):
            return None

    def download(self, refs: Sequence[BlobRef], on_progress: Progress | None = None) -> bytearray:
        """Return blobs of this job joined in order; see ``BlockingClient.download``."""
        self._same_process()
        progress = _ShownProgress(on_progress)
        return _interruptible(
            self._thread, lambda: self._job.download(refs, progress.note), progress.show
        )

    def detach(self) -> None:
        """Stop watching. The job goes on."""
        self._same_process()
        self._thread.loop.call_soon_threadsafe(self._job.detach)

    def _same_process(self) -> None:
        if self._thread.pid != os.getpid():
            raise TransportError(
                "This job is watched by the process that submitted it, and this is a fork of it.",
                hint=f"Use client.attach({self.id!r}) here.",
            )


class BlockingCall(BlockingJob):
    """One call of a session: a job for whoever reads its updates. ``cancel`` interrupts it, and
    the session goes on if it obeys in time."""

    def __init__(self, call: Call, thread: _LoopThread) -> None:
        super().__init__(call, thread)
        self._call = call

    @property
    def number(self) -> int:
        """Its number in the session; call 0 has opened it."""
        return self._call.number


class BlockingSession:
    """An open session: calls that run one after the other, in one namespace."""

    def __init__(self, session: Session, thread: _LoopThread) -> None:
        self._session = session
        self._thread = thread
        self._newest = BlockingCall(session.newest, thread)

    @property
    def id(self) -> str:
        """The id of its job."""
        return self._session.id

    @property
    def name(self) -> str:
        """What its user calls it."""
        return self._session.name

    @property
    def view(self) -> JobView:
        """The newest state that came of the whole session."""
        return self._session.view

    @property
    def newest(self) -> BlockingCall:
        """The newest call: running, or ended with its result."""
        if self._newest.number != self._session.newest.number:
            self._newest = BlockingCall(self._session.newest, self._thread)
        return self._newest

    @property
    def finished(self) -> Finished | None:
        """Its end with what it cost, as soon as that has come; None while it is open."""
        return self._session.finished

    def error(self) -> JobError | None:
        """Return why the session is no more (WorkerLost, SessionEnded, …); None while it is open."""
        return self._session.error()

    def on_end(self, callback: Callable[[Finished], object]) -> None:
        """Have ``callback`` called once when it has ended: in another thread, so be short."""
        self._thread.loop.call_soon_threadsafe(self._session.on_end, callback)

    def call(
        self,
        code: str,
        *,
        cell: CellSpec,
        inputs: bytes = b"",
        blobs: Sequence[Blob] = (),
        timeout_s: float = 60.0,
        on_progress: Progress | None = None,
    ) -> BlockingCall:
        """Submit the next call and return it once the coordinator has accepted it.

        Args: as ``BlockingClient.submit``.

        Raises:
            WorkerLost, SessionEnded: the session is no more.
            Conflict: its last call has not ended.
            GridXError: whatever else the coordinator refuses.
            KeyboardInterrupt: while it waits; the call, if it was sent, is interrupted.
        """
        self._same_process()
        progress, session = _ShownProgress(on_progress), self._session
        asked = _Call(
            self._thread.loop,
            lambda: session.call(
                code,
                cell=cell,
                inputs=inputs,
                blobs=blobs,
                timeout_s=timeout_s,
                on_progress=progress.note,
            ),
        )
        try:
            asked.begin()
            call = asked.result(on_wait=progress.show if blobs else None)
        except BaseException:
            asked.take_back(session.give_up)
            raise
        self._newest = BlockingCall(call, self._thread)
        return self._newest

    def interrupt(self) -> None:
        """Interrupt the call that runs, if one does; its end comes with its updates."""
        self._same_process()
        self._thread.call(self._session.interrupt)

    def end(self, timeout_s: float = _CANCEL_S) -> Finished | None:
        """Close the session and wait for its end at most ``timeout_s``.

        Returns:
            the end with its cost; None when it has not come yet. The request stands, and is
            repeated after a cut.
        """
        if self.finished is not None:
            return self.finished
        self._same_process()
        asked = _Call(self._thread.loop, self._session.end)
        asked.begin()
        try:
            return asked.result(timeout_s)
        except (TransportError, TimeoutError):
            return None

    def detach(self) -> None:
        """Stop watching. The session goes on until it was idle for long enough."""
        self._same_process()
        self._thread.loop.call_soon_threadsafe(self._session.detach)

    def _same_process(self) -> None:
        if self._thread.pid != os.getpid():
            raise TransportError(
                "This session belongs to the process that opened it, and this is a fork of it.",
                hint=f"Use client.attach_session({self.id!r}) here.",
            )


class BlockingClient:
    """A client of one coordinator, for any thread. A forked child opens its own connection.

    Args: as ``gridx.Client``.
    """

    def __init__(
        self,
        settings: ConnectionSettings | None = None,
        *,
        url: str | None = None,
        user: str | None = None,
        token: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.settings = settings or load(url, user, token)
        self._patience_s = patience_s
        self._made: tuple[_LoopThread, Client] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _client(self) -> tuple[_LoopThread, Client]:
        thread = _loop_thread()
        if self._made is None or self._made[0] is not thread:

            async def make() -> Client:
                client = Client(self.settings, patience_s=self._patience_s)
                thread.clients.add(client)
                return client

            self._made = (thread, thread.call(make))
        return self._made

    @property
    def welcome(self) -> ClientWelcome | None:
        """The coordinator's newest welcome: prices, and the balance at that moment."""
        return self._made[1].welcome if self._made else None

    def connect(self) -> ClientWelcome:
        """Open the connection now. Raises TransportError or AuthError."""
        thread, client = self._client()
        return thread.call(client.connect)

    def close(self) -> None:
        """Close the connection. Jobs go on."""
        if self._made is not None and self._made[0].pid == os.getpid():
            thread, client = self._made
            self._made = None
            thread.call(client.close)

    def submit(
        self,
        code: str,
        *,
        timeout_s: float | None = None,
        cpus: float | None = None,
        memory_bytes: int | None = None,
        gpus: int | None = None,
        gpu_model: str = "",
        disk_bytes: int | None = None,
        language: str = "python",
        image: str = "",
        pip: Sequence[str] = (),
        cell: CellSpec | None = None,
        inputs: bytes = b"",
        blobs: Sequence[Blob] = (),
        on_progress: Progress | None = None,
        retries: int | None = None,
        job_id: str | None = None,
    ) -> BlockingJob:
        """Submit ``code`` and return the job once the coordinator has accepted it.

        Args:
            code: the source, as text.
            timeout_s, cpus, memory_bytes, gpus: limits; None takes the default (60 s, 1 core,
                1 GiB, no GPU).
            gpu_model: part of the name that its GPUs must have, such as "A100"; "": any.
            disk_bytes: of the job's folder, which lies in its memory; None: half of it.
            language: of ``code``: "python", "bash" or "node".
            image: the family of images to run in, such as "torch"; "": the language's own.
            pip: packages to install for it, such as ("polars==1.20", "tqdm>=4").
            cell, inputs: what makes it a notebook cell.
            blobs: all that ``inputs`` and ``cell.files`` refer to; what the coordinator lacks is
                sent first.
            on_progress: called in this thread with the bytes that were sent and those that have
                to be, five times a second at most.
            retries: how often to try again after a lost worker; None: the grid's own rule.
            job_id: the idempotency key; the same id is the same job.

        Raises:
            GridXError: whatever the coordinator refuses, by its own class.
            KeyboardInterrupt: while it waits; the job, if it was sent, is cancelled as soon as
                the coordinator answers.
        """
        request = JobRequest(
            code=code,
            language=language,
            limits=_limits(
                timeout_s=timeout_s,
                cpus=cpus,
                memory_bytes=memory_bytes,
                gpus=gpus,
                gpu_model=gpu_model or None,
                disk_bytes=disk_bytes,
            ),
            job_id=job_id or new_job_id(),
            retries=_retries(retries),
            image=image,
            pip=tuple(pip),
        )
        thread, client = self._client()
        progress = _ShownProgress(on_progress)
        return _watched(
            thread,
            client,
            lambda: client.submit(
                request, cell=cell, inputs=inputs, blobs=blobs, on_progress=progress.note
            ),
            progress.show if blobs else None,
        )

    def download(
        self,
        job_id: str,
        refs: Sequence[BlobRef],
        on_progress: Progress | None = None,
        *,
        limit_bytes: int = MAX_DOWNLOAD_BYTES,
    ) -> bytearray:
        """Return blobs of a job, such as ``Finished.result_blobs``, joined in order.

        Args:
            on_progress: called in this thread, five times a second at most.

        Raises: as ``Client.download``; and KeyboardInterrupt, which ends it.
        """
        thread, client = self._client()
        progress = _ShownProgress(on_progress)
        return _interruptible(
            thread,
            lambda: client.download(job_id, refs, progress.note, limit_bytes=limit_bytes),
            progress.show,
        )

    def attach(self, job_id: str, *, after: Position = START) -> BlockingJob:
        """Return the job of that id, watched from ``after`` on. Raises NotFound."""
        thread, client = self._client()
        return _watched(thread, client, lambda: client.attach(job_id, after=after))

    def open_session(
        self,
        code: str,
        name: str,
        *,
        cell: CellSpec,
        inputs: bytes = b"",
        blobs: Sequence[Blob] = (),
        call_timeout_s: float = 60.0,
        open_limit_s: float = 3600.0,
        idle_s: float = 600.0,
        cpus: float | None = None,
        memory_bytes: int | None = None,
        gpus: int | None = None,
        gpu_model: str = "",
        disk_bytes: int | None = None,
        image: str = "",
        pip: Sequence[str] = (),
        on_progress: Progress | None = None,
        job_id: str | None = None,
    ) -> BlockingSession:
        """Open a session whose call 0 is ``code``; return it once the coordinator has accepted it.

        Args:
            name: what its user calls it.
            call_timeout_s: the limit of call 0.
            open_limit_s: how long it may be open: the hold is the rate times that.
            idle_s: it is closed after so long without a call.
            cell, inputs, blobs, cpus, memory_bytes, gpus, gpu_model, disk_bytes, image, pip,
                on_progress, job_id: as for ``submit``.

        Raises:
            GridXError: whatever the coordinator refuses, by its own class.
            KeyboardInterrupt: while it waits; the session, if it was sent, is closed.
        """
        request = JobRequest(
            code=code,
            limits=_limits(
                timeout_s=open_limit_s,
                cpus=cpus,
                memory_bytes=memory_bytes,
                gpus=gpus,
                gpu_model=gpu_model or None,
                disk_bytes=disk_bytes,
            ),
            job_id=job_id or new_job_id(),
            image=image,
            pip=tuple(pip),
        )
        session = SessionSpec(name=name, idle_s=idle_s)
        thread, client = self._client()
        progress = _ShownProgress(on_progress)
        return _opened(
            thread,
            client,
            lambda: client.open_session(
                request,
                session,
                cell=cell,
                inputs=inputs,
                blobs=blobs,
                call_timeout_s=call_timeout_s,
                on_progress=progress.note,
            ),
            progress.show if blobs else None,
        )

    def attach_session(self, job_id: str) -> BlockingSession:
        """Return the session of that id, open or ended, with its newest call.

        Raises:
            NotFound: there is none, or it is not yours.
            InvalidRequest: the job is no session.
        """
        thread, client = self._client()
        call = _Call(thread.loop, lambda: client.attach_session(job_id))
        call.begin()
        return BlockingSession(call.result(), thread)

    def cancel(self, job_id: str) -> JobView:
        """Ask for the end of a job that need not be watched; return its state."""
        thread, client = self._client()
        return thread.call(lambda: client.cancel(job_id))

    def jobs(self, *, limit: int | None = None, before: str | None = None) -> JobList:
        """Return this user's jobs, newest first."""
        thread, client = self._client()
        return thread.call(lambda: client.jobs(limit=limit, before=before))

    def job(self, job_id: str) -> JobDetail:
        """Return one job with its code and its output as text."""
        thread, client = self._client()
        return thread.call(lambda: client.job(job_id))

    def workers(self) -> tuple[WorkerView, ...]:
        """Return the workers that the coordinator knows."""
        thread, client = self._client()
        return thread.call(client.workers)

    def balance(self, user: str | None = None) -> AccountView:
        """Return the account of ``user``, or of this client's user."""
        thread, client = self._client()
        return thread.call(lambda: client.balance(user))

    def status(self) -> GridStatus:
        """Return the grid in numbers."""
        thread, client = self._client()
        return thread.call(client.status)

    def health(self) -> Health:
        """Return whether the coordinator is well, and its version."""
        thread, client = self._client()
        return thread.call(client.health)

    def register(self, user: str, password: str) -> TokenView:
        """Make an account and return its first token."""
        thread, client = self._client()
        return thread.call(lambda: client.register(user, password))

    def login(self, user: str, password: str) -> TokenView:
        """Return a new token for ``user``."""
        thread, client = self._client()
        return thread.call(lambda: client.login(user, password))


def _limits(**given: Any) -> Limits:
    """Return the limits that are ``given``; None takes the default."""
    try:
        named = {name: value for name, value in given.items() if value is not None}
        return msgspec.convert(named, Limits)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(f"A limit is out of range: {exc}.") from None


def _retries(wanted: int | None) -> int | None:
    if wanted is not None and not 0 <= wanted <= MAX_RETRIES:
        raise InvalidRequest(f"A job may be tried again 0 to {MAX_RETRIES} times, not {wanted}.")
    return wanted


def _interruptible(
    thread: _LoopThread, ask: Callable[[], Coroutine[Any, Any, T]], on_wait: Callable[[], None]
) -> T:
    """Call ``ask`` in the loop and wait for it; an interrupt ends the call there too."""
    call = _Call(thread.loop, ask)
    try:
        call.begin()
        return call.result(on_wait=on_wait)
    except BaseException:
        call.take_back(lambda result: None)
        raise


def _watched(
    thread: _LoopThread,
    client: Client,
    ask: Callable[[], Coroutine[Any, Any, Job]],
    on_wait: Callable[[], None] | None = None,
) -> BlockingJob:
    call = _Call(thread.loop, ask)
    try:
        # Begun in here: an interrupt may come before ``begin`` returns, and the loop be faster.
        call.begin()
        return BlockingJob(call.result(on_wait=on_wait), thread)
    except BaseException:
        call.take_back(client.give_up)
        raise


def _opened(
    thread: _LoopThread,
    client: Client,
    ask: Callable[[], Coroutine[Any, Any, Session]],
    on_wait: Callable[[], None] | None,
) -> BlockingSession:
    call = _Call(thread.loop, ask)
    try:
        call.begin()
        return BlockingSession(call.result(on_wait=on_wait), thread)
    except BaseException:
        call.take_back(client.give_up_session)
        raise


_default: BlockingClient | None = None


def connect(
    url: str | None = None, user: str | None = None, token: str | None = None
) -> BlockingClient:
    """Return a connected client.

    Raises:
        TransportError: nothing answers; the sentence names the address.
        AuthError: the coordinator does not accept who we are.
    """
    client = BlockingClient(url=url, user=user, token=token)
    client.connect()
    return client


def submit(code: str, **options: Any) -> BlockingJob:
    """Submit ``code`` with this process's own client, from the settings file and environment.

    Args: as ``BlockingClient.submit``.
    """
    global _default
    if _default is None:
        _default = BlockingClient()
    return _default.submit(code, **options)
