"""The sessions of one kernel: sandboxes that are kept between cells, by name.

Only what has changed travels: for each name that the sandbox has, a fingerprint of the value as
this notebook had it then. What came home in a form that the notebook cannot open, or not at all,
stays usable in later cells of the session, under its name there.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from gridx.credits import format_credits
from gridx.display import clean_line
from gridx.errors import GridXError, InvalidRequest, JobError, NotFound, WorkerLost
from gridx.ids import new_job_id
from gridx.quantities import format_duration
from gridx.states import FINAL_JOB_STATES
from gridx.terminal import table
from gridx.updates import Finished

from .options import CellOptions
from .order import Order
from .render import footer_text, sending_text
from .send import ask_before_upload, check_size, entry_of

if TYPE_CHECKING:
    from gridx.blocking import BlockingCall, BlockingSession
    from gridx.schemas import JobView
    from gridx.ship.fingerprint import Fingerprint

    from .notebook import Notebook
    from .render import StatusLine
    from .result import CellResult

LONGEST_S: Final = 3600.0
_LISTED: Final = 100


@dataclass
class OpenSession:
    """One session of this kernel, and what its sandbox has."""

    name: str
    link: BlockingSession
    rate_ucr: int
    limit_s: float
    opened_s: float = field(default_factory=time.monotonic)
    known: dict[str, Fingerprint] = field(default_factory=dict)
    remote_names: set[str] = field(default_factory=set)
    cells: dict[str, tuple[str, int]] = field(default_factory=dict)  # as its worker names them
    handles: dict[str, object] = field(default_factory=dict)  # closed here, open there
    image: str | None = None  # what its first cell asked for; None: a cell of another kernel did
    pip: tuple[str, ...] = ()

    @property
    def age_s(self) -> float:
        """How long it is open."""
        return time.monotonic() - self.opened_s

    def options_of(self, options: CellOptions) -> CellOptions:
        """Return the options of one more cell, with the image and the packages that are there.

        Raises:
            InvalidRequest: it asks for others.
        """
        if self.image is None:
            return dataclasses.replace(options, image="", pip=())
        image = self.image or "python"
        wanted = options.image or image
        more = [package for package in options.pip if package not in self.pip]
        if wanted != image or more:
            has = f"the image {image}"
            if self.pip:
                has += f" with {', '.join(self.pip)}"
            asked = ", ".join(more) if more else f"the image {wanted}"
            raise InvalidRequest(
                f"Session {self.name} has {has}, as its first cell asked; this one asks for "
                f"{asked}. Nothing was run.",
                hint=f"Leave {'--pip' if more else '--image'} out, begin another session, or end "
                f"this one first: `%gridx session stop {self.name}`.",
            )
        return dataclasses.replace(options, image=self.image, pip=self.pip)

    def with_earlier(self, order: Order, call: BlockingCall) -> Order:
        """Return ``order`` with the earlier cells, in which an error may have a frame."""
        known = dict(self.cells)
        name = f"<cell {call.number}>" if call.number else "<cell>"
        self.cells[name] = (order.visible.file, order.visible.line_offset)
        return dataclasses.replace(order, earlier=known)

    def kept_there(self, namespace: dict[str, Any]) -> set[str]:
        """Return the names that here are only handles on what the sandbox has."""
        return {n for n, handle in self.handles.items() if namespace.get(n) is handle}

    def note(self, order: Order, result: CellResult, namespace: dict[str, Any]) -> None:
        """Learn what the sandbox has, once a cell of it has landed."""
        from gridx.ship.fingerprint import fingerprints

        captured, applied = order.captured, result.applied
        if result.state == "cancelled" or result.is_not_begun or captured is None:
            # How far it came is not known: the next cell sends its inputs again.
            self.known.clear()
        if captured is None or result.is_not_begun:
            return
        home: set[str] = set()
        if applied is not None:
            home = {*applied.bound, *applied.updated_in_place, *applied.replayed}
            home -= applied.opaque.keys()
            for name in applied.deleted:
                self.known.pop(name, None)
                self.remote_names.discard(name)
            self.handles.update(applied.opaque)
            self.remote_names |= {*applied.opaque, *applied.refused, *applied.unexpected}
        if result.ok:
            self.remote_names |= captured.writes - captured.deletes
        self.remote_names -= home
        for name in self.remote_names:
            self.known.pop(name, None)
        self.known.update(fingerprints(namespace, home))

    def footer(self, finished: Finished) -> str:
        """Return the line that stays below a cell of it."""
        so_far = format_credits(int(self.rate_ucr * self.age_s))
        return (
            f"{footer_text(finished)} · session {self.name} open {format_duration(self.age_s)} of "
            f"{format_duration(self.limit_s)}, at most {so_far} so far"
        )


class Sessions:
    """The open sessions by name."""

    def __init__(self, notebook: Notebook) -> None:
        self._notebook = notebook
        self._open: dict[str, OpenSession] = {}

    def names(self) -> list[str]:
        """Return the names that were used here."""
        return sorted(self._open)

    def find(self, name: str) -> tuple[OpenSession | None, str]:
        """Return the open session of that name, and a sentence when it has ended meanwhile."""
        held = self._open.get(name)
        error = None if held is None else held.link.error()
        if error is None:
            return held, ""
        del self._open[name]
        return (
            None,
            f"session {name} had ended ({clean_line(error.message, 200)}): a new one begins",
        )

    def send(self, order: Order, held: OpenSession | None, line: StatusLine) -> BlockingCall:
        """Submit a cell as the next call of ``held``, or as the first of a new session.

        Raises:
            GridXError: it was refused; nothing runs.
            WorkerLost, SessionEnded: the session is no more.
        """
        notebook, captured = self._notebook, order.captured
        assert captured is not None
        welcome = notebook.connection.welcome()
        check_size(order, welcome.max_payload_bytes)
        ask_before_upload(order, notebook)

        def sending(done_bytes: int, total_bytes: int) -> None:
            line.show(sending_text(done_bytes, total_bytes))

        if held is None:
            held = self._begin(order, sending)
            call = held.link.newest
        else:
            number = held.link.newest.number + 1
            notebook.journal.write(entry_of(order, notebook, held.link.id, number))
            try:
                call = held.link.call(
                    order.body,
                    cell=order.spec,
                    inputs=captured.payload,
                    blobs=order.blobs,
                    timeout_s=order.options.timeout_s,
                    on_progress=sending,
                )
            except JobError as exc:
                raise self._gone(held, exc) from None
        notebook.latest_job = held.link.id
        notebook.sent_digests.update(blob.ref.digest for blob in order.blobs)
        held.known.update(captured.fingerprints)
        held.remote_names -= captured.fingerprints.keys()
        return call

    def _begin(self, order: Order, sending: Any) -> OpenSession:
        notebook, options, captured = self._notebook, order.options, order.captured
        assert captured is not None
        assert options.session is not None
        job_id = new_job_id()
        rate_ucr, limit_s = self._price(order)
        notebook.journal.write(entry_of(order, notebook, job_id))
        try:
            link = notebook.connection.client.open_session(
                order.body,
                options.session,
                cell=order.spec,
                inputs=captured.payload,
                blobs=order.blobs,
                call_timeout_s=options.timeout_s,
                open_limit_s=limit_s,
                cpus=options.cpus,
                memory_bytes=options.mem_bytes,
                gpus=options.gpus,
                gpu_model=options.gpu_model,
                disk_bytes=options.disk_bytes,
                image=options.image,
                pip=options.pip,
                on_progress=sending,
                job_id=job_id,
            )
        except GridXError:
            notebook.journal.forget(job_id)
            raise
        held = OpenSession(
            options.session, link, rate_ucr, limit_s, image=options.image, pip=options.pip
        )
        self._open[held.name] = held
        return held

    def _price(self, order: Order) -> tuple[int, float]:
        """Return the rate, and how long the session may be open.

        It is held for at most half of what the user has free: other cells want to run too.
        """
        options, welcome = order.options, self._notebook.connection.welcome()
        rate_ucr = welcome.rates.rate_ucr_per_s(options.limits().request())
        if options.session_time_s is not None:
            return rate_ucr, max(options.session_time_s, options.timeout_s)
        account = self._notebook.connection.client.balance()
        affordable_s = account.available * 1e6 / 2 / rate_ucr if rate_ucr else LONGEST_S
        return rate_ucr, max(options.timeout_s, min(LONGEST_S, affordable_s))

    def _gone(self, held: OpenSession, error: JobError) -> JobError:
        """Return ``error`` with what is left of the session: nothing."""
        self._open.pop(held.name, None)
        return type(error)(
            f"{error.message} The variables of session {held.name} are gone. Nothing was run.",
            hint="Run the cell again: it begins a new session of that name.",
            **error.details,
        )

    def landed(self, held: OpenSession, order: Order, result: CellResult) -> None:
        """Look after ``held`` when one of its cells has landed."""
        held.note(order, result, self._notebook.shell.user_ns)
        error = held.link.error()
        if error is None:
            return
        self._open.pop(held.name, None)
        result.notes.append(
            f"session {held.name} has ended, and its variables are gone; the next cell of that "
            f"name begins a new one"
        )
        if isinstance(result.error, WorkerLost):
            result.error.add_note(f"The variables of session {held.name} are gone.")

    def of(self, call: BlockingCall) -> OpenSession:
        """Return the session of a call that was sent."""
        return next(held for held in self._open.values() if held.link.id == call.id)

    def list_text(self) -> str:
        """Return the user's open sessions as a table."""
        mine = {held.link.id for held in self._open.values()}
        found = self._listed()
        if not found:
            return "No session is open. %%gridx --session NAME begins one."
        head = ("NAME", "STATUS", "WORKER", "OPEN", "COST", "KERNEL", "JOB")
        rows = [
            (
                job.session or "",
                job.status,
                job.worker_name or "",
                _open_for(job),
                f"{job.cost:.2f}",
                "this one" if job.job_id in mine else "",
                job.job_id,
            )
            for job in found
        ]
        return table(head, rows, right=(3, 4))

    def stop(self, name: str) -> str:
        """Close the session of that name; return what to say."""
        held = self._open.pop(name, None)
        link = held.link if held is not None else self._attached(name)
        finished = link.end()
        if finished is None:
            return f"Session {name} was asked to end; `%gridx session list` shows whether it has."
        cost = format_credits(finished.cost_ucr)
        return f"Session {name} has ended, cost {cost}. Its variables are gone."

    def attach(self, name: str) -> str:
        """Go on with a session of an earlier kernel; return what to say."""
        held, _ = self.find(name)
        if held is not None:
            return f"Session {name} is open in this kernel already."
        link = self._attached(name)
        limits = link.view.limits
        rates = self._notebook.connection.welcome().rates
        held = OpenSession(name, link, rates.rate_ucr_per_s(limits.request()), limits.timeout_s)
        if link.view.elapsed_s is not None:
            held.opened_s -= link.view.elapsed_s
        for entry in self._notebook.journal.mine():
            if entry.job_id == link.id:
                held.remote_names |= set(entry.spec.expected)
        self._open[name] = held
        return (
            f"Session {name} is back: `%%gridx --session {name}` goes on in it. Its last cell: "
            f"`%gridx attach {link.id}`."
        )

    def _listed(self) -> list[JobView]:
        jobs = self._notebook.connection.client.jobs(limit=_LISTED).jobs
        return [j for j in jobs if j.kind == "session" and j.status not in FINAL_JOB_STATES]

    def _attached(self, name: str) -> BlockingSession:
        found = next((job for job in self._listed() if job.session == name), None)
        if found is None:
            raise NotFound(
                f"No session {name!r} is open.",
                hint=f"`%gridx session list` shows yours; %%gridx --session {name} begins one.",
            )
        return self._notebook.connection.client.attach_session(found.job_id)


def _open_for(job: JobView) -> str:
    """Return how long a session is open, by this machine's clock."""
    if job.started_at is None:
        return ""
    return format_duration(max(0.0, (datetime.now(UTC) - job.started_at).total_seconds()))
