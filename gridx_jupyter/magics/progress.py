"""How a job stands, from its updates; the same for cells that wait and cells that do not."""

from __future__ import annotations

import time

import msgspec

from gridx.schemas import JobView
from gridx.updates import Finished, LinkChanged, Restarted, StateChanged, Update

from .options import CellOptions
from .order import Order
from .publish import Publisher
from .render import StatusLine, progress_text, worker_of
from .screen import Screen
from .trusted import show_for


class Progress:
    """The newest state of one job, and its line."""

    def __init__(self, view: JobView) -> None:
        self.view = view
        self.connected = True
        self.restarts = 0
        self._running_since_s: float | None = None
        self._still_since_s: float | None = None  # it stands still, and so does its clock

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
                self._running_since_s = self._still_since_s = None
            case _:
                pass
        now_s = time.monotonic()
        if self.view.started_at is not None and self._running_since_s is None:
            self._running_since_s = now_s
        self._stand_still(self._running_since_s is not None and bool(self.view.waiting), now_s)

    def _stand_still(self, is_still: bool, now_s: float) -> None:
        if is_still and self._still_since_s is None:
            self._still_since_s = now_s
        elif not is_still and self._still_since_s is not None:
            if self._running_since_s is not None:
                self._running_since_s += now_s - self._still_since_s
            self._still_since_s = None

    def text(self) -> str:
        """Return the line."""
        since_s = self._running_since_s
        until_s = time.monotonic() if self._still_since_s is None else self._still_since_s
        running_s = 0.0 if since_s is None else until_s - since_s
        return progress_text(self.view, running_s, connected=self.connected)


def status_line(screen: Screen, options: CellOptions) -> StatusLine:
    """Return the line of a cell with these options."""
    return StatusLine(screen, quiet=options.quiet, progress=options.progress)


def prepare_display(
    publisher: Publisher, order: Order, view: JobView, attempt: int | None = None
) -> None:
    """Tell ``publisher`` whose rich output comes, and how it may be shown.

    Args:
        attempt: that of the output, where ``view`` may be of an earlier one: who runs it now is
            not known then, and nobody is trusted.
    """
    if attempt is not None and attempt != view.attempt:
        view = msgspec.structs.replace(view, worker_id=None, worker_name=None, worker_key="")
    publisher.worker = worker_of(view)
    publisher.show = show_for(order.options.show, view)
