"""The one line of a remote cell: how it stands while it runs, what it cost when it ended."""

from __future__ import annotations

import base64
import functools
import html
import io
import math
import re
import shutil
import threading
import time
import uuid
import wave
from collections.abc import Callable, Sequence
from typing import Any, Final

from gridx.credits import format_credits
from gridx.display import clean_line
from gridx.quantities import format_duration
from gridx.resources import KIB
from gridx.schemas import JobView
from gridx.states import JobState
from gridx.updates import Finished

from .screen import Screen

UPDATE_EVERY_S: Final = 0.25
CHIME_S: Final = 3.0  # how long the chime is part of the output
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def worker_of(view: JobView) -> str:
    """Return the name of the job's worker, safe to show."""
    return clean_line(view.worker_name or view.worker_id or "", 60)


def sending_text(done_bytes: int, total_bytes: int) -> str:
    """Return how much has been sent: ``sending 120/400 MiB``."""
    return f"sending {_share(done_bytes, total_bytes)}"


def receiving_text(done_bytes: int, total_bytes: int) -> str:
    """Return how much has come home: ``receiving 120/400 MiB``."""
    return f"receiving {_share(done_bytes, total_bytes)}"


def _share(done_bytes: int, total_bytes: int) -> str:
    unit, size = 0, float(total_bytes)
    while size >= KIB and unit < len(_UNITS) - 1:
        size /= KIB
        unit += 1
    digits = 0 if size >= 10 or unit == 0 else 1
    done = min(done_bytes, total_bytes) / KIB**unit
    return f"{done:.{digits}f}/{size:.{digits}f} {_UNITS[unit]}"


def progress_text(
    view: JobView,
    running_s: float,
    *,
    connected: bool = True,
    sent: tuple[int, int] | None = None,
    received: tuple[int, int] | None = None,
) -> str:
    """Return how a job stands: ``queued``, ``starting``, ``running`` or ``standing still``, with
    the reason or the time.

    Args:
        running_s: since it began to run.
        sent, received: bytes done and in all, while something travels.
    """
    if not connected:
        return "connection lost, reconnecting; the cell goes on"
    if sent is not None:
        return sending_text(*sent)
    if received is not None:
        return receiving_text(*received)
    waiting = clean_line(view.waiting or "", 200)
    if view.status == JobState.QUEUED:
        return f"queued ({waiting})" if waiting else "queued"
    if view.started_at is None:
        return f"starting on {worker_of(view)}" + (f" ({waiting})" if waiting else "")
    minutes, seconds = divmod(int(running_s), 60)
    if waiting:
        return f"standing still at {minutes:02d}:{seconds:02d} on {worker_of(view)} ({waiting})"
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


def should_notify(elapsed_s: float, notify_after_s: float | None) -> bool:
    """Return whether the end of a cell that took ``elapsed_s`` is worth a sound."""
    return notify_after_s is not None and elapsed_s >= notify_after_s


class StatusLine:
    """One display in place, at most four changes a second; on a terminal one line on stderr.

    ``progress`` says how it looks under a front end: ``auto`` and ``html`` as HTML beside plain
    text, ``text`` as plain text alone, ``widget`` by ipywidgets while it runs, ``off`` not
    before the cell has ended. Only ``widget`` needs a comm.
    """

    def __init__(
        self,
        screen: Screen,
        *,
        quiet: bool = False,
        progress: str = "auto",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._screen = screen
        self._quiet = quiet
        self._progress = progress
        self._clock = clock
        self._display_id: str | None = None
        self._text = ""
        self._at_s = float("-inf")
        self._width = 0
        self._widget: Any = None

    def show(self, text: str) -> None:
        """Show ``text`` as it stands now, unless the last change was a moment ago."""
        if self._quiet or self._progress == "off" or text == self._text:
            return
        if self._clock() - self._at_s >= UPDATE_EVERY_S:
            self._put(text)

    def show_again(self) -> None:
        """Show the line anew, after the cell's output was cleared."""
        if self._display_id is not None:
            self._screen.display(self._bundle(self._text), {}, self._display_id)

    def finish(self, text: str, notes: Sequence[str] = ()) -> None:
        """Show the last text, which stays, and the notes below it."""
        self._screen.settle()
        if self._quiet:
            for note in notes:
                self._screen.write("stderr", f"Grid-X: {note}\n")
            return
        self._close_widget()
        self._put("\n".join([text, *(f"  {note}" for note in notes)]), last=True)

    def notify(self) -> None:
        """Say with a sound that the cell has ended.

        On a terminal its bell, and a notification where the terminal knows them. In a page a
        chime that is part of this line for three seconds: a saved notebook is silent.
        """
        if self._screen.is_terminal:
            self._screen.write("stderr", f"\a\x1b]9;Grid-X: {clean_line(self._text, 100)}\a")
            self._screen.flush()
        elif self._screen.is_frontend and self._display_id is not None:
            bundle, display_id = self._bundle(self._text), self._display_id
            chimed = {**bundle, "text/html": _html_of(self._text) + _chime()}
            self._screen.update(chimed, {}, display_id)
            later = threading.Timer(CHIME_S, self._screen.update, (bundle, {}, display_id))
            later.daemon = True
            later.start()

    @property
    def display_id(self) -> str | None:
        """The id to replace the line by, once it was shown."""
        return self._display_id

    def _bundle(self, text: str) -> dict[str, Any]:
        bundle: dict[str, Any] = {"text/plain": f"Grid-X: {text}"}
        if self._widget is not None:
            return {**self._widget._repr_mimebundle_(), **bundle}
        if self._progress != "text":
            bundle["text/html"] = _html_of(text)
        return bundle

    def _put(self, text: str, *, last: bool = False) -> None:
        self._text, self._at_s = text, self._clock()
        if self._screen.is_frontend:
            if self._display_id is None:
                self._display_id = uuid.uuid4().hex
                if self._progress == "widget" and not last:
                    self._widget = _make_widget(text)
                self._screen.display(self._bundle(text), {}, self._display_id)
            elif self._widget is not None:
                self._widget.value = f"Grid-X: {text}"
            else:
                self._screen.update(self._bundle(text), {}, self._display_id)
        elif self._screen.is_terminal:
            line = f"Grid-X: {text}"
            if not last:  # a line that is broken cannot be written over
                line = line[: max(20, shutil.get_terminal_size().columns - 1)]
            self._screen.write("stderr", f"\r{line:<{self._width}}" + ("\n" if last else ""))
            self._width = 0 if last else len(line)
            self._screen.flush()
        elif last:
            self._screen.flush()
            self._screen.write("stderr", f"Grid-X: {text}\n")

    def _close_widget(self) -> None:
        widget, self._widget = self._widget, None
        if widget is not None:
            widget.close()

    def make_room(self) -> None:
        """End the terminal's line before other output is written over it."""
        if self._width and self._screen.is_terminal:
            self._screen.write("stderr", "\r" + " " * self._width + "\r")
            self._width = 0


def _make_widget(text: str) -> Any:
    """Return a label (never an HTML widget: worker names stand in it), or None without ipywidgets."""
    try:
        from ipywidgets import Label
    except ImportError:
        return None
    return Label(value=f"Grid-X: {text}")


_SHARE: Final = re.compile(r"(?:sending|receiving) ([\d.]+)/([\d.]+) ")
_MARKS: Final = {"completed": "✓", "failed": "✗", "cancelled": "■"}


def _html_of(text: str) -> str:
    """Return the line as HTML: inert, in any front end, and with the page's own colours."""
    first, *notes = text.split("\n")
    mark = _MARKS.get(first.partition(" ")[0], "")
    share = _SHARE.match(first)
    bar = ""
    if share is not None and float(share[2]):
        percent = min(100, int(100 * float(share[1]) / float(share[2])))
        bar = f' <progress max="100" value="{percent}"></progress>'
    lines = [f"<b>Grid-X</b> {mark and mark + ' '}{_with_code(first)}{bar}"]
    lines += [f"&#8199;&#8199;{_with_code(note.strip())}" for note in notes]
    return f'<div style="opacity: 0.75; font-size: 90%">{"<br>".join(lines)}</div>'


def _with_code(text: str) -> str:
    return re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text))


@functools.cache
def _chime() -> str:
    """Return an element that plays two soft tones once: 0.4 s, 3 KiB."""
    rate = 8_000
    samples = bytearray()
    for tone_hz, length_s in ((660.0, 0.15), (880.0, 0.25)):
        count = int(rate * length_s)
        for n in range(count):
            fade = 1 - n / count
            samples.append(128 + int(50 * fade * math.sin(2 * math.pi * tone_hz * n / rate)))
    target = io.BytesIO()
    with wave.open(target, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(1)
        sound.setframerate(rate)
        sound.writeframes(bytes(samples))
    data = base64.b64encode(target.getvalue()).decode("ascii")
    return f'<audio autoplay src="data:audio/wav;base64,{data}"></audio>'
