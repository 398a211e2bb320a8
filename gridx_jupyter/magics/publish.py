"""Turns a job's output into outputs of the cell that asked.

Nothing of a worker is forwarded: text is cleaned, bundles are rebuilt from an allow-list, and
display ids are ours, so that a worker can only replace what it showed itself in this cell.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from gridx.display import SafeBundle, Show, TextCleaner, clean_line, safe_bundle
from gridx.events import (
    ClearOutput,
    DisplayData,
    ErrorOutput,
    Event,
    ExecuteResult,
    OutputDropped,
    Stream,
    UpdateDisplayData,
)
from gridx.resources import MIB, format_bytes

from .render import StatusLine
from .screen import Screen

MAX_TEXT_CHARS: Final = 1_000_000
MAX_RICH_BYTES: Final = 32 * MIB  # on the screen at once
MAX_DISPLAYS: Final = 5_000
MAX_REPLACED: Final = 20  # how often over: what was cleared or replaced since
UPDATE_EVERY_S: Final = 0.1
_MAX_NOTES: Final = 8


class _Room:
    """How many characters of text the cell may still show. A line that is written over and
    over, as progress bars are, counts once."""

    def __init__(self) -> None:
        self.free_chars = MAX_TEXT_CHARS
        self._raw_chars = 0
        self._line_chars = 0  # of the line that is not ended yet

    def take(self, text: str) -> str:
        """Return the part of ``text`` that there is room for."""
        before_chars = self.free_chars
        self._raw_chars += len(text)
        if "\r" in text:
            first, *lines = text.split("\n")
            if first.startswith("\r"):
                self.free_chars += self._line_chars
                self._line_chars = 0
            states = [max(line.split("\r"), key=len) for line in (first, *lines)]
            self.free_chars -= sum(map(len, states)) + len(lines)
            self._line_chars = len(states[-1]) + (0 if lines else self._line_chars)
        else:
            self.free_chars -= len(text)
            end = text.rfind("\n")
            self._line_chars = len(text) - end - 1 + (self._line_chars if end < 0 else 0)
        if self.free_chars < 0:
            return text[: max(before_chars, 0)]
        if self._raw_chars > MAX_REPLACED * MAX_TEXT_CHARS:
            self.free_chars = -1
        return text


class Publisher:
    """Publishes the events of one job, in order, from the main thread.

    ``show`` says what is done with rich output, ``worker`` whose it is; both may change until
    the output comes.
    """

    def __init__(
        self,
        screen: Screen,
        line: StatusLine,
        job_id: str,
        show: Show = "clean",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._screen = screen
        self._line = line
        self._job_id = job_id
        self._clock = clock
        self.show: Show = show
        self.worker = ""
        self._begin()

    def _begin(self) -> None:
        self._cleaners = {"stdout": TextCleaner(), "stderr": TextCleaner()}
        self._ids: dict[str, str] = {}
        self._room = _Room()
        self._rich_bytes = self._all_rich_bytes = 0
        self._displays = self._all_displays = 0
        self._waiting: dict[str, SafeBundle] = {}  # updates that came too soon after others
        self._updated_s = float("-inf")
        self._is_cut = False
        self._clear_pending = False
        self._has_result = False
        self._has_output = False
        self.error: dict[str, Any] | None = None
        self._notes: dict[str, None] = {}

    def restart(self) -> None:
        """Void what was shown: another attempt begins, and its output with it."""
        had_output = self._has_output
        self._begin()
        if had_output:
            self._screen.clear(wait=False)
            self._line.show_again()

    def notes(self) -> list[str]:
        """Return what the reader should know about outputs that are not shown as they were."""
        notes = list(self._notes)
        if len(notes) > _MAX_NOTES:
            notes[_MAX_NOTES:] = ["more of what it showed was left out"]
        return notes

    def publish(self, event: Event) -> None:
        """Show one event."""
        self.tick()
        match event:
            case Stream(name=name, text=text):
                self._text(name, self._cleaners[name].feed(text))
            case DisplayData():
                self._display(event)
            case UpdateDisplayData():
                self._update(event)
            case ExecuteResult():
                bundle = self._bundle(event.data, event.binary, event.metadata)
                if bundle is not None and not self._has_result:
                    self._has_result = True
                    self._before_output()
                    self._screen.result(bundle.data, bundle.metadata)
            case ClearOutput(wait=wait):
                self._clear_pending = True
                if not wait:
                    self._clear_now(wait=False)
            case ErrorOutput(error=error):
                self.error = error
            case OutputDropped(dropped_bytes=size):
                self._text("stderr", f"\n[{format_bytes(max(0, size))} of output left out here]\n")

    def tick(self) -> None:
        """Show the updates that were held back, when their time has come."""
        if self._waiting and self._clock() - self._updated_s >= UPDATE_EVERY_S:
            self._show_waiting()

    def finish(self) -> None:
        """Show what was held back and switch colours off."""
        self._show_waiting()
        for name, cleaner in self._cleaners.items():
            self._text(name, cleaner.finish())
        self._screen.settle()

    def _text(self, name: str, text: str) -> None:
        if not text or self._is_cut:
            return
        self._before_output()
        self._screen.write(name, self._room.take(text))
        if self._room.free_chars < 0:
            self._cut()

    def _cut(self) -> None:
        self._is_cut = True
        self._screen.write(
            "stderr",
            f"\x1b[0m\n[more output than a notebook can hold: `%gridx logs {self._job_id}` "
            f"shows all of it, with --to FILE in a file]\n",
        )

    def _display(self, event: DisplayData) -> None:
        bundle = self._bundle(event.data, event.binary, event.metadata)
        if bundle is None:
            return
        ours = None
        if event.display_id is not None:
            ours = self._ids.setdefault(event.display_id, uuid.uuid4().hex)
            self._waiting.pop(ours, None)
        self._before_output()
        self._screen.display(bundle.data, bundle.metadata, ours)

    def _update(self, event: UpdateDisplayData) -> None:
        """Replace what was shown, not more often than a page can follow; the last one counts."""
        ours = self._ids.get(event.display_id)
        if ours is None:
            return
        bundle = self._bundle(event.data, event.binary, event.metadata, replaces=True)
        if bundle is None:
            return
        self._waiting.pop(ours, None)
        self._waiting[ours] = bundle
        self.tick()

    def _show_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for ours, bundle in waiting.items():
            self._screen.update(bundle.data, bundle.metadata, ours)
        if waiting:
            self._updated_s = self._clock()

    def _bundle(
        self,
        data: Mapping[str, str],
        binary: Mapping[str, bytes],
        metadata: Mapping[str, Any],
        *,
        replaces: bool = False,
    ) -> SafeBundle | None:
        """Return what can be shown, or None when the cell has shown enough."""
        size = sum(map(len, data.values())) + sum(map(len, binary.values()))
        self._all_displays += 1
        self._all_rich_bytes += size
        if not replaces:
            self._displays += 1
            self._rich_bytes += size
        if (
            self._is_cut
            or self._displays > MAX_DISPLAYS
            or self._rich_bytes > MAX_RICH_BYTES
            or self._all_displays > MAX_REPLACED * MAX_DISPLAYS
            or self._all_rich_bytes > MAX_REPLACED * MAX_RICH_BYTES
        ):
            if not self._is_cut:
                self._cut()
            return None
        bundle = safe_bundle(data, binary, metadata, show=self.show, caption=self._caption())
        for note in bundle.notes:
            if len(self._notes) <= _MAX_NOTES:
                self._notes.setdefault(note)
        if bundle.data:
            return bundle
        reasons = "; ".join(bundle.notes) or "an empty output"
        return bundle._replace(data={"text/plain": f"[not shown: {reasons}]"})

    def _caption(self) -> str:
        whose = f"worker {clean_line(self.worker, 60)}" if self.worker else "a worker"
        return f"Shown by {whose} in a frame of its own, which reaches nothing of this page."

    def _before_output(self) -> None:
        self._show_waiting()
        if self._clear_pending:
            self._clear_now(wait=True)
        self._line.make_room()
        self._has_output = True

    def _clear_now(self, *, wait: bool) -> None:
        self._clear_pending = False
        self._waiting.clear()
        self._displays = self._rich_bytes = 0
        self._screen.clear(wait=wait)
        self._line.show_again()
