"""Jobs over REST: submit, list, show, cancel, follow."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

import msgspec

from gridx.errors import GridXError, InvalidRequest, ProtocolError
from gridx.events import ErrorOutput, Event, OutputDropped, Stream, decode_events, split_events
from gridx.ids import parse_job_id, parse_user_name
from gridx.protocol import CallChanged, JobChanged, Output, Position
from gridx.resources import MIB
from gridx.schemas import JobDetail, JobList, JobRequest
from gridx.states import JobState

from ..rules.access import Caller, acting_user
from ..services import views
from .base import Call, EventStream, Reply
from .intake import take_order
from .watch import Watcher

if TYPE_CHECKING:
    from .context import Context

MAX_SHOWN_CHARACTERS = 1 * MIB  # of stdout and of stderr each, in GET /jobs/{id}
MAX_READ_BYTES = 16 * MIB  # of the stream, for that view; the events have all of it
_KEEP_ALIVE_S = 15.0
_STATUSES = ("queued", "running", "completed", "failed", "cancelled")
_POSITION = re.compile(r"(\d{1,9}):(\d{1,18})\Z")


class JobsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``GET /jobs``: whose, how many, from where on (``next`` of the page before), in which state."""

    user_id: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50
    before: str | None = None
    status: str | None = None


class EventsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``GET /jobs/{job_id}/events``: the position to go on from, as ``attempt:offset``."""

    after: str | None = None


def _owner(caller: Caller) -> str | None:
    """Return whose jobs the caller sees; None: everybody's."""
    return None if caller.is_open else caller.user


async def submit_job(context: Context, call: Call) -> Reply:
    """Take a script job in."""
    body: JobRequest = call.body
    submitted = await context.dispatcher.submit(take_order(call.caller, body))
    view = context.view(submitted.job)
    if submitted.is_new:
        # What was accepted, not what became of it in the same moment: a new job is queued.
        view = msgspec.structs.replace(view, status=JobState.QUEUED.value)
    return Reply(value=view, status=201 if submitted.is_new else 200)


async def list_jobs(context: Context, call: Call) -> Reply:
    """List jobs, newest first."""
    query: JobsQuery = call.query
    user = acting_user(call.caller, query.user_id)
    if user is not None:
        parse_user_name(user)
    if query.before is not None:
        parse_job_id(query.before)
    if query.status is not None and query.status not in _STATUSES:
        raise InvalidRequest(
            f"{query.status[:40]!r} is not a status.", hint=f"Use one of {', '.join(_STATUSES)}."
        )
    state = None if query.status is None else JobState(query.status)
    page = await context.store.read(
        views.list_jobs, user, before=query.before, limit=query.limit, state=state
    )
    shown = tuple(context.view(job) for job in page.jobs)
    return Reply(value=JobList(jobs=shown, next=page.next))


async def show_job(context: Context, call: Call) -> Reply:
    """Show one job with its output."""
    job_id = parse_job_id(call.path["job_id"])
    job = await context.store.read(views.get_job, job_id, _owner(call.caller))
    text = await _read_text(context, job_id, job.attempt)
    view = context.view(job)
    usage = await context.store.read(views.find_usage, job) if job.is_final else None
    detail = JobDetail(
        **{name: getattr(view, name) for name in view.__struct_fields__},
        code=job.job.code,
        stdout=text.stdout,
        stderr=text.stderr,
        output_truncated=text.is_truncated,
        usage=usage,
    )
    return Reply(value=detail)


async def cancel_job(context: Context, call: Call) -> Reply:
    """Stop a job."""
    job_id = parse_job_id(call.path["job_id"])
    done = await context.dispatcher.cancel(job_id, _owner(call.caller))
    return Reply(value=context.view(done.job))


async def stream_events(context: Context, call: Call) -> EventStream:
    """Follow a job from a position on."""
    job_id = parse_job_id(call.path["job_id"])
    query: EventsQuery = call.query
    after = _parse_position(call.last_event_id or query.after)
    user = _owner(call.caller)
    await context.store.read(views.get_job, job_id, user)  # 404 before the stream begins
    return EventStream(_follow(context, job_id, user, after))


# --- text ------------------------------------------------------------------------------------


class _Text:
    """Collects what a terminal would show, up to a limit for each stream."""

    def __init__(self) -> None:
        self._parts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._left = {"stdout": MAX_SHOWN_CHARACTERS, "stderr": MAX_SHOWN_CHARACTERS}
        self.is_truncated = False

    @property
    def stdout(self) -> str:
        return "".join(self._parts["stdout"])

    @property
    def stderr(self) -> str:
        return "".join(self._parts["stderr"])

    def add(self, event: Event) -> None:
        match event:
            case Stream():
                self._add_text(event.name, event.text)
            case ErrorOutput():
                self._add_text("stderr", _traceback_of(event))
            case OutputDropped():
                self.is_truncated = True
                self._add_text("stdout", f"\n[{event.dropped_bytes} bytes left out]\n")
            case _:
                pass  # a terminal shows no pictures

    def _add_text(self, name: str, text: str) -> None:
        shown = text[: self._left[name]]
        self.is_truncated |= len(shown) < len(text)
        self._left[name] -= len(shown)
        self._parts[name].append(shown)


def _traceback_of(event: ErrorOutput) -> str:
    from gridx.remote_error import format_plain  # only where a job failed: it is not small

    try:
        return format_plain(event.error)
    except (KeyError, TypeError, ValueError, GridXError):
        return "An error whose description is malformed.\n"


def _events_of(data: bytes) -> list[tuple[int, Event | None]]:
    """Return each event of a piece with its size; None where its worker sent nonsense."""
    found: list[tuple[int, Event | None]] = []
    for piece in split_events(data):
        try:
            found.append((len(piece), next(decode_events(piece))))
        except ProtocolError:
            found.append((len(piece), None))
    return found


async def _read_text(context: Context, job_id: str, attempt: int) -> _Text:
    text = _Text()
    if attempt == 0:
        return text
    position = 0
    async for offset, data in context.outputs.read(job_id, attempt, 0):
        for _, event in _events_of(data):
            if event is not None:
                text.add(event)
        position = offset + len(data)
        if position > MAX_READ_BYTES:
            text.is_truncated = True
            return text
        await asyncio.sleep(0)  # a long output must not keep everybody else waiting
    live = context.outputs.find(job_id, attempt)
    if live is not None and live.stored_end <= position:
        for _, event in _events_of(live.tail(position)):
            if event is not None:
                text.add(event)
    return text


# --- server-sent events ----------------------------------------------------------------------


def _parse_position(text: str | None) -> Position:
    if not text:
        return Position()
    match = _POSITION.match(text)
    if match is None:
        raise InvalidRequest(
            f"{text[:80]!r} is not a position.",
            hint="A position is attempt:offset, such as 1:4096: the id of the last event.",
        )
    return Position(attempt=int(match[1]), offset=int(match[2]))


class _Queue:
    """A sink that holds messages until the connection has taken them."""

    def __init__(self) -> None:
        self._messages: deque[JobChanged | CallChanged | Output] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self.is_closed = False

    def send(self, message: JobChanged | CallChanged | Output) -> None:
        self._messages.append(message)
        self._bytes += len(message.data) if isinstance(message, Output) else 256
        self._changed.set()

    @property
    def is_full(self) -> bool:
        return self._bytes > MIB

    async def drained(self) -> None:
        while self.is_full and not self.is_closed:
            self._taken.clear()
            await self._taken.wait()

    def close(self) -> None:
        self.is_closed = True
        self._changed.set()
        self._taken.set()

    async def take(self) -> JobChanged | CallChanged | Output | None:
        """Return the next message; None at the end, or when it is time to show signs of life."""
        while not self._messages and not self.is_closed:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), _KEEP_ALIVE_S)
            except TimeoutError:
                return None
        if not self._messages:
            return None
        message = self._messages.popleft()
        self._bytes -= len(message.data) if isinstance(message, Output) else 256
        self._taken.set()
        return message


def _event_text(name: str, data: bytes, position: str | None = None) -> bytes:
    head = f"id: {position}\n" if position else ""
    return f"{head}event: {name}\n".encode() + b"data: " + data + b"\n\n"


async def _follow(
    context: Context, job_id: str, user: str | None, after: Position
) -> AsyncIterator[bytes]:
    queue = _Queue()
    watcher = Watcher(context, job_id, user, after, queue, lambda *_: queue.close())
    watcher.catch_up()
    try:
        while True:
            message = await queue.take()
            if message is None:
                if queue.is_closed:
                    return
                yield b": still here\n\n"
            elif isinstance(message, JobChanged):
                yield _event_text("job", msgspec.json.encode(message.job))
            elif isinstance(message, CallChanged):
                shown = msgspec.structs.replace(message, result=None, result_blobs=())
                yield _event_text("call", msgspec.json.encode(shown))
            else:
                yield _output_text(message)
    finally:
        watcher.close()
        queue.close()


def _output_text(message: Output) -> bytes:
    parts, offset = [], message.offset
    for size, event in _events_of(message.data):
        offset += size
        if event is not None:
            position = f"{message.attempt}:{offset}"
            parts.append(_event_text("output", msgspec.json.encode(event), position))
    return b"".join(parts)
