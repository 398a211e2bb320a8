"""Builds every part of the coordinator once and passes it down."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from gridx.clock import monotonic_s
from gridx.errors import NotBuilt, SettingsError
from gridx.protocol import OutputAck, OutputResend

from .blobs import LocalBlobs
from .bus import InProcessBus
from .eventlog.segments import SegmentLog
from .rules.scheduling import Scheduler
from .services import enroll
from .services.sign_in import Passwords
from .settings import Settings
from .store.engine import Store
from .web.connections import Connections
from .web.context import Context
from .web.counters import Counters
from .web.dispatcher import Dispatcher
from .web.guard import OpenGuard, read_or_make_token
from .web.listener import (
    BLOB_CHUNK_BYTES,
    MESSAGE_CHUNK_BYTES,
    WORKER_PATH,
    make_api_listener,
    make_worker_listener,
)
from .web.output import AttemptOutput, Outputs
from .web.sessions import Sessions
from .web.sockets import CLOSE_SILENT

TICK_S = 1.0
SEEN_EVERY_S = 30.0
STOP_LIMIT_S = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Serving:
    """A coordinator that serves. ``ws_url`` is what a worker connects to."""

    http_url: str
    ws_url: str
    context: Context


def check_settings(settings: Settings) -> None:
    """Refuse what this release cannot do safely.

    Raises:
        NotBuilt: accounts, a proxy, or an address that other machines can reach.
    """
    if not settings.is_open:
        raise NotBuilt(
            "--auth accounts is not built yet: this release serves its own user on loopback.",
            hint="Start without --auth.",
        )
    if settings.behind_proxy:
        raise NotBuilt(
            "--behind-proxy needs accounts, which are not built yet.",
            hint="Start without --behind-proxy, and connect to loopback directly.",
        )
    if not _is_loopback(settings.host):
        raise NotBuilt(
            f"{settings.host} can be reached from other machines; that needs accounts, which are"
            " not built yet.",
            hint="Start with --host 127.0.0.1 (the default).",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bind(host: str, port: int, option: str) -> list[socket.socket]:
    try:
        return bind_sockets(port, "127.0.0.1" if host == "localhost" else host)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"Port {port} on {host} is in use.",
                hint=f"Stop the program that listens there (`ss -ltnp 'sport = :{port}'` names"
                f" it), or choose another with {option}; 0 picks a free one.",
            ) from None
        if exc.errno == errno.EACCES:
            raise SettingsError(
                f"Port {port} on {host} may not be opened by this user.",
                hint=f"Choose one above 1023 with {option}.",
            ) from None
        raise SettingsError(
            f"{host}:{port} cannot be listened on: {exc.strerror}.",
            hint=f"Check --host and {option}.",
        ) from None


class _Tasks:
    """Work that goes on beside the messages; ended with the coordinator."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            _log.error("A task failed", exc_info=exc, extra={"action": "task.failed"})

    async def close(self) -> None:
        """Let what runs, and what it begins, come to its end for a moment; then stop it."""
        deadline_s = monotonic_s() + STOP_LIMIT_S
        while self._tasks and (left_s := deadline_s - monotonic_s()) > 0:
            await asyncio.wait(self._tasks, timeout=left_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Serving]:
    """Serve until the block is left. Ready when yielded: both ports answer.

    Raises:
        SettingsError: a port is in use, or another process has the data folder.
        NotBuilt: the settings ask for what this release does not have.
    """
    check_settings(settings)
    async with AsyncExitStack() as stack:
        http_sockets = _bind(settings.host, settings.http_port, "--http-port")
        stack.callback(_close_all, http_sockets)
        ws_sockets = _bind(settings.host, settings.ws_port, "--ws-port")
        stack.callback(_close_all, ws_sockets)
        http_port = http_sockets[0].getsockname()[1]
        ws_port = ws_sockets[0].getsockname()[1]
        name = f"[{settings.host}]" if ":" in settings.host else settings.host

        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        store = Store(settings.database_url)
        await store.open()
        stack.push_async_callback(store.close)
        log = SegmentLog(settings.log_dir, max_bytes=settings.max_log_bytes)
        stack.push_async_callback(log.close)
        blobs = LocalBlobs(settings.blobs_dir)
        stack.push_async_callback(blobs.close)
        await blobs.open()
        passwords = Passwords()
        stack.callback(passwords.close)
        tasks = _Tasks()
        stack.push_async_callback(tasks.close)

        context = _build(
            settings, store, log, blobs, passwords, tasks, f"http://{name}:{http_port}"
        )
        await context.dispatcher.recover()
        token = read_or_make_token(settings.data_dir)

        servers = []
        for make, sockets, port in (
            (make_api_listener, http_sockets, http_port),
            (make_worker_listener, ws_sockets, ws_port),
        ):
            server = HTTPServer(
                make(context, OpenGuard(port=port, token=token)), chunk_size=BLOB_CHUNK_BYTES
            )
            # Of a connection that carries messages: each read sets so much memory aside.
            server.read_chunk_size = MESSAGE_CHUNK_BYTES
            server.add_sockets(sockets)
            servers.append(server)
        ticking = asyncio.get_running_loop().create_task(_tick_for_ever(context))
        try:
            yield Serving(context.http_url, f"ws://{name}:{ws_port}{WORKER_PATH}", context)
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)
            for server in servers:
                server.stop()
            for link in context.connections.workers():
                link.close(1001, "the coordinator stops")
            for server in servers:
                await server.close_all_connections()


def _close_all(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()


def _build(
    settings: Settings,
    store: Store,
    log: SegmentLog,
    blobs: LocalBlobs,
    passwords: Passwords,
    tasks: _Tasks,
    http_url: str,
) -> Context:
    connections = Connections()

    def tell(make: Callable[..., OutputAck | OutputResend]) -> Callable[[AttemptOutput], None]:
        def send(output: AttemptOutput) -> None:
            if link := connections.find(output.worker_id):
                link.send(
                    make(job_id=output.job_id, attempt=output.attempt, offset=output.stored_end)
                )

        return send

    context = Context(
        settings=settings,
        store=store,
        log=log,
        blobs=blobs,
        bus=InProcessBus(),
        passwords=passwords,
        scheduler=Scheduler(),
        connections=connections,
        outputs=Outputs(store, log, on_stored=tell(OutputAck), on_resend=tell(OutputResend)),
        counters=Counters(),
        http_url=http_url,
        started_s=monotonic_s(),
        spawn=tasks.spawn,
    )
    context.dispatcher = Dispatcher(context)
    context.sessions = Sessions(context)
    return context


async def _tick_for_ever(context: Context) -> None:
    next_seen_s = monotonic_s() + SEEN_EVERY_S
    while True:
        await asyncio.sleep(TICK_S)
        try:
            _close_silent(context)
            await context.dispatcher.tick()
            await context.sessions.tick()
            if monotonic_s() >= next_seen_s:
                next_seen_s = monotonic_s() + SEEN_EVERY_S
                rows = [link.worker.row_id for link in context.connections.workers()]
                if rows:
                    await context.store.run(enroll.mark_seen, rows)
        except Exception:
            # The next second tries again: everything here is found anew in the database.
            _log.exception("The reaper failed", extra={"action": "tick.failed"})


def _close_silent(context: Context) -> None:
    limit_s = monotonic_s() - context.settings.silence_s
    for link in context.connections.workers():
        if link.heard_s < limit_s:
            link.close(CLOSE_SILENT, "no heartbeat came")
