"""``%%gridx``: a cell that runs on somebody else's machine as if it had run here."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, cell_magic, magics_class, no_var_expand

from gridx.errors import GridXError, TransportError
from gridx.events import ErrorOutput, Event
from gridx.resources import MIB
from gridx.schemas import CellSpec, JobView
from gridx.updates import EventArrived, Finished, LinkChanged, Restarted, StateChanged, Update

from ..connection import Connection, unreachable
from .failures import shown_as_name, shown_as_sentence
from .options import parse_cell_options, usage_error
from .prepare import check_size, dry_run_text, notes_before, prepare
from .publish import Publisher
from .render import StatusLine, footer_text, progress_text
from .result import CellResult, Order
from .screen import Screen
from .visible_cell import visible_cell

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from gridx.blocking import BlockingJob

IDLE_S = 0.25
CANCEL_S = 2.0
MAX_KEPT_BYTES = 40 * MIB  # output of a background cell that waits for .wait()


class Progress:
    """How the job stands, from its updates; the same for cells that wait and cells that do not."""

    def __init__(self, view: JobView) -> None:
        self.view = view
        self.connected = True
        self.restarts = 0
        self._running_since_s: float | None = None

    def note(self, update: Update | None) -> None:
        """Take in one update."""
        match update:
            case StateChanged(view=view):
                self.view = view
            case Finished(view=view):
                self.view = view
            case LinkChanged(connected=connected):
                self.connected = connected
            case Restarted():
                self.restarts += 1
                self._running_since_s = None
            case _:
                pass
        if self.view.started_at is not None and self._running_since_s is None:
            self._running_since_s = time.monotonic()

    def text(self) -> str:
        """Return the line."""
        since_s = self._running_since_s
        running_s = 0.0 if since_s is None else time.monotonic() - since_s
        return progress_text(self.view, running_s, connected=self.connected)


class Foreground:
    """A cell that the notebook waits for. Only the main thread is in here."""

    def __init__(self, order: Order, job: BlockingJob, shell: InteractiveShell) -> None:
        self._order = order
        self._job = job
        screen = Screen(shell)
        self._line = StatusLine(screen, quiet=order.options.quiet)
        self._publisher = Publisher(screen, self._line, job.id)
        self._progress = Progress(job.view)
        self.result = CellResult(job, order, shell)

    def run(self) -> None:
        """Publish until the end, bring the results home, raise the cell's error."""
        try:
            finished = self._watch()
        except KeyboardInterrupt:
            self._interrupted()
            raise
        except TransportError:
            self._line.finish(f"lost the coordinator; see later: `%gridx logs {self._job.id}`")
            raise
        self.result.finish(finished)
        self.result.land(self._publisher.error)
        self._footer(finished)
        if self.result.error is not None:
            raise self.result.error

    def _watch(self) -> Finished:
        for update in self._job.updates(idle_s=IDLE_S):
            self._progress.note(update)
            if isinstance(update, Finished):
                self._publisher.finish()
                return update
            self._line.show(self._progress.text())
            if isinstance(update, EventArrived):
                self._publisher.publish(update.event)
            elif isinstance(update, Restarted):
                self._publisher.restart()
        raise AssertionError("updates() ends with Finished or raises")

    def _footer(self, finished: Finished) -> None:
        notes = self.result.notes
        if not self._order.options.quiet:
            notes = [*notes_before(self._order.captured), *self._publisher.notes(), *notes]
        text = footer_text(finished, attempts_lost=self._progress.restarts)
        self._line.finish(text, notes)

    def _interrupted(self) -> None:
        """Stop the job, with a bounded wait; a second interrupt leaves at once."""
        job_id = self._job.id
        try:
            self._line.make_room()
            finished = self._job.cancel(CANCEL_S)
            if finished is None:
                self._line.finish(f"asked to stop, not confirmed yet: `%gridx cancel {job_id}`")
                return
            self.result.finish(finished)
            self.result.land(self._publisher.error)
            self._footer(finished)
        except KeyboardInterrupt:
            self._line.finish(f"left at once; it may still run: `%gridx cancel {job_id}`")
        except GridXError as exc:
            self._line.finish(f"{exc.message} `%gridx cancel {job_id}` asks again")


class Background:
    """A cell that the notebook does not wait for.

    A thread reads its updates and replaces the one line of the cell; outputs and values wait
    for the main thread.
    """

    def __init__(self, order: Order, job: BlockingJob, shell: InteractiveShell) -> None:
        self._notes_before = notes_before(order.captured)
        self._job = job
        self._screen = Screen(shell)
        self._line = StatusLine(self._screen, quiet=order.options.quiet)
        self._shell = shell
        self._progress = Progress(job.view)
        self._events: list[Event] = []
        self._kept_bytes = 0
        self._lost: GridXError | None = None
        self._shown = False
        self._published: dict[str, Any] | None = None
        self.is_landed = False
        self.result = CellResult(job, order, shell)
        self.result.when_waited(self.wait)

    def start(self) -> None:
        """Show the line and begin to read. For the main thread."""
        if self._screen.is_frontend:
            self._line.show(f"{self._progress.text()} · {self._job.id}")
        threading.Thread(target=self._read, name=f"gridx-{self._job.id}", daemon=True).start()

    def _read(self) -> None:
        try:
            for update in self._job.updates(idle_s=IDLE_S):
                self._progress.note(update)
                if isinstance(update, Finished):
                    self._show_last(update)
                    self.result.finish(update)
                    return
                if isinstance(update, Restarted):
                    self._events.clear()
                    self._kept_bytes = 0
                elif isinstance(update, EventArrived):
                    self._keep(update)
                self._show(f"{self._progress.text()} · {self._job.id}")
        except GridXError as exc:
            self._lost = exc
            self.result.ended.set()

    def _keep(self, update: EventArrived) -> None:
        event = update.event
        size = len(getattr(event, "text", "")) + sum(
            len(part) for field in ("data", "binary") for part in getattr(event, field, {}).values()
        )
        if isinstance(event, ErrorOutput) or self._kept_bytes + size <= MAX_KEPT_BYTES:
            self._kept_bytes += size
            self._events.append(event)

    def _show(self, text: str) -> None:
        # From here only updates by display id are sent: they find their cell from any thread.
        if self._line.display_id is not None:
            self._line.show(text)

    def _show_last(self, finished: Finished) -> None:
        if self._line.display_id is not None:
            text = footer_text(finished, attempts_lost=self._progress.restarts)
            self._line.finish(text, self._notes_before)

    @property
    def has_ended(self) -> bool:
        """Whether the results can land."""
        return self.result.ended.is_set()

    def land(self) -> None:
        """Bind the results. For the main thread, when no cell runs or its code has ended."""
        if self.is_landed:
            return
        self.is_landed = True
        if self._lost is not None:
            self.result.error = shown_as_sentence(self._lost)
            return
        error = next((e.error for e in reversed(self._events) if isinstance(e, ErrorOutput)), None)
        self.result.land(error)
        for note in self.result.notes:
            self._screen.write("stderr", f"Grid-X {self._job.id}: {note}\n")

    def wait(self, timeout_s: float | None) -> None:
        """Wait for the end here, show the output once, bind the results, raise the error."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.result.ended.wait(0.1):
            if until_s is not None and time.monotonic() >= until_s:
                late = TimeoutError(f"{self._job.id} still runs after {timeout_s} s.")
                shown_as_name(late)
                raise late
        if not self._shown:
            self._shown = True
            publisher = Publisher(self._screen, StatusLine(self._screen, quiet=True), self._job.id)
            for event in self._events:
                publisher.publish(event)
            publisher.finish()
        self.land()
        self._events.clear()
        if self.result.error is not None:
            raise self.result.error


@magics_class
class CellMagic(Magics):
    """Holds the background cells of this kernel whose results have not landed yet."""

    def __init__(self, shell: InteractiveShell, connection: Connection) -> None:
        super().__init__(shell=shell)
        self._connection = connection
        self._background: list[Background] = []

    @no_var_expand
    @cell_magic
    def gridx(self, line: str, cell: str) -> CellResult | None:
        """Run this cell on a worker of the grid: %%gridx [options]

        Variables that the cell reads travel there, what it prints and draws appears
        here while it runs, what it binds comes home, and the stop button stops it.

            %%gridx
            total = sum(values)            # values travels there, total comes home

            %%gridx --cpus 4 --mem 8G --timeout 30m
            model = fit(table)

            %%gridx --bg --as run          # go on here; run.wait() shows its output
            result = simulate(1_000_000)

        %gridx help cell lists every option; --dry-run shows what would be sent.
        """
        try:
            return self._gridx(line, cell)
        except KeyboardInterrupt as exc:
            shown_as_name(exc)
            raise

    def _gridx(self, line: str, cell: str) -> CellResult | None:
        shell = self.shell
        assert shell is not None
        try:
            options = parse_cell_options(line, shell.ev)
            if not cell.strip():
                raise usage_error("The cell has no code below its first line.")
            order = prepare(shell, cell, options, visible_cell(shell, line, cell))
            if options.dry_run:
                print(dry_run_text(order, self._connection))
                return None
            job = self._submit(order)
        except GridXError as exc:
            error = exc
        else:
            return self._run(order, job)
        raise shown_as_sentence(error) from None

    def _submit(self, order: Order) -> BlockingJob:
        connection, captured, limits = self._connection, order.captured, order.options.limits()
        welcome = connection.welcome()
        check_size(order, welcome.max_payload_bytes)
        try:
            connection.require_python(captured.python)
            return connection.client.submit(
                order.body,
                timeout_s=limits.timeout_s,
                cpus=limits.cpus,
                memory_bytes=limits.memory_bytes,
                gpus=limits.gpus,
                cell=CellSpec(
                    python=captured.python,
                    expected=tuple(sorted(order.expected)),
                    inputs=tuple(sorted(captured.inputs)),
                    out=order.options.out,
                    cell_id=order.visible.cell_id,
                ),
                inputs=captured.payload,
            )
        except TransportError as exc:
            raise unreachable(connection.settings, exc) from None

    def _run(self, order: Order, job: BlockingJob) -> CellResult | None:
        assert self.shell is not None
        order = order.without_payload()
        if order.options.background:
            background = Background(order, job, self.shell)
            self._background.append(background)
            self._store(order, background.result)
            background.start()
            return None if order.options.store_as else background.result
        foreground = Foreground(order, job, self.shell)
        self._store(order, foreground.result)
        try:
            foreground.run()
        except GridXError as exc:
            error = exc if hasattr(exc, "_render_traceback_") else shown_as_sentence(exc)
        else:
            return None
        raise error from None

    def _store(self, order: Order, result: CellResult) -> None:
        assert self.shell is not None
        if order.options.store_as is not None:
            self.shell.user_ns[order.options.store_as] = result

    def land_ended(self, *_event: object) -> None:
        """Bind the results of background cells that have ended. Called between cells."""
        for background in [b for b in self._background if b.has_ended]:
            background.land()
            self._background.remove(background)
