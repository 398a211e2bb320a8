"""The one line of a remote cell: how it stands while it runs, what it cost when it ended."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Final

from gridx.credits import format_credits
from gridx.display import clean_line
from gridx.quantities import format_duration
from gridx.schemas import JobView
from gridx.states import JobState
from gridx.updates import Finished

from .screen import Screen

UPDATE_EVERY_S: Final = 0.25


def worker_of(view: JobView) -> str:
    """Return the name of the job's worker, safe to show."""
    return clean_line(view.worker_name or view.worker_id or "", 60)


def progress_text(view: JobView, running_s: float, *, connected: bool = True) -> str:
    """Return how a job stands: ``queued``, ``starting`` or ``running``, with the reason or time."""
    if not connected:
        return "connection lost, reconnecting; the cell goes on"
    if view.status == JobState.QUEUED:
        waiting = clean_line(view.waiting or "", 200)
        return f"queued ({waiting})" if waiting else "queued"
    if view.started_at is None:
        return f"starting on {worker_of(view)}"
    minutes, seconds = divmod(int(running_s), 60)
    return f"running {minutes:02d}:{seconds:02d} on {worker_of(view)}"


def footer_text(finished: Finished, *, attempts_lost: int = 0) -> str:
    """Return one line: what happened, where, how long, what it cost, what is left."""
    view = finished.view
    parts = [clean_line(view.status, 20)]
    if view.worker_name or view.worker_id:
        parts.append(f"on {worker_of(view)}")
    if view.elapsed_s is not None:
        parts.append(f"in {format_duration(view.elapsed_s)}")
    line = " ".join(parts) + f" · cost {format_credits(finished.cost_ucr)}"
    if finished.balance_ucr is not None:
        line += f" · balance {format_credits(finished.balance_ucr)}"
    if attempts_lost:
        line += f" · attempt {view.attempt}, a worker was lost"
    return f"{line} · {view.job_id}"


class StatusLine:
    """One display in place, at most four changes a second; on a terminal one line on stderr."""

    def __init__(
        self,
        screen: Screen,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._screen = screen
        self._quiet = quiet
        self._clock = clock
        self._display_id: str | None = None
        self._text = ""
        self._at_s = float("-inf")
        self._width = 0

    def show(self, text: str) -> None:
        """Show ``text`` as it stands now, unless the last change was a moment ago."""
        if self._quiet or text == self._text or self._clock() - self._at_s < UPDATE_EVERY_S:
            return
        self._put(text)

    def show_again(self) -> None:
        """Show the line anew, after the cell's output was cleared."""
        if self._display_id is not None:
            self._screen.display(self._bundle(self._text), {}, self._display_id)

    def finish(self, text: str, notes: Sequence[str] = ()) -> None:
        """Show the last text, which stays, and the notes below it."""
        if self._quiet:
            for note in notes:
                self._screen.write("stderr", f"Grid-X: {note}\n")
            return
        self._put("\n".join([text, *(f"  {note}" for note in notes)]), last=True)

    @property
    def display_id(self) -> str | None:
        """The id to replace the line by, once it was shown."""
        return self._display_id

    @staticmethod
    def _bundle(text: str) -> dict[str, str]:
        return {"text/plain": f"Grid-X: {text}"}

    def _put(self, text: str, *, last: bool = False) -> None:
        self._text, self._at_s = text, self._clock()
        if self._screen.is_frontend:
            if self._display_id is None:
                self._display_id = uuid.uuid4().hex
                self._screen.display(self._bundle(text), {}, self._display_id)
            else:
                self._screen.update(self._bundle(text), {}, self._display_id)
        elif self._screen.is_terminal:
            line = f"Grid-X: {text}"
            self._screen.write("stderr", f"\r{line:<{self._width}}" + ("\n" if last else ""))
            self._width = 0 if last else len(line)
            self._screen.flush()
        elif last:
            self._screen.flush()
            self._screen.write("stderr", f"Grid-X: {text}\n")

    def make_room(self) -> None:
        """End the terminal's line before other output is written over it."""
        if self._width and self._screen.is_terminal:
            self._screen.write("stderr", "\r" + " " * self._width + "\r")
            self._width = 0
