"""A cell that the notebook waits for. Only the main thread is in here."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gridx.errors import GridXError, TransportError
from gridx.events import Stream
from gridx.states import FINAL_JOB_STATES
from gridx.updates import EventArrived, Finished, Restarted

from .order import Order
from .prepare import notes_before
from .progress import Progress, prepare_display, status_line
from .publish import Publisher
from .render import StatusLine, footer_text, receiving_text, should_notify
from .result import CellResult, Watched
from .screen import Screen

if TYPE_CHECKING:
    from .notebook import Notebook

Footer = Callable[[Finished], str]
"""Returns the line that stays."""

IDLE_S = 0.25
CANCEL_S = 2.0


class Foreground:
    """Shows one job until its end, and brings its results home."""

    def __init__(
        self,
        order: Order,
        job: Watched,
        notebook: Notebook,
        screen: Screen | None = None,
        line: StatusLine | None = None,
        footer: Footer | None = None,
    ) -> None:
        self._footer_of = footer
        self._begun_s = time.monotonic()
        self._order = order
        self._job = job
        self._notebook = notebook
        self._screen = screen or Screen(notebook.shell)
        self._line = line or status_line(self._screen, order.options)
        self._publisher = Publisher(self._screen, self._line, job.id)
        self._progress = Progress(job.view)
        self.keeps_output = order.options.store_as is not None or order.options.cache is not None
        self.result = CellResult(job, order, notebook)

    def run(self) -> None:
        """Publish until the end, bring the results home, raise the cell's error."""
        try:
            finished = self._watch()
        except KeyboardInterrupt:
            self._interrupted()
            raise
        except TransportError:
            self._leave_behind()
            self._line.finish(f"lost the coordinator; see later: `%gridx attach {self._job.id}`")
            raise
        self._finish(finished)
        if self.result.raised is not None:
            raise self.result.raised

    def _finish(self, finished: Finished) -> None:
        self.result.fetch(finished, self._receiving)
        self.result.finish(finished)
        self.result.land(self._publisher.error)
        self._footer(finished)

    def _receiving(self, done_bytes: int, total_bytes: int) -> None:
        self._line.show(receiving_text(done_bytes, total_bytes))

    def _watch(self) -> Finished:
        for update in self._job.updates(idle_s=IDLE_S):
            self._progress.note(update)
            if isinstance(update, Finished):
                self._publisher.finish()
                return update
            if self._progress.view.status not in FINAL_JOB_STATES:
                self._line.show(self._progress.text())
            if isinstance(update, EventArrived):
                if not isinstance(update.event, Stream):
                    prepare_display(
                        self._publisher,
                        self._order,
                        self._progress.view,
                        update.position.attempt,
                    )
                self._publisher.publish(update.event)
                self._notebook.journal.note_position(self._job.id, update.position)
            elif isinstance(update, Restarted):
                self._publisher.restart()
            else:
                self._publisher.tick()
            if self.keeps_output:
                self.result.kept.note(update)
        raise AssertionError("updates() ends with Finished or raises")

    def _footer(self, finished: Finished) -> None:
        if self._footer_of is not None:
            text = self._footer_of(finished)
        else:
            text = footer_text(finished, attempts_lost=self._progress.restarts)
        notes = self.result.notes
        if not self._order.options.quiet:
            notes = [*notes_before(self._order), *self._publisher.notes(), *notes]
        self._line.finish(text, notes)
        if should_notify(time.monotonic() - self._begun_s, self._notebook.notify_after_s):
            self._line.notify()

    def _interrupted(self) -> None:
        """Do what --on-interrupt says, with a bounded wait; a second interrupt leaves at once."""
        job_id = self._job.id
        try:
            self._line.make_room()
            if self._wants_detach():
                self._detach()
            else:
                self._cancel()
        except KeyboardInterrupt:
            self._leave_behind()
            self._line.finish(
                f"left at once; it may still run: `%gridx cancel {job_id}`, "
                f"or `%gridx attach {job_id}`"
            )
        except GridXError as exc:
            self._line.finish(f"{exc.message} `%gridx cancel {job_id}` asks again")

    def _cancel(self) -> None:
        finished = self._job.cancel(CANCEL_S)
        if finished is None:
            self._line.finish(f"asked to stop, not confirmed yet: `%gridx cancel {self._job.id}`")
            return
        self._finish(finished)

    def _leave_behind(self) -> None:
        """Remember the cell for `%gridx attach`: what the user binds from here on stays."""
        order = self._order.at(self._notebook.shell.user_ns)
        self._notebook.left_behind[self._job.id] = order

    def _wants_detach(self) -> bool:
        what = self._order.options.on_interrupt
        if what != "ask" or not self._notebook.may_ask():
            return what == "detach"
        answer = input(f"Stop {self._job.id}? [Y]es, or [n]o: it goes on without this cell: ")
        return answer.strip().lower() in ("n", "no")

    def _detach(self) -> None:
        from .background import Background

        order = self._order.at(self._notebook.shell.user_ns)
        background = Background(
            order, self._job, self._notebook, self._screen, self._line, self._footer_of
        )
        self._notebook.backgrounds.append(background)
        if order.options.store_as is not None:
            self._notebook.shell.user_ns[order.options.store_as] = background.result
        self._line.finish(f"goes on without this cell: `%gridx attach {self._job.id}`")
        background.start()
