"""The output of a cell that is shown later, or looked at again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gridx.events import ErrorOutput, Event, encode_event
from gridx.resources import MIB
from gridx.updates import EventArrived, Restarted, Update

from .screen import Screen

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

MAX_KEPT_BYTES: Final = 40 * MIB


class KeptOutput:
    """The events of the newest attempt of a job, up to a limit."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.is_whole = True
        self._size_bytes = 0

    def note(self, update: Update | None) -> None:
        """Take in one update."""
        if isinstance(update, Restarted):
            self.clear()
        elif isinstance(update, EventArrived):
            event = update.event
            size = len(getattr(event, "text", "")) + sum(
                len(part)
                for field in ("data", "binary")
                for part in getattr(event, field, {}).values()
            )
            fits = self._size_bytes + size <= MAX_KEPT_BYTES
            self.is_whole = self.is_whole and fits
            if fits or isinstance(event, ErrorOutput):
                self._size_bytes += size
                self.events.append(event)

    def clear(self) -> None:
        """Forget the output."""
        self.events.clear()
        self._size_bytes = 0
        self.is_whole = True

    @property
    def error(self) -> dict[str, Any] | None:
        """The error that ended the cell, as data."""
        return next((e.error for e in reversed(self.events) if isinstance(e, ErrorOutput)), None)

    def stream(self) -> bytes:
        """Return the events as bytes (gridx.events)."""
        return b"".join(map(encode_event, self.events))

    def outputs(self, shell: InteractiveShell, job_id: str) -> list[dict[str, Any]]:
        """Return what was shown, made safe, as a notebook file keeps it."""
        from .publish import Publisher
        from .render import StatusLine

        recorder = _Recorder(shell)
        publisher = Publisher(recorder, StatusLine(recorder, quiet=True), job_id)
        for event in self.events:
            publisher.publish(event)
        publisher.finish()
        return recorder.outputs


class _Recorder(Screen):
    """A screen that keeps what is shown on it."""

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self.outputs: list[dict[str, Any]] = []
        self._by_id: dict[str, dict[str, Any]] = {}

    @property
    def is_frontend(self) -> bool:
        return True

    @property
    def is_terminal(self) -> bool:
        return False

    def write(self, name: str, text: str) -> None:
        last = self.outputs[-1] if self.outputs else {}
        if last.get("output_type") == "stream" and last["name"] == name:
            last["text"] += text
        elif text:
            self.outputs.append({"output_type": "stream", "name": name, "text": text})

    def flush(self) -> None:
        pass

    def display(
        self, data: dict[str, Any], metadata: dict[str, Any], display_id: str | None = None
    ) -> None:
        shown = {"output_type": "display_data", "data": data, "metadata": metadata}
        self.outputs.append(shown)
        if display_id is not None:
            self._by_id[display_id] = shown

    def update(self, data: dict[str, Any], metadata: dict[str, Any], display_id: str) -> None:
        shown = self._by_id.get(display_id)
        if shown is not None:
            shown.update(data=data, metadata=metadata)

    def result(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        shown = {"output_type": "execute_result", "data": data, "metadata": metadata}
        self.outputs.append({**shown, "execution_count": None})

    def clear(self, *, wait: bool) -> None:
        self.outputs.clear()
        self._by_id.clear()
