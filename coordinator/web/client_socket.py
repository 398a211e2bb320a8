"""One client's connection: submit, watch from any position, cancel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, assert_never

from tornado.websocket import WebSocketHandler

from gridx.errors import AuthError, GridXError, ProtocolError
from gridx.ids import parse_job_id, parse_user_name
from gridx.protocol import (
    CLIENT_JSON,
    CLIENT_MSGPACK,
    CallChanged,
    Cancel,
    ClientHello,
    ClientWelcome,
    EndSession,
    FromClient,
    Interrupt,
    Position,
    Refused,
    Submit,
    SubmitCall,
    ToClient,
    Unwatch,
    Watch,
    from_client,
    from_client_json,
    to_client,
    to_client_json,
)

from ..rules.access import OPEN, Caller, Scope, require
from ..services import accounts, session_views, views
from ..store.records import Balance, CallRecord, JobRecord
from .base import as_gridx_error
from .intake import take_call, take_order
from .sockets import CLOSE_REFUSED, FrameWriter, as_message, negotiate
from .watch import CallNews, JobEvent, Watcher, message_of, message_of_call, read_final

if TYPE_CHECKING:
    from .context import Context

HELLO_LIMIT_S = 20.0
MAX_WATCHED = 10_000
MAX_IN_FLIGHT = 256  # submissions of one connection; then it is read no further

_log = logging.getLogger(__name__)


class ClientSocket(WebSocketHandler):
    """Speaks ``gridx.protocol`` with a notebook, a script or a page."""

    def initialize(self, context: Context) -> None:
        self._context = context
        self._caller: Caller | None = None
        self._protocol = 0
        self._watchers: dict[str, Watcher] = {}
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._is_refused = False
        self._hello_timer: asyncio.TimerHandle | None = None

    def check_origin(self, origin: str) -> bool:
        return True  # the guard has decided before this handler was made

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return next((p for p in subprotocols if p in (CLIENT_MSGPACK, CLIENT_JSON)), None)

    def open(self, *args: str, **kwargs: str) -> None:
        self.set_nodelay(True)
        is_json = self.selected_subprotocol == CLIENT_JSON
        self._incoming = from_client_json if is_json else from_client
        self._outgoing = to_client_json if is_json else to_client
        self._writer = FrameWriter(self, binary=not is_json)
        if self.selected_subprotocol is None:
            self._refuse(
                ProtocolError(
                    "No subprotocol was agreed on.",
                    hint=f"Ask for {CLIENT_MSGPACK} or {CLIENT_JSON} (Sec-WebSocket-Protocol).",
                )
            )
            return
        loop = asyncio.get_running_loop()
        self._hello_timer = loop.call_later(
            HELLO_LIMIT_S,
            lambda: self._refuse(ProtocolError(f"No hello came in {HELLO_LIMIT_S:.0f} seconds.")),
        )

    async def on_message(self, data: str | bytes) -> None:
        if self._is_refused:
            return
        try:
            binary = self._incoming.is_binary
            message: FromClient = as_message(data, self._incoming.decode, binary=binary)
            if self._caller is None:
                await self._greet(message)
            else:
                await self._take(self._caller, message)
        except Exception as exc:
            self._refuse(as_gridx_error(exc))

    def on_close(self) -> None:
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        for watcher in tuple(self._watchers.values()):
            watcher.close()
        self._watchers.clear()
        self._writer.release()

    # --- a sink of watchers ------------------------------------------------------------------

    def send(self, message: ToClient) -> None:
        """Send at once. A client of the release before knows no calls."""
        if isinstance(message, CallChanged) and self._protocol < 2:
            return
        self._writer.write(self._outgoing.encode(message))

    @property
    def is_full(self) -> bool:
        """Whether the client takes less than it is sent: stop, and wait for ``drained``."""
        return self._writer.is_full

    async def drained(self) -> None:
        """Return when the client has taken most of what was sent, or is gone."""
        await self._writer.drained()

    # --- hello -------------------------------------------------------------------------------

    async def _greet(self, hello: FromClient) -> None:
        if not isinstance(hello, ClientHello):
            raise ProtocolError("The first message of a client is its hello.")
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        context = self._context
        chosen = negotiate(hello.protocol_min, hello.protocol_max)
        user = parse_user_name(hello.user)
        if context.settings.is_open:
            caller = Caller(user=user, scopes=OPEN.scopes, is_open=True)
            await context.store.run(accounts.ensure_user, context.settings, user)
        elif hello.token is None:
            raise AuthError("This coordinator asks for a login.")
        else:
            identity = await context.store.read(accounts.identify, hello.token)
            scopes = frozenset({Scope.PUBLIC} | {Scope(scope) for scope in identity.scopes})
            caller = Caller(user=identity.user, scopes=scopes)
        balance = await context.store.read(views.get_balance, user)
        self._caller, self._protocol = caller, chosen
        self.send(
            ClientWelcome(
                user=user,
                protocol=chosen,
                balance_ucr=balance.posted_ucr,
                held_ucr=balance.held_ucr,
                rates=context.settings.rates,
            )
        )

    # --- messages ----------------------------------------------------------------------------

    async def _take(self, caller: Caller, message: FromClient) -> None:
        match message:
            case Submit():
                job_id = message.job.job_id
                await self._in_flight.acquire()
                self._context.spawn(self._answer(job_id, self._submit(caller, message)))
            case Watch():
                self._begin_watch(caller, message)
            case Unwatch():
                if watcher := self._watchers.pop(message.job_id, None):
                    watcher.close()
            case Cancel():
                work = self._cancel(caller, message.job_id)
                await self._in_flight.acquire()
                self._context.spawn(self._answer(message.job_id, work))
            case SubmitCall():
                await self._in_flight.acquire()
                work = self._submit_call(caller, message)
                self._context.spawn(self._answer(message.job_id[:80], work))
            case Interrupt():
                await self._in_flight.acquire()
                work = self._interrupt(caller, message)
                self._context.spawn(self._answer(message.job_id[:80], work))
            case EndSession():
                await self._in_flight.acquire()
                work = self._end_session(caller, message.job_id)
                self._context.spawn(self._answer(message.job_id[:80], work))
            case ClientHello():
                raise ProtocolError("A connection has one hello.")
            case _:
                assert_never(message)

    async def _answer(self, job_id: str | None, work: Coroutine[Any, Any, None]) -> None:
        """Do the work; what it refuses concerns this job and leaves the connection open."""
        try:
            await work
        except Exception as exc:
            self._refuse_job(job_id, as_gridx_error(exc))
        finally:
            self._in_flight.release()

    def _refuse_job(self, job_id: str | None, error: GridXError) -> None:
        self._context.counters.refused[error.code] += 1
        self.send(Refused(error=error.to_body(), job_id=job_id))

    def _make_watcher(
        self, caller: Caller, job_id: str, after: Position, *, newest_call: bool = False
    ) -> Watcher:
        if before := self._watchers.pop(job_id, None):
            before.close()
        if len(self._watchers) >= MAX_WATCHED:
            raise ProtocolError(
                f"One connection watches at most {MAX_WATCHED} jobs.",
                hint="Unwatch the ones that have ended, or open another connection.",
            )
        # In open mode too a person sees the own jobs only: the name stands for the person.
        user = None if Scope.ADMIN in caller.scopes and not caller.is_open else caller.user
        watcher = Watcher(
            self._context, job_id, user, after, self, self._watch_ended, newest_call=newest_call
        )
        self._watchers[job_id] = watcher
        return watcher

    def _watch_ended(self, watcher: Watcher, error: GridXError | None) -> None:
        if self._watchers.get(watcher.job_id) is watcher:
            del self._watchers[watcher.job_id]
        if error is not None:
            self._refuse_job(watcher.job_id, error)

    def _begin_watch(self, caller: Caller, message: Watch) -> None:
        try:
            require(caller, Scope.JOBS_READ)
            parse_job_id(message.job_id)
            watcher = self._make_watcher(
                caller, message.job_id, message.after, newest_call=message.newest_call
            )
        except GridXError as exc:
            self._refuse_job(message.job_id[:80], exc)
            return
        watcher.catch_up()

    async def _submit(self, caller: Caller, message: Submit) -> None:
        require(caller, Scope.JOBS_WRITE)
        order = take_order(
            caller,
            message.job,
            cell=message.cell,
            inputs=message.inputs,
            blobs=message.blobs,
            session=message.session,
            call_timeout_s=message.call_timeout_s,
            must_have_id=True,
        )
        job_id = order.job_id
        # Subscribed before the commit: no output of a new job can be missed.
        watcher = self._make_watcher(caller, job_id, Position())
        try:
            submitted = await self._context.dispatcher.submit(order)
        except BaseException:
            watcher.close()
            self._watchers.pop(job_id, None)
            raise
        if submitted.is_new:
            self.send(message_of(self._context, JobEvent(submitted.job, submitted.balance)))
            watcher.go_live(submitted.job)
        else:
            watcher.catch_up()

    async def _submit_call(self, caller: Caller, message: SubmitCall) -> None:
        require(caller, Scope.JOBS_WRITE)
        done = await self._context.sessions.submit_call(take_call(caller, message))
        await self._tell_call(done.job, done.call, is_told=done.is_new)

    async def _interrupt(self, caller: Caller, message: Interrupt) -> None:
        require(caller, Scope.JOBS_WRITE)
        parse_job_id(message.job_id)
        done = await self._context.sessions.interrupt(message.job_id, message.call, caller.user)
        await self._tell_call(done.job, done.call, is_told=not done.call.is_final)

    async def _tell_call(self, job: JobRecord, call: CallRecord, *, is_told: bool) -> None:
        """Tell how a call stands: through the watcher where there is one, behind the output."""
        if watcher := self._watchers.get(job.job_id):
            if not is_told:
                watcher.catch_up()
            return
        event = await self._context.store.read(session_views.find_call, job.row_id, call.n)
        if event is not None:
            self.send(message_of_call(self._context, CallNews(job, event)))

    async def _end_session(self, caller: Caller, job_id: str) -> None:
        require(caller, Scope.JOBS_WRITE)
        parse_job_id(job_id)
        done = await self._context.sessions.end(job_id, caller.user)
        await self._tell_job(done.job, None)

    async def _cancel(self, caller: Caller, job_id: str) -> None:
        require(caller, Scope.JOBS_WRITE)
        parse_job_id(job_id)
        done = await self._context.dispatcher.cancel(job_id, caller.user)
        await self._tell_job(done.job, done.balance)

    async def _tell_job(self, job: JobRecord, balance: Balance | None) -> None:
        if job.job_id in self._watchers:
            return  # its watcher tells
        event = JobEvent(job, balance)
        if job.is_final:
            event = await read_final(self._context, job)
        self.send(message_of(self._context, event))

    def _refuse(self, error: GridXError) -> None:
        """Say why, then close: a peer never sees more than the sentence."""
        if self._is_refused:
            return
        self._is_refused = True
        self._context.counters.refused[error.code] += 1
        _log.info("A client was refused: %s", error.message, extra={"action": "client.refused"})
        self.send(Refused(error=error.to_body()))
        self._writer.flush()
        self.close(CLOSE_REFUSED, error.code)
