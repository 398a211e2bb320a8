"""Turns a job's output into outputs of the cell that asked.

Nothing of a worker is forwarded: text is cleaned, bundles are rebuilt from an allow-list, and
display ids are ours, so that a worker can only replace what it showed itself in this cell.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Final

from gridx.display import SafeBundle, TextCleaner, safe_bundle
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
MAX_RICH_BYTES: Final = 32 * MIB
MAX_DISPLAYS: Final = 5_000


class Publisher:
    """Publishes the events of one job, in order, from the main thread."""

    def __init__(self, screen: Screen, line: StatusLine, job_id: str) -> None:
        self._screen = screen
        self._line = line
        self._job_id = job_id
        self._begin()

    def _begin(self) -> None:
        self._cleaners = {"stdout": TextCleaner(), "stderr": TextCleaner()}
        self._ids: dict[str, str] = {}
        self._room_chars = MAX_TEXT_CHARS
        self._rich_bytes = 0
        self._displays = 0
        self._is_cut = False
        self._clear_pending = False
        self._has_result = False
        self._has_output = False
        self.error: dict[str, Any] | None = None
        self._left_out: dict[str, None] = {}

    def restart(self) -> None:
        """Void what was shown: another attempt begins, and its output with it."""
        had_output = self._has_output
        self._begin()
        if had_output:
            self._screen.clear(wait=False)
            self._line.show_again()

    def notes(self) -> list[str]:
        """Return what the reader should know about outputs that are not shown as they were."""
        if not self._left_out:
            return []
        kinds = ", ".join(self._left_out)
        return [f"not shown: {kinds} (this release shows text, PNG and JPEG of a worker)"]

    def publish(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Stream(name=name, text=text):
                self._text(name, self._cleaners[name].feed(text))
            case DisplayData():
                self._display(event)
            case UpdateDisplayData(display_id=remote_id):
                ours = self._ids.get(remote_id)
                bundle = self._bundle(event.data, event.binary, event.metadata)
                if ours is not None and bundle is not None:
                    self._screen.update(bundle.data, bundle.metadata, ours)
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

    def finish(self) -> None:
        """Show what was held back and switch colours off."""
        for name, cleaner in self._cleaners.items():
            self._text(name, cleaner.finish())
        self._screen.flush()

    def _text(self, name: str, text: str) -> None:
        if not text or self._is_cut:
            return
        self._before_output()
        self._screen.write(name, text[: self._room_chars])
        self._room_chars -= len(text)
        if self._room_chars < 0:
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
        self._before_output()
        self._screen.display(bundle.data, bundle.metadata, ours)

    def _bundle(
        self, data: Mapping[str, str], binary: Mapping[str, bytes], metadata: Mapping[str, Any]
    ) -> SafeBundle | None:
        """Return what can be shown, or None when the cell has shown enough."""
        bundle = safe_bundle(data, binary, metadata)
        self._left_out.update(dict.fromkeys((*bundle.left_out, *bundle.notes)))
        for kind in list(self._left_out)[20:]:
            del self._left_out[kind]
        shown = dict(bundle.data)
        if not shown:
            reasons = ", ".join((*bundle.left_out, *bundle.notes)) or "an empty output"
            shown["text/plain"] = f"[not shown: {reasons}]"
        self._displays += 1
        self._rich_bytes += sum(map(len, shown.values()))
        if self._is_cut or self._displays > MAX_DISPLAYS or self._rich_bytes > MAX_RICH_BYTES:
            if not self._is_cut:
                self._cut()
            return None
        return bundle._replace(data=shown)

    def _before_output(self) -> None:
        if self._clear_pending:
            self._clear_now(wait=True)
        self._line.make_room()
        self._has_output = True

    def _clear_now(self, *, wait: bool) -> None:
        self._clear_pending = False
        self._screen.clear(wait=wait)
        self._line.show_again()
