"""The asynchronous client: submit, watch, cancel, and ask what the grid knows.

One WebSocket carries every job of a client. When it is cut, the client dials again, sends
again what was not answered (a job's id makes that safe), and goes on with each job at the byte
where it stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

import msgspec

from .blobs import Blob
from .errors import (
    BlobsMissing,
    Conflict,
    GridXError,
    NotBuilt,
    PayloadTooLarge,
    TransportError,
    from_body,
)
from .feed import FEED_LIMIT_BYTES, START, Ask, Feed
from .ids import new_job_id, parse_job_id
from .link import PATIENCE_S, FromCoordinator, Link
from .protocol import (
    MAX_PAYLOAD_BYTES,
    Cancel,
    ClientWelcome,
    JobChanged,
    Message,
    Output,
    Position,
    Refused,
    Submit,
    Unwatch,
    Watch,
)
from .resources import format_bytes
from .rest import Rest
from .schemas import (
    AccountView,
    BlobRef,
    CellSpec,
    Credentials,
    GridStatus,
    Health,
    JobDetail,
    JobList,
    JobRequest,
    JobView,
    SessionSpec,
    TokenView,
    WorkerList,
    WorkerView,
)
from .session import Session
from .settings import ConnectionSettings, load
from .transfer import MAX_DOWNLOAD_BYTES, Progress, download, upload
from .watched import Watched, answer_to_come, resolve

_UPLOADS: Final = 3  # a blob that was found there may be collected before the job comes
_UNSEEN_S: Final = 2.0  # how long close() waits for the end of jobs that nobody will see


class Job(Watched):
    """One watched job. ``updates`` has one reader at a time."""

    def __init__(self, client: Client, job_id: str, feed: Feed, submit: Submit | None) -> None:
        super().__init__(job_id, feed)
        self._client = client
        self._submit = submit  # until it is answered
        self._was_sent = False  # the submission, answered or not
        self._accepted = answer_to_come()
        self._cancelling: asyncio.Future[None] | None = None
        self._wants_cancel = False

    async def download(
        self, refs: Sequence[BlobRef], on_progress: Progress | None = None
    ) -> bytearray:
        """Return blobs of this job joined in order; see ``Client.download``."""
        return await self._client.download(self.id, refs, on_progress)

    async def cancel(self) -> None:
        """Ask for the job's end and return once the coordinator has answered.

        The request outlives a cut. What the job cost comes with ``Finished``.
        """
        await self._client.cancel_watched(self)

    def detach(self) -> None:
        """Stop watching. The job goes on."""
        self._client.forget(self)

    def _resume_soon(self) -> None:
        self._client.call_soon(lambda: self._client.resume(self))


class Client:
    """A client of one coordinator, for the event loop that is running when it is first used.

    Args:
        settings: from ``gridx.settings.load``; without it, the arguments are given to ``load``.
        patience_s: how long a lost coordinator is waited for while jobs are watched.
        feed_limit_bytes: how much output of one job waits for a slow reader.
    """

    def __init__(
        self,
        settings: ConnectionSettings | None = None,
        *,
        url: str | None = None,
        user: str | None = None,
        token: str | None = None,
        patience_s: float = PATIENCE_S,
        feed_limit_bytes: int = FEED_LIMIT_BYTES,
    ) -> None:
        self.settings = settings or load(url, user, token)
        self._feed_limit_bytes = feed_limit_bytes
        self._patience_s = patience_s
        self._jobs: dict[str, list[Job]] = {}
        self._sessions: dict[str, Session] = {}
        self._unseen: set[asyncio.Task[None]] = set()
        self._rest_calls: Rest | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link = Link(
            self.settings,
            on_message=self._on_message,
            on_up=self._on_up,
            on_down=self._on_down,
            on_gone=self._on_gone,
            is_needed=lambda: bool(self._jobs or self._sessions),
            patience_s=patience_s,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def welcome(self) -> ClientWelcome | None:
        """The coordinator's newest welcome: prices, and the balance at that moment."""
        return self._link.welcome

    async def connect(self) -> ClientWelcome:
        """Open the connection now instead of with the first job.

        Raises:
            TransportError: nothing answers.
            AuthError: the coordinator does not accept who we are.
        """
        self._loop = asyncio.get_running_loop()
        return await self._link.open()

    async def close(self) -> None:
        """Close the connection. Jobs go on; their readers get a TransportError.

        Submissions that were given up are ended first, for at most 2 s.
        """
        if self._unseen:
            await asyncio.wait(self._unseen, timeout=_UNSEEN_S)
        await self._link.close()
        self._on_gone(TransportError("The client was closed.", hint="Attach to the job again."))
        if self._rest_calls is not None:
            self._rest_calls.close()
            self._rest_calls = None

    # --- jobs -------------------------------------------------------------------------------

    async def submit(
        self,
        job: JobRequest,
        *,
        cell: CellSpec | None = None,
        inputs: bytes = b"",
        blobs: Sequence[Blob] = (),
        on_progress: Progress | None = None,
    ) -> Job:
        """Submit ``job`` and return it, watched, once the coordinator has accepted it.

        Without a ``job_id`` it gets one. After a cut the same id is sent again. Who is
        cancelled while this waits will never see the job: it is cancelled too, as soon as the
        coordinator answers.

        Args:
            blobs: all that ``inputs`` and ``cell.files`` refer to. Those that the coordinator
                lacks are sent first, in this order; their bytes must not change meanwhile.
            on_progress: called with the bytes that were sent and those that have to be.

        Raises:
            GridXError: whatever the coordinator refuses, by its own class.
            TransportError: it does not answer; with a cut in between, the job may be there.
        """
        welcome = await self.connect()
        _check_release(welcome, job, cell, blobs)
        _check_inputs(welcome, inputs)
        job_id = parse_job_id(job.job_id) if job.job_id else new_job_id()
        job = msgspec.structs.replace(job, job_id=job_id, user_id=None)
        refs = tuple(blob.ref for blob in blobs)
        submission = Submit(job=job, cell=cell, inputs=inputs, blobs=refs)
        sent_bytes = len(inputs)
        for tries_left in reversed(range(_UPLOADS)):
            if blobs:
                sent_bytes += await self.upload(blobs, on_progress)
            watched = Job(self, job_id, self._feed(START), submission)
            watched.sent_bytes = sent_bytes
            try:
                return await self._watch(watched)
            except BlobsMissing:
                if not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    async def upload(self, blobs: Sequence[Blob], on_progress: Progress | None = None) -> int:
        """Put those of ``blobs`` that the coordinator lacks; return the bytes that travelled.

        Raises:
            BlobMismatch: their bytes changed meanwhile.
            TransportError: the coordinator was lost and stayed away.
        """
        return await upload(
            self._rest,
            self.settings.user,
            blobs,
            patience_s=self._patience_s,
            on_progress=on_progress,
        )

    async def download(
        self,
        job_id: str,
        refs: Sequence[BlobRef],
        on_progress: Progress | None = None,
        *,
        limit_bytes: int = MAX_DOWNLOAD_BYTES,
    ) -> bytearray:
        """Return blobs of a job, such as ``Finished.result_blobs``, joined in order.

        Raises:
            PayloadTooLarge: they come to more than ``limit_bytes``.
            NotFound: the job does not refer to one of them, or is not yours.
            TransportError: the coordinator was lost and stayed away.
            ProtocolError: what came is not what was named.
        """
        return await download(
            self._rest,
            self.settings.user,
            parse_job_id(job_id),
            refs,
            patience_s=self._patience_s,
            on_progress=on_progress,
            limit_bytes=limit_bytes,
        )

    async def open_session(
        self,
        job: JobRequest,
        session: SessionSpec,
        *,
        cell: CellSpec,
        inputs: bytes = b"",
        blobs: Sequence[Blob] = (),
        call_timeout_s: float | None = None,
        on_progress: Progress | None = None,
    ) -> Session:
        """Open a session and return it, watched, once the coordinator has accepted it.

        Its first call is ``job.code`` with ``cell``: ``Session.newest``. Who is cancelled while
        this waits will never see the session: it is closed, as soon as the coordinator answers.

        Args:
            job: ``limits.timeout_s`` is how long the session may be open, and held for.
            call_timeout_s: the limit of the first call; None: the session's.
            cell, inputs, blobs, on_progress: as for ``submit``.

        Raises:
            GridXError: whatever the coordinator refuses, by its own class.
            TransportError: it does not answer.
        """
        welcome = await self.connect()
        _check_release(welcome, job, cell, blobs, is_session=True)
        _check_inputs(welcome, inputs)
        job_id = parse_job_id(job.job_id) if job.job_id else new_job_id()
        submission = Submit(
            job=msgspec.structs.replace(job, job_id=job_id, user_id=None),
            cell=cell,
            inputs=inputs,
            blobs=tuple(blob.ref for blob in blobs),
            session=session,
            call_timeout_s=call_timeout_s,
        )
        sent_bytes = len(inputs)
        for tries_left in reversed(range(_UPLOADS)):
            if blobs:
                sent_bytes += await self.upload(blobs, on_progress)
            opened = Session(self, job_id, submission, feed_limit_bytes=self._feed_limit_bytes)
            opened.newest.sent_bytes = sent_bytes
            try:
                return await self._watch_session(opened)
            except BlobsMissing:
                if not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    async def attach_session(self, job_id: str) -> Session:
        """Return the session of that id: open or ended, with its newest call.

        Raises:
            NotFound: there is none, or it is not yours.
            InvalidRequest: the job is no session.
        """
        await self.connect()
        known = self._sessions.get(parse_job_id(job_id))
        if known is not None:
            return known
        attached = Session(self, job_id, None, feed_limit_bytes=self._feed_limit_bytes)
        return await self._watch_session(attached)

    async def _watch_session(self, session: Session) -> Session:
        self._sessions[session.id] = session
        try:
            session.announce()
            if not self._link.is_up:  # lost between the welcome and here
                await self._link.open()
                session.announce()
            await asyncio.shield(session.accepted)
        except asyncio.CancelledError:
            self.give_up_session(session)
            raise
        except BaseException:
            self.forget_session(session)
            raise
        return session

    def give_up_session(self, session: Session) -> None:
        """Let go of a session that reached nobody: one that was opened here must not stay open."""
        if not session.was_sent:
            self.forget_session(session)
            return
        task = asyncio.create_task(self._end_unseen_session(session), name="gridx client: end")
        self._unseen.add(task)
        task.add_done_callback(self._unseen.discard)

    async def _end_unseen_session(self, session: Session) -> None:
        try:
            await asyncio.shield(session.accepted)
            await session.end()
        except GridXError:
            pass  # refused, or out of reach: there is nobody left to tell
        finally:
            self.forget_session(session)

    def forget_session(self, session: Session) -> None:
        """Stop watching a session. It goes on."""
        if self._sessions.get(session.id) is session:
            del self._sessions[session.id]
            if session.finished is None and session.id not in self._jobs:
                self._link.send(Unwatch(job_id=session.id))

    async def rejoin(self, session: Session) -> None:
        """Watch a session again that was let go when the coordinator was away for long."""
        await self.connect()
        if self._sessions.get(session.id) is not session:
            self._sessions[session.id] = session
            session.announce()

    def send(self, message: Message) -> bool:
        """Send ``message`` if the connection stands; else its sender says it again later."""
        return self._link.send(message)

    async def attach(self, job_id: str, *, after: Position = START) -> Job:
        """Return the job of that id, watched from ``after`` on.

        Raises:
            NotFound: there is none, or it is not yours.
        """
        await self.connect()
        watched = Job(self, parse_job_id(job_id), self._feed(after), None)
        return await self._watch(watched)

    def _feed(self, after: Position) -> Feed:
        return Feed(after=after, limit_bytes=self._feed_limit_bytes)

    async def _watch(self, job: Job) -> Job:
        self._jobs.setdefault(job.id, []).append(job)
        try:
            self._announce(job)
            if not self._link.is_up:  # lost between the welcome and here
                await self._link.open()
                self._announce(job)
            # Shielded: the answer to a submission is awaited even when its caller has left.
            await asyncio.shield(job._accepted)
        except asyncio.CancelledError:
            self.give_up(job)
            raise
        except BaseException:
            self.forget(job)
            raise
        return job

    def give_up(self, job: Job) -> None:
        """Let go of a job that reached nobody: what was submitted here must not run unseen."""
        if not job._was_sent:
            self.forget(job)
            return
        task = asyncio.create_task(self._end_unseen(job), name="gridx client: end unseen job")
        self._unseen.add(task)
        task.add_done_callback(self._unseen.discard)

    async def _end_unseen(self, job: Job) -> None:
        try:
            # Not before it is accepted: a cancel could overtake the submission. It stays watched
            # to its end, so that the cancel is said again after a cut.
            await asyncio.shield(job._accepted)
            await job.cancel()
            await job.wait()
        except GridXError:
            pass  # refused, or out of reach: there is nobody left to tell
        finally:
            self.forget(job)

    def _announce(self, job: Job) -> None:
        """Say what the coordinator must know of ``job`` on this connection."""
        if job._submit is not None:
            job._was_sent = self._link.send(job._submit) or job._was_sent
        else:
            self._link.send(Watch(job_id=job.id, after=job._feed.position))
        if job._wants_cancel:
            self._link.send(Cancel(job_id=job.id))

    async def cancel_watched(self, job: Job) -> None:
        """See ``Job.cancel``."""
        if job._feed.is_over:
            return
        if job._cancelling is None or job._cancelling.done():
            job._cancelling = answer_to_come()
        job._wants_cancel = True
        self._link.send(Cancel(job_id=job.id))
        await asyncio.shield(job._cancelling)

    def forget(self, job: Job) -> None:
        """See ``Job.detach``."""
        watching = self._jobs.get(job.id, [])
        if job in watching:
            watching.remove(job)
            if not watching:
                del self._jobs[job.id]
                if not job._feed.is_over and job.id not in self._sessions:
                    self._link.send(Unwatch(job_id=job.id))

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call ``function`` in the client's loop; may be called from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    def resume(self, job: Job) -> None:
        """End the pause of ``job``, once its reader has made room."""
        self._answer(job, job._feed.resume())

    def _answer(self, job: Job, ask: Ask) -> None:
        job._wake.set()
        if ask is Ask.WATCH:
            self._link.send(Watch(job_id=job.id, after=job._feed.position))
        elif ask is Ask.UNWATCH and self._is_only_watcher(job):
            self._link.send(Unwatch(job_id=job.id))

    def _is_only_watcher(self, job: Job) -> bool:
        return len(self._jobs.get(job.id, [])) == 1 and job.id not in self._sessions

    # --- what the link says -----------------------------------------------------------------

    def _on_message(self, message: FromCoordinator) -> None:
        job_id = message.job.job_id if isinstance(message, JobChanged) else message.job_id
        if (session := self._sessions.get(job_id or "")) is not None:
            session.on_message(message)
            if session.is_over:
                self.forget_session(session)
        for job in list(self._jobs.get(job_id or "", ())):
            match message:
                case Output():
                    self._answer(job, job._feed.on_output(message))
                case JobChanged():
                    self._answer(job, job._feed.on_changed(message))
                    resolve(job._accepted)
                    job._submit = None
                    resolve(job._cancelling)
                case Refused():
                    self._refused(job, from_body(message.error))
            if job._feed.is_over:
                self.forget(job)

    def _refused(self, job: Job, error: GridXError) -> None:
        if not job._accepted.done():
            job._accepted.set_exception(error)
        elif job._wants_cancel and isinstance(error, Conflict):
            job._wants_cancel = False
            resolve(job._cancelling)  # it had ended by itself; its end is on the way
        elif job._cancelling is not None and not job._cancelling.done():
            job._wants_cancel = False
            job._cancelling.set_exception(error)
        else:
            job._feed.fail(error)
            job._wake.set()

    def _on_down(self) -> None:
        for session in list(self._sessions.values()):
            session.on_down()
        for job in self._watched():
            if job._accepted.done():
                job._feed.on_link(connected=False)
                job._wake.set()

    def _on_up(self) -> None:
        for session in list(self._sessions.values()):
            session.on_up()
        for job in self._watched():
            if job._accepted.done():
                ask = job._feed.on_link(connected=True)
                job._wake.set()
                if ask is Ask.NOTHING:
                    if job._wants_cancel:
                        self._link.send(Cancel(job_id=job.id))
                    continue
            self._announce(job)

    def _on_gone(self, error: GridXError) -> None:
        for session in list(self._sessions.values()):
            session.on_gone(error)
            self.forget_session(session)
        for job in self._watched():
            if not job._accepted.done():
                job._accepted.set_exception(error)
            if job._cancelling is not None and not job._cancelling.done():
                job._cancelling.set_exception(error)
            job._feed.fail(error)
            job._wake.set()
            self.forget(job)

    def _watched(self) -> list[Job]:
        return [job for jobs in self._jobs.values() for job in jobs]

    # --- the REST API -----------------------------------------------------------------------

    @property
    def _rest(self) -> Rest:
        if self._rest_calls is None:
            self._rest_calls = Rest(self.settings)
        return self._rest_calls

    async def cancel(self, job_id: str) -> JobView:
        """Ask for the end of a job that need not be watched; return its state."""
        return await self._rest.post(f"/jobs/{parse_job_id(job_id)}/cancel", {}, JobView)

    async def jobs(self, *, limit: int | None = None, before: str | None = None) -> JobList:
        """Return this user's jobs, newest first."""
        return await self._rest.get(
            "/jobs", JobList, user_id=self.settings.user, limit=limit, before=before
        )

    async def job(self, job_id: str) -> JobDetail:
        """Return one job with its code and its output as text."""
        return await self._rest.get(f"/jobs/{parse_job_id(job_id)}", JobDetail)

    async def workers(self) -> tuple[WorkerView, ...]:
        """Return the workers that the coordinator knows."""
        return (await self._rest.get("/workers", WorkerList)).workers

    async def balance(self, user: str | None = None) -> AccountView:
        """Return the account of ``user``, or of this client's user."""
        name = quote(user or self.settings.user, safe="")
        return await self._rest.get(f"/credits/{name}", AccountView)

    async def status(self) -> GridStatus:
        """Return the grid in numbers."""
        return await self._rest.get("/status", GridStatus)

    async def health(self) -> Health:
        """Return whether the coordinator is well, and its version."""
        return await self._rest.get("/health", Health)

    async def clock_offset_s(self) -> float | None:
        """Return how far the coordinator's clock is ahead of ours, to about a second."""
        return await self._rest.clock_offset_s()

    async def register(self, user: str, password: str) -> TokenView:
        """Make an account and return its first token."""
        return await self._rest.post(
            "/auth/register", Credentials(user_id=user, password=password), TokenView
        )

    async def login(self, user: str, password: str) -> TokenView:
        """Return a new token for ``user``."""
        return await self._rest.post(
            "/auth/login", Credentials(user_id=user, password=password), TokenView
        )


def _check_inputs(welcome: ClientWelcome, inputs: bytes) -> None:
    """Refuse what does not fit into one message."""
    if len(inputs) > min(welcome.max_payload_bytes, MAX_PAYLOAD_BYTES):
        raise PayloadTooLarge(
            f"The cell's variables come to {format_bytes(len(inputs))}; at most"
            f" {format_bytes(welcome.max_payload_bytes)} travel with one job.",
            payload_bytes=len(inputs),
            limit_bytes=welcome.max_payload_bytes,
        )


def _check_release(
    welcome: ClientWelcome,
    job: JobRequest,
    cell: CellSpec | None,
    blobs: Sequence[Blob],
    *,
    is_session: bool = False,
) -> None:
    """Refuse to send what an older coordinator would leave out without a word."""
    has_files = cell is not None and bool(cell.files or cell.fetch or cell.prelude)
    if welcome.protocol < 2 and (blobs or has_files or is_session):
        raise NotBuilt(
            "This coordinator is of an older release: it takes no variables of more than"
            f" {format_bytes(MAX_PAYLOAD_BYTES)}, no files, no prelude and no sessions.",
            hint="Upgrade it: `pip install -U gridx-jupyter`.",
            protocol=welcome.protocol,
        )
    limits = job.limits
    if welcome.protocol < 3 and (job.image or job.pip or limits.gpu_model or limits.disk_bytes):
        raise NotBuilt(
            "This coordinator is of an older release: it chooses no image, GPU model or disk size"
            " and installs no packages.",
            hint="Upgrade it: `pip install -U gridx-jupyter`.",
            protocol=welcome.protocol,
        )
