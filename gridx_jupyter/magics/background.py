"""A cell that the notebook does not wait for.

A thread reads its updates and replaces the one line of the cell; outputs and values wait for
the main thread.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from gridx.errors import GridXError
from gridx.updates import Finished

from .failures import shown_as_name
from .order import Order
from .prepare import notes_before
from .progress import Progress, prepare_display, status_line
from .publish import Publisher
from .render import StatusLine, footer_text, should_notify
from .result import CellResult, Watched
from .screen import Screen

if TYPE_CHECKING:
    from .foreground import Footer
    from .notebook import Notebook

IDLE_S = 0.25


class Background:
    """Reads one job in a thread; ``land`` and ``wait`` are for the main thread."""

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
        self._order = order.landed()
        self._notes_before = notes_before(order)
        self._job = job
        self._screen = screen or Screen(notebook.shell)
        self._line = line or status_line(self._screen, order.options)
        self._notebook = notebook
        self._progress = Progress(job.view)
        self._lost: GridXError | None = None
        self._shown = False
        self.is_landed = False
        self.result = CellResult(job, order, notebook)
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
                self.result.kept.note(update)
                if isinstance(update, Finished):
                    self.result.fetch(update)
                    self._show_last(update)
                    self.result.finish(update)
                    return
                self._show(f"{self._progress.text()} · {self._job.id}")
        except GridXError as exc:
            self._lost = exc
            self.result.end()

    def _show(self, text: str) -> None:
        # From here only updates by display id are sent: they find their cell from any thread.
        if self._line.display_id is not None:
            self._line.show(text)

    def _show_last(self, finished: Finished) -> None:
        if self._line.display_id is not None:
            if self._footer_of is not None:
                text = self._footer_of(finished)
            else:
                text = footer_text(finished, attempts_lost=self._progress.restarts)
            self._line.finish(text, self._notes_before)
            if should_notify(time.monotonic() - self._begun_s, self._notebook.notify_after_s):
                self._line.notify()

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
            self.result.fail(self._lost)
            return
        self.result.land(self.result.kept.error)
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
            line = StatusLine(self._screen, quiet=True)
            publisher = Publisher(self._screen, line, self._job.id)
            prepare_display(publisher, self._order, self._progress.view)
            for event in self.result.kept.events:
                publisher.publish(event)
            publisher.finish()
        self.land()
        if self.result.error is not None:
            raise self.result.error  # itself: the user's code may catch it by its class
