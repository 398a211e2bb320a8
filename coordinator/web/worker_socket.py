"""One worker's connection: hello, messages in, messages out."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Any, assert_never

from tornado.websocket import WebSocketHandler

from gridx.clock import monotonic_s
from gridx.errors import AuthError, Forbidden, GridXError, InvalidRequest, ProtocolError
from gridx.ids import parse_user_name, parse_worker_id
from gridx.protocol import (
    MAX_FRAME_BYTES,
    AttemptFinished,
    AttemptFrozen,
    AttemptStarted,
    CallFinished,
    CapabilityChanged,
    FromWorker,
    HandBack,
    Heartbeat,
    Hello,
    Output,
    OutputAck,
    OutputResend,
    Preparing,
    Refused,
    StopAttempt,
    StoredEnd,
    Welcome,
    from_worker,
    to_worker,
)
from gridx.resources import Capability

from ..bus.base import job_subject
from ..rules.access import Scope
from ..rules.identity import check_signature
from ..rules.offers import checked_capability, checked_load
from ..services import accounts, connect, enroll, session_views, views
from ..services.sign_in import sign_in
from ..store.records import LiveAttempt, WorkerRecord
from .base import as_gridx_error
from .connections import WorkerLink
from .output import AttemptOutput, OutputGap
from .sockets import CLOSE_REFUSED, CLOSE_REPLACED, FrameWriter, as_message, negotiate

if TYPE_CHECKING:
    from .context import Context

HELLO_LIMIT_S = 20.0
SHOW_STARTED_AFTER_S = 0.1  # a trivial cell has ended by then, and one message is saved
_MAX_NAME = 128

_hello_numbers = itertools.count(1)
_log = logging.getLogger(__name__)


def _taken(capability: Capability) -> Capability:
    """Return an offer as it is taken, or refuse it.

    Raises:
        InvalidRequest: no machine can make it, or whom it names can be no user.
    """
    checked = checked_capability(capability)
    for user in checked.users:
        parse_user_name(user)
    return checked


class WorkerSocket(WebSocketHandler):
    """Speaks ``gridx.protocol`` with one worker."""

    def initialize(self, context: Context) -> None:
        self._context = context
        self._writer = FrameWriter(self, binary=True)
        self._link: WorkerLink | None = None
        self._adopted: tuple[LiveAttempt, ...] = ()
        self._is_refused = False
        self._hello_timer: asyncio.TimerHandle | None = None

    def check_origin(self, origin: str) -> bool:
        return True  # the guard has decided before this handler was made

    def open(self, *args: str, **kwargs: str) -> None:
        self.set_nodelay(True)
        loop = asyncio.get_running_loop()
        self._hello_timer = loop.call_later(HELLO_LIMIT_S, self._refuse_silent)

    async def on_message(self, data: str | bytes) -> None:
        if self._is_refused:
            return
        try:
            message: FromWorker = as_message(data, from_worker.decode, binary=True)
            if self._link is None:
                await self._greet(message)
            else:
                await self._take(self._link, message)
        except Exception as exc:
            self._refuse(as_gridx_error(exc))

    def on_close(self) -> None:
        self._writer.release()
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        if self._link is not None:
            _log.info(
                "A worker went away",
                extra={"action": "worker.left", "worker_id": self._link.worker.worker_id},
            )
            self._context.dispatcher.leave(self._link)

    # --- hello -------------------------------------------------------------------------------

    async def _greet(self, hello: FromWorker) -> None:
        if not isinstance(hello, Hello):
            raise ProtocolError("The first message of a worker is its hello.")
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        context, number = self._context, next(_hello_numbers)
        chosen = negotiate(hello.protocol_min, hello.protocol_max)
        worker, token = await self._log_in(hello)
        with context.connections.greeting(worker.worker_id):
            try:
                link = await self._adopt(hello, worker, chosen, token, number)
            except BaseException:
                await context.store.run(
                    connect.disconnect, context.settings, worker, context.store.now_us()
                )
                raise
        if link is None:
            return
        _log.info(
            "A worker joined", extra={"action": "worker.joined", "worker_id": worker.worker_id}
        )
        context.dispatcher.pull(worker.worker_id)
        await context.sessions.resume(link, self._adopted)
        for job_id in list(link.attempts):
            job = await context.store.read(views.get_job, job_id)
            if job.is_final or link.attempts.get(job_id) != job.attempt:
                continue  # it ended meanwhile, and whoever ended it has told the watchers
            context.publish_change(job)
            if job.cancel_us is not None:
                link.send(StopAttempt(job_id=job_id, attempt=job.attempt))

    async def _adopt(
        self, hello: Hello, worker: WorkerRecord, chosen: int, token: str | None, number: int
    ) -> WorkerLink | None:
        """Take over what the worker runs and welcome it; None when it is gone meanwhile."""
        context = self._context
        if before := context.connections.find(worker.worker_id):
            before.close(CLOSE_REPLACED, "a newer connection of this worker took over")
        adoption = await context.store.run(connect.adopt, context.settings, worker, hello.running)
        ends = []
        for attempt in adoption.adopted:
            end = await context.outputs.stored_end(attempt.job_id, attempt.attempt)
            output = context.outputs.open(attempt.job_id, attempt.attempt, worker.worker_id, end)
            output.claimed_us = attempt.claimed_us
            output.started_us = output.started_us or attempt.started_us
            output.is_start_recorded = attempt.started_us is not None
            output.timeout_s, output.is_session = attempt.timeout_s, attempt.is_session
            output.frozen = ""  # it says so again, where it stands still
            ends.append(StoredEnd(job_id=attempt.job_id, attempt=attempt.attempt, offset=end))
        link = WorkerLink(
            worker=worker,
            write=self._writer.write,
            close=self._close,
            number=number,
            protocol=chosen,
            heard_s=monotonic_s(),
            heard_us=context.store.now_us(),
        )
        if self.ws_connection is None or self.ws_connection.is_closing():
            await context.store.run(connect.disconnect, context.settings, worker, link.heard_us)
            return None
        # From here to the Welcome nothing is awaited: no attempt can be sent before it.
        replaced = context.connections.put(link)
        if replaced is link:
            self._close(CLOSE_REPLACED, "a newer connection of this worker took over")
            return None
        if replaced is not None:
            replaced.close(CLOSE_REPLACED, "a newer connection of this worker took over")
        self._link, self._adopted = link, adoption.adopted
        context.dispatcher.join(link, adoption.adopted, adoption.ended)
        link.send(
            Welcome(
                protocol=chosen,
                http_url=context.http_url,
                heartbeat_s=context.settings.heartbeat_s,
                max_frame_bytes=MAX_FRAME_BYTES,
                token=token,
                adopted=tuple(ends),
                stop=adoption.stop,
            )
        )
        return link

    async def _log_in(self, hello: Hello) -> tuple[WorkerRecord, str | None]:
        """Return the worker on record, and a token for its next connections when it needs one."""
        context = self._context
        parse_worker_id(hello.worker_id)
        user = parse_user_name(hello.user)
        if not 0 < len(hello.name) <= _MAX_NAME or not hello.name.isprintable():
            raise InvalidRequest(f"A worker's name has 1 to {_MAX_NAME} printable characters.")
        capability = _taken(hello.capability)
        settings, store = context.settings, context.store
        check_signature(hello, store.now_us() / 1e6)
        if hello.token is not None:
            identity = await store.read(accounts.identify, hello.token)
            if Scope.WORKER.value not in identity.scopes or identity.user != user:
                raise Forbidden("This token is not that of a worker of this user.")
            if identity.worker_id not in (None, hello.worker_id):
                raise Forbidden("This token belongs to another worker.")
            owner_id = identity.user_id
        elif hello.password is not None:
            # The guard has shown that the worker's process has the coordinator's own uid, so in
            # open mode it may also set the first password of a name that has none.
            found = await sign_in(
                store,
                settings,
                context.passwords,
                user,
                hello.password,
                may_create=settings.registration_open,
                may_set=settings.is_open,
            )
            owner_id = found.user_id
        elif settings.is_open:
            owner_id = (await store.run(accounts.ensure_user, settings, user)).user_id
        else:
            raise AuthError("A worker logs in with a password or a token.")
        worker = await store.run(
            enroll.enroll,
            owner_id,
            hello.worker_id,
            hello.name,
            capability,
            hello.public_key,
        )
        token = None
        if hello.token is None:
            issued = await store.run(
                accounts.issue_token, settings, owner_id, (Scope.WORKER.value,), worker
            )
            token = issued.token
        return worker, token

    # --- messages ----------------------------------------------------------------------------

    async def _take(self, link: WorkerLink, message: FromWorker) -> None:
        context = self._context
        link.heard_s, link.heard_us = monotonic_s(), context.store.now_us()
        match message:
            case Output():
                await self._take_output(link, message)
            case AttemptStarted():
                self._take_started(link, message)
            case AttemptFinished():
                output = context.outputs.find(message.job_id, message.attempt)
                is_session = output is not None and output.is_session
                finisher = context.sessions if is_session else context.dispatcher
                context.spawn(self._answer(link, finisher.finish(link, message)))
            case CallFinished():
                context.spawn(self._answer(link, context.sessions.finish_call(link, message)))
            case Heartbeat():
                link.load = checked_load(message.load)
                context.scheduler.note_load(link.worker.worker_id, link.load)
                named = {ref.job_id: ref.attempt for ref in message.running}
                context.dispatcher.reconcile(link, named)
            case HandBack():
                context.spawn(self._answer(link, context.dispatcher.hand_back(link, message)))
            case CapabilityChanged():
                capability = _taken(message.capability)
                link.worker = await context.store.run(
                    enroll.set_capability, link.worker, capability
                )
                context.scheduler.change_worker(link.worker.worker_id, capability)
                context.dispatcher.pull(link.worker.worker_id)
            case Preparing():
                context.dispatcher.note_preparing(link, message)
            case AttemptFrozen():
                await context.dispatcher.note_frozen(link, message)
            case Hello():
                raise ProtocolError("A connection has one hello.")
            case _:
                assert_never(message)

    async def _answer(self, link: WorkerLink, work: Any) -> None:
        try:
            await work
        except Exception as exc:
            self._refuse(as_gridx_error(exc))

    def _find_output(self, link: WorkerLink, job_id: str, attempt: int) -> AttemptOutput | None:
        """Return the stream of an attempt of this worker; one that is not live is fenced off."""
        output = self._context.outputs.find(job_id, attempt)
        if output is not None and output.worker_id == link.worker.worker_id:
            return output
        link.send(StopAttempt(job_id=job_id, attempt=attempt, fenced=True))
        return None

    def _take_started(self, link: WorkerLink, message: AttemptStarted) -> None:
        output = self._find_output(link, message.job_id, message.attempt)
        if output is None:
            return
        if output.is_session:
            self._take_call_started(link, output, message.call)
        if output.started_us is None:
            # Said again after an adoption: it started before this coordinator did. The claim is
            # the last moment known of it, and no more is paid than the worker metered.
            output.started_us = link.heard_us if output.claimed_us is None else output.claimed_us
            asyncio.get_running_loop().call_later(SHOW_STARTED_AFTER_S, self._show_started, output)

    def _take_call_started(self, link: WorkerLink, output: AttemptOutput, call: int) -> None:
        if call > output.recorded_call and call not in output.call_starts:
            output.call_starts[call] = link.heard_us
            asyncio.get_running_loop().call_later(
                SHOW_STARTED_AFTER_S, self._show_call_started, output, call
            )

    def _show_call_started(self, output: AttemptOutput, call: int) -> None:
        context = self._context
        is_live = context.outputs.find(output.job_id, output.attempt) is output
        if not is_live or call not in output.call_starts:
            return
        if context.bus.has_subscribers(job_subject(output.job_id)):
            context.spawn(self._publish_call_started(output, call))

    async def _publish_call_started(self, output: AttemptOutput, call: int) -> None:
        context = self._context
        job = await context.store.read(views.get_job, output.job_id)
        event = await context.store.read(session_views.find_call, job.row_id, call)
        if event is not None and not event.call.is_final:
            context.publish_call(job, event)

    def _show_started(self, output: AttemptOutput) -> None:
        context = self._context
        is_live = context.outputs.find(output.job_id, output.attempt) is output
        if is_live and context.bus.has_subscribers(job_subject(output.job_id)):
            context.spawn(self._publish_started(output))

    async def _publish_started(self, output: AttemptOutput) -> None:
        job = await self._context.store.read(views.get_job, output.job_id)
        if not job.is_final and job.attempt == output.attempt:
            self._context.publish_change(job)

    async def _take_output(self, link: WorkerLink, message: Output) -> None:
        context = self._context
        output = self._find_output(link, message.job_id, message.attempt)
        if output is None:
            return
        if message.offset + len(message.data) > context.settings.max_log_bytes:
            # Workers cap the output of a job well below that; this one does not.
            context.dispatcher.give_up(link, output.job_id, output.attempt)
            return
        begin = output.end
        try:
            new = output.accept(message.offset, message.data)
        except OutputGap:
            if not output.is_resend_asked:
                output.is_resend_asked = True
                link.send(
                    OutputResend(
                        job_id=output.job_id, attempt=output.attempt, offset=output.stored_end
                    )
                )
            return
        if not new:
            # Known already: say again what is stored, in case the first answer was lost.
            link.send(
                OutputAck(job_id=output.job_id, attempt=output.attempt, offset=output.stored_end)
            )
            return
        context.counters.output_bytes += len(new)
        context.bus.publish(
            job_subject(output.job_id),
            Output(
                job_id=output.job_id,
                attempt=output.attempt,
                offset=begin,
                data=new,
                call=message.call,
            ),
        )
        while output.is_over_limit:
            await output.store()

    # --- the end -----------------------------------------------------------------------------

    def _refuse_silent(self) -> None:
        self._refuse(ProtocolError(f"No hello came within {HELLO_LIMIT_S:.0f} seconds."))

    def _refuse(self, error: GridXError) -> None:
        """Say why, then close: a peer never sees more than the sentence."""
        if self._is_refused:
            return
        self._is_refused = True
        worker_id = self._link.worker.worker_id if self._link else None
        _log.warning(
            "A worker was refused: %s",
            error.message,
            extra={"action": "worker.refused", "worker_id": worker_id},
        )
        self._context.counters.refused[error.code] += 1
        self._writer.write(to_worker.encode(Refused(error=error.to_body())))
        self._close(CLOSE_REFUSED, error.code)

    def _close(self, code: int, reason: str) -> None:
        self._writer.flush()
        self.close(code, reason)
        # A frozen peer never answers the close frame; its attempts must not wait for that.
        link, self._link = self._link, None
        if link is not None:
            self._context.dispatcher.leave(link)
