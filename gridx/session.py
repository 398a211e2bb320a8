"""A session: a sandbox that is kept between the calls of one user.

Each call's updates are those of a job, so that whoever can watch a job can watch a call. The
output of all calls is one stream; the output of a call begins where that of the call before it
ended, and no more of it is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from .blobs import Blob
from .clock import now_us, to_datetime
from .credits import to_credits
from .errors import (
    BlobsMissing,
    Conflict,
    GridXError,
    InvalidRequest,
    JobError,
    PayloadTooLarge,
    SessionEnded,
    from_body,
)
from .feed import START, Ask, Feed
from .protocol import (
    MAX_PAYLOAD_BYTES,
    CallChanged,
    ClientWelcome,
    EndSession,
    Interrupt,
    JobChanged,
    Message,
    Output,
    Position,
    Refused,
    Submit,
    SubmitCall,
    Unwatch,
    Watch,
)
from .resources import format_bytes
from .schemas import BlobRef, CellSpec, JobView
from .states import FINAL_JOB_STATES, JobState
from .transfer import Progress
from .updates import EventArrived, Finished, Update, job_error
from .watched import Watched, answer_to_come, resolve

_UPLOADS: Final = 3  # a blob that was found there may be collected before the call comes


class Host(Protocol):
    """What a session needs of its client."""

    async def connect(self) -> ClientWelcome: ...

    async def upload(self, blobs: Sequence[Blob], on_progress: Progress | None = None) -> int: ...

    async def download(
        self, job_id: str, refs: Sequence[BlobRef], on_progress: Progress | None = None
    ) -> bytearray: ...

    async def rejoin(self, session: Session) -> None: ...

    def send(self, message: Message) -> bool: ...

    def call_soon(self, function: Callable[[], object]) -> None: ...

    def forget_session(self, session: Session) -> None: ...


class Call(Watched):
    """One call of a session. ``id`` is the session's; ``view`` shows this call as a job."""

    def __init__(
        self, session: Session, number: int, feed: Feed, submit: SubmitCall | None
    ) -> None:
        super().__init__(session.id, feed)
        self.number = number
        self.end: Position | None = None  # of its output, once it has ended
        self._session = session
        self._submit = submit  # until it is answered
        self._was_sent = False
        self._wants_interrupt = False
        self._status = JobState.QUEUED.value
        self._started_us: int | None = None
        self.accepted = answer_to_come()

    @property
    def has_ended(self) -> bool:
        """Whether its end has come, read or not."""
        return self._feed.is_over

    async def cancel(self) -> None:
        """Interrupt the call, as a kernel is interrupted. The session goes on, if the call obeys
        in time. Its end comes as ``Finished``; the request outlives a cut."""
        if not self.has_ended:
            self._wants_interrupt = True
            self._session.host.send(Interrupt(job_id=self.id, call=self.number))

    async def download(
        self, refs: Sequence[BlobRef], on_progress: Progress | None = None
    ) -> bytearray:
        """Return blobs of this call's result joined in order; see ``Client.download``."""
        return await self._session.host.download(self.id, refs, on_progress)

    def detach(self) -> None:
        """Stop watching the session. Call and session go on."""
        self._session.detach()

    def take(self, timeout_s: float | None = None) -> Update | None:
        """Return the next update, or None; what another call has printed is passed over."""
        update = super().take(timeout_s)
        while isinstance(update, EventArrived) and update.event.call != self.number:
            update = super().take()
        return update

    def _resume_soon(self) -> None:
        self._session.host.call_soon(lambda: self._session.answer(self, self._feed.resume()))

    # --- what the session passes on ---------------------------------------------------------

    def on_job(self, job: JobView) -> Ask:
        """Take the session's state: while the call waits, that is the call's too."""
        return self._change(self._view(job), None)

    def on_call(self, message: CallChanged, job: JobView) -> Ask:
        """Take the call's own state."""
        self._status = message.status
        if message.status != JobState.QUEUED and self._started_us is None:
            self._started_us = now_us()
        resolve(self.accepted)
        self._submit = None
        view = self._view(job)
        if message.status in FINAL_JOB_STATES:
            self.end = message.end
            view = msgspec.structs.replace(
                view,
                reason=message.reason,
                exit_code=message.exit_code,
                elapsed_s=message.elapsed_s,
                cost=to_credits(message.cost_ucr),
                finished_at=to_datetime(now_us()),
            )
        return self._change(view, message)

    def _change(self, view: JobView, message: CallChanged | None) -> Ask:
        changed = JobChanged(job=view)
        if message is not None:
            changed = JobChanged(
                job=view,
                call=message.call,
                cost_ucr=message.cost_ucr,
                result=message.result,
                result_blobs=message.result_blobs,
                end=message.end,
            )
        return self._feed.on_changed(changed)

    def _view(self, job: JobView) -> JobView:
        # A session that has started waits only while it stands still, and its call with it.
        is_still = self._status == JobState.RUNNING and job.started_at is not None
        is_waiting = self._status == JobState.QUEUED or is_still
        return msgspec.structs.replace(
            job,
            status=self._status,
            attempt=max(job.attempt, self._feed.position.attempt),
            waiting=job.waiting if is_waiting else None,
            cost=0.0,
            exit_code=None,
            reason=None,
            started_at=None if self._started_us is None else to_datetime(self._started_us),
            finished_at=None,
            elapsed_s=None,
        )


class Session:
    """An open session. Its calls run one after the other, in one namespace.

    ``newest`` is its newest call, ``view`` the newest state of the whole session.
    """

    def __init__(
        self, host: Host, job_id: str, submit: Submit | None, *, feed_limit_bytes: int
    ) -> None:
        self.host = host
        self.id = job_id
        self.finished: Finished | None = None
        self.accepted = answer_to_come()
        self.was_sent = False  # the submission, answered or not
        self._submit = submit  # until it is answered
        self._feed_limit_bytes = feed_limit_bytes
        self._view: JobView | None = None
        self._newest: Call | None = None
        self._wants_end = False
        self._ended = answer_to_come()
        self._on_end: list[Callable[[Finished], object]] = []
        self._is_last_call_asked_for = False
        if submit is not None:
            self._newest = Call(self, 0, self._feed(START), None)

    @property
    def view(self) -> JobView:
        """The newest state that came of the session."""
        assert self._view is not None, "set by the answer to open or attach"
        return self._view

    @property
    def name(self) -> str:
        """What its user calls it."""
        return self.view.session or ""

    @property
    def newest(self) -> Call:
        """The newest call: running, or ended with its result."""
        assert self._newest is not None, "set by the answer to attach"
        return self._newest

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come: of the session, nor of its last call."""
        return self.finished is not None and (self._newest is None or self._newest.has_ended)

    def error(self) -> JobError | None:
        """Return why the session is no more; None while it is open.

        Of a session that was attached to after its end this is known at once, ``finished``
        when the output of its last call was read.
        """
        view = self.view if self.finished is None else self.finished.view
        if view.finished_at is None:
            return None
        if (error := job_error(view)) is not None:
            return error
        reason = view.reason
        message = reason.message if reason else f"Session {self.name} has ended."
        return SessionEnded(message, hint=reason.hint if reason else None, job_id=self.id)

    def on_end(self, callback: Callable[[Finished], object]) -> None:
        """Have ``callback`` called once, in the loop, when the session ends or has ended."""
        if self.finished is not None:
            callback(self.finished)
        else:
            self._on_end.append(callback)

    async def call(
        self,
        code: str,
        *,
        cell: CellSpec,
        inputs: bytes = b"",
        blobs: Sequence[Blob] = (),
        timeout_s: float = 60.0,
        on_progress: Progress | None = None,
    ) -> Call:
        """Submit the next call and return it once the coordinator has accepted it.

        Who is cancelled while this waits will never see the call: it is interrupted.

        Raises:
            WorkerLost, SessionEnded: the session is no more.
            Conflict: its last call has not ended.
            GridXError: whatever else the coordinator refuses.
        """
        last = self.newest
        self._check_next(last)
        if len(inputs) > MAX_PAYLOAD_BYTES:
            raise PayloadTooLarge(
                f"The cell's variables come to {format_bytes(len(inputs))}; at most"
                f" {format_bytes(MAX_PAYLOAD_BYTES)} travel with one message.",
                payload_bytes=len(inputs),
                limit_bytes=MAX_PAYLOAD_BYTES,
            )
        await self.host.rejoin(self)
        sent_bytes = len(inputs)
        for tries_left in reversed(range(_UPLOADS)):
            if blobs:
                sent_bytes += await self.host.upload(blobs, on_progress)
            self._check_next(last)
            message = SubmitCall(
                job_id=self.id,
                call=last.number + 1,
                code=code,
                timeout_s=timeout_s,
                cell=cell,
                inputs=inputs,
                blobs=tuple(blob.ref for blob in blobs),
            )
            try:
                return await self._submit_call(last, message, sent_bytes)
            except BlobsMissing:
                if not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    def _check_next(self, last: Call) -> None:
        if (error := self.error()) is not None:
            raise error
        if not last.has_ended or self._newest is not last:
            raise Conflict(
                f"Call {self.newest.number} of session {self.name} has not ended: a session runs"
                " one call at a time.",
                hint="Wait for its end, or interrupt it.",
            )

    async def _submit_call(self, last: Call, message: SubmitCall, sent_bytes: int) -> Call:
        begin = last.end or last._feed.position
        call = Call(self, message.call, self._feed(begin), message)
        call.sent_bytes = sent_bytes
        call.on_job(self.view)
        self._newest = call
        try:
            call._was_sent = self.host.send(message)
            if not call._was_sent:
                await self.host.connect()  # announces it, or does not return
                call._was_sent = self.host.send(message)
            await asyncio.shield(call.accepted)
        except asyncio.CancelledError:
            if call._was_sent:
                await call.cancel()
            else:
                self._newest = last
            raise
        except BaseException:
            if self._newest is call:
                self._newest = last
            raise
        return call

    def give_up(self, call: Call) -> None:
        """Interrupt a call that reached nobody."""
        if not call.has_ended:
            call._wants_interrupt = True
            self.host.send(Interrupt(job_id=self.id, call=call.number))

    async def interrupt(self) -> None:
        """Interrupt the call that runs, if one does."""
        await self.newest.cancel()

    async def end(self) -> Finished:
        """Close the session and return its end, with what it cost."""
        if self.finished is None:
            self._wants_end = True
            await self.host.rejoin(self)
            self.host.send(EndSession(job_id=self.id))
            await asyncio.shield(self._ended)
        assert self.finished is not None, "set before it is announced"
        return self.finished

    def detach(self) -> None:
        """Stop watching. The session goes on until it was idle for long enough."""
        self.host.forget_session(self)

    def _feed(self, after: Position) -> Feed:
        return Feed(after=after, limit_bytes=self._feed_limit_bytes)

    # --- what the link says -----------------------------------------------------------------

    def announce(self) -> None:
        """Say what the coordinator must know on this connection."""
        if self._submit is not None:
            self.was_sent = self.host.send(self._submit) or self.was_sent
            return
        call = self._newest
        after = START if call is None else call._feed.position
        self.host.send(Watch(job_id=self.id, after=after, newest_call=True))
        if call is not None and call._submit is not None:
            call._was_sent = self.host.send(call._submit) or call._was_sent
        if call is not None and call._wants_interrupt and not call.has_ended:
            self.host.send(Interrupt(job_id=self.id, call=call.number))
        if self._wants_end and self.finished is None:
            self.host.send(EndSession(job_id=self.id))

    def on_message(self, message: Message) -> None:
        """Take what concerns this session."""
        match message:
            case JobChanged():
                self._on_job(message)
            case CallChanged():
                self._on_call(message)
            case Output():
                if self._newest is not None and not self._newest.has_ended:
                    self.answer(self._newest, self._newest._feed.on_output(message))
            case Refused():
                self._on_refused(from_body(message.error))
            case _:
                pass

    def answer(self, call: Call, ask: Ask) -> None:
        """Do what a call's feed asks for."""
        call._wake.set()
        if ask is Ask.WATCH:
            self.host.send(Watch(job_id=self.id, after=call._feed.position, newest_call=True))
        elif ask is Ask.UNWATCH:
            self.host.send(Unwatch(job_id=self.id))

    def _on_job(self, message: JobChanged) -> None:
        view = message.job
        if view.kind != "session":
            self._fail(
                InvalidRequest(
                    f"Job {self.id} is no session: it has one call.",
                    hint=f"`%gridx attach {self.id}` shows it.",
                )
            )
            return
        self._view = view
        call = self._newest
        if view.status not in FINAL_JOB_STATES:
            if call is not None and not call.has_ended:
                self.answer(call, call.on_job(view))
            if self._submit is not None:
                self._submit = None
                resolve(self.accepted)
            return
        self._submit = None
        if self.finished is None:
            self._finish(
                Finished(
                    view=view,
                    cost_ucr=message.cost_ucr,
                    balance_ucr=message.balance_ucr,
                    held_ucr=message.held_ucr,
                    result=None,
                )
            )

    def _finish(self, finished: Finished) -> None:
        self.finished = finished
        call = self._newest
        if call is not None and not call.has_ended:
            if call._submit is not None and not call.accepted.done():
                error = self.error()
                assert error is not None
                call.accepted.set_exception(error)  # it came too late
                call._feed.fail(error)
                call._wake.set()
            elif not self._is_last_call_asked_for:
                # Its end comes before the session's; a part of its output may be missing.
                self._is_last_call_asked_for = True
                self.answer(call, Ask.WATCH)
        resolve(self.accepted)
        resolve(self._ended)
        callbacks, self._on_end = self._on_end, []
        for callback in callbacks:
            callback(finished)

    def _on_call(self, message: CallChanged) -> None:
        call = self._newest
        if call is not None and message.call < call.number:
            return
        if call is None or message.call > call.number:
            begin = message.begin or START
            if call is not None and not call.has_ended:
                self._fail_call(
                    call,
                    Conflict(
                        f"Somebody has gone on with session {self.name}: it is at call"
                        f" {message.call} now.",
                        hint=f"`gridx logs {self.id}` shows the whole output.",
                    ),
                )
            call = self._newest = Call(self, message.call, self._feed(begin), None)
        if not call.has_ended:
            self.answer(call, call.on_call(message, self.view))
        resolve(self.accepted)

    def _on_refused(self, error: GridXError) -> None:
        call = self._newest
        if not self.accepted.done():
            self.accepted.set_exception(error)
        elif call is not None and not call.accepted.done() and call._submit is not None:
            call._submit = None
            call.accepted.set_exception(error)
            call._feed.fail(error)
            call._wake.set()
        elif self._wants_end and not self._ended.done():
            self._wants_end = False
            self._ended.set_exception(error)
        else:
            self._fail(error)

    def _fail(self, error: GridXError) -> None:
        if not self.accepted.done():
            self.accepted.set_exception(error)
        if self._newest is not None:
            self._fail_call(self._newest, error)
        self.host.forget_session(self)

    @staticmethod
    def _fail_call(call: Call, error: GridXError) -> None:
        if not call.accepted.done():
            call.accepted.set_exception(error)
        call._feed.fail(error)
        call._wake.set()

    def on_down(self) -> None:
        """Take the loss of the connection."""
        call = self._newest
        if call is not None and call._feed.view is not None:
            call._feed.on_link(connected=False)
            call._wake.set()

    def on_up(self) -> None:
        """Take its return: say again what must be known."""
        call = self._newest
        if call is not None and call._feed.view is not None:
            is_paused = call._feed.is_paused
            call._feed.on_link(connected=True)
            call._wake.set()
            if is_paused:
                return  # its reader ends the pause, with a Watch
        self.announce()

    def on_gone(self, error: GridXError) -> None:
        """Take that the coordinator stays away. The next call dials again."""
        if not self.accepted.done():
            self.accepted.set_exception(error)
        if not self._ended.done() and self._wants_end:
            self._ended.set_exception(error)
            self._ended = answer_to_come()
        call = self._newest
        if call is not None and not call.has_ended:
            self._fail_call(call, error)
