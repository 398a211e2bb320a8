"""A job's output on a terminal: text as it comes, everything else in words."""

from __future__ import annotations

import sys
from typing import assert_never

from .display.text import TextCleaner
from .events import (
    ClearOutput,
    DisplayData,
    ErrorOutput,
    Event,
    ExecuteResult,
    OutputDropped,
    Stream,
    UpdateDisplayData,
)
from .resources import format_bytes
from .schemas import JobView
from .states import FINAL_JOB_STATES
from .terminal import plain_text
from .updates import EventArrived, Finished, LinkChanged, Restarted, StateChanged, Update


class Console:
    """Writes one job's updates: its stdout on ours, its stderr and our remarks on ours too."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._cleaners = {"stdout": TextCleaner(), "stderr": TextCleaner()}
        self._waiting: str | None = None
        self._is_still = False
        self._line_is_open = False

    def show(self, update: Update | None) -> None:
        """Write one update; None, a silence, shows what is still in a buffer."""
        match update:
            case None | Finished():
                self._flush()
            case EventArrived():
                self._show_event(update.event)
            case StateChanged():
                self._show_waiting(update.view)
            case Restarted():
                self._remark(
                    f"attempt {update.attempt} begins, the one before could not finish; the output"
                    " starts again"
                )
            case LinkChanged():
                self._remark(
                    "the coordinator is back"
                    if update.connected
                    else "the connection was lost; the job goes on, looking for the coordinator …"
                )
            case _:
                assert_never(update)

    def _show_waiting(self, view: JobView) -> None:
        waiting = view.waiting
        if waiting and waiting != self._waiting:
            self._remark(f"waiting: {waiting}" if view.status == "queued" else waiting)
        is_still = bool(waiting) and view.started_at is not None
        if self._is_still and not is_still and view.status not in FINAL_JOB_STATES:
            self._remark("it goes on")
        self._waiting, self._is_still = waiting, is_still

    def close(self) -> None:
        """Write what was kept back, with colours switched off."""
        for name in self._cleaners:
            self._write(name, self._cleaners[name].finish())
        self._flush()

    def _show_event(self, event: Event) -> None:
        match event:
            case Stream():
                self._write(event.name, self._cleaners[event.name].feed(event.text))
            case DisplayData() | UpdateDisplayData() | ExecuteResult():
                self._write("stdout", self._in_words(event) + "\n")
            case ErrorOutput():
                from .remote_error import format_plain

                self._write("stderr", plain_text(format_plain(event.error)))
            case OutputDropped():
                self._remark(f"{format_bytes(event.dropped_bytes)} of output left out here")
            case ClearOutput():
                pass  # a terminal keeps what it has shown
            case _:
                assert_never(event)

    @staticmethod
    def _in_words(event: DisplayData | UpdateDisplayData | ExecuteResult) -> str:
        if "text/plain" in event.data:
            return plain_text(event.data["text/plain"])
        sizes = {kind: len(text) for kind, text in event.data.items()}
        sizes |= {kind: len(data) for kind, data in event.binary.items()}
        return plain_text(
            "[" + ", ".join(f"{kind}, {format_bytes(size)}" for kind, size in sizes.items()) + "]"
        )

    def _write(self, name: str, text: str) -> None:
        if not text:
            return
        stream = sys.stderr if name == "stderr" else sys.stdout
        other = sys.stdout if name == "stderr" else sys.stderr
        other.flush()
        stream.write(text if stream.isatty() else plain_text(text))
        stream.flush()
        self._line_is_open = not text.endswith("\n")

    def _flush(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()

    def _remark(self, text: str) -> None:
        start = "\n" if self._line_is_open else ""
        self._write("stderr", f"{start}gridx: {plain_text(text)}\n")
