"""What a cell can be shown on: a Jupyter front end, or a terminal that runs plain IPython.

Every method is for the main thread, but ``update``: only an update by display id finds its cell
whatever thread sends it.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Final

from IPython.core.interactiveshell import InteractiveShell

FLUSH_EVERY_S: Final = 0.01


class RemoteValue:
    """The value of a cell's last expression, as far as it can be shown: text and pictures."""

    def __init__(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        self.data = data
        self.metadata = metadata

    def __repr__(self) -> str:
        return str(self.data.get("text/plain", "<a picture>"))

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.data, self.metadata


class Screen:
    """Publishes into the cell that runs now."""

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._flushed_s = 0.0
        self._last_name = ""
        self._slow_flush_s: dict[str, float] = {}  # what the kernel's streams had before

    @property
    def is_frontend(self) -> bool:
        """Whether outputs can be replaced later: true under a Jupyter kernel."""
        return getattr(self._shell, "kernel", None) is not None

    @property
    def is_terminal(self) -> bool:
        """Whether a person watches stderr as it is written."""
        return not self.is_frontend and sys.stderr.isatty()

    def write(self, name: str, text: str) -> None:
        """Write ``text`` on the notebook's own ``stdout`` or ``stderr``."""
        if name != self._last_name:
            self.flush()  # each stream is gathered by itself: the other one's text goes first
            self._last_name = name
        stream = sys.stderr if name == "stderr" else sys.stdout
        self._hasten(name, stream)
        stream.write(text)
        now_s = time.monotonic()
        # Flushing waits for the kernel's other thread, so not every piece of a flood is flushed
        # here; the last one of them leaves by the stream's own clock.
        if now_s - self._flushed_s >= FLUSH_EVERY_S:
            stream.flush()
            self._flushed_s = now_s

    def _hasten(self, name: str, stream: Any) -> None:
        """Let a kernel's stream gather text for a moment only: by itself it waits for 0.2 s."""
        slow_s = getattr(stream, "flush_interval", None)
        if name not in self._slow_flush_s and isinstance(slow_s, float) and slow_s > FLUSH_EVERY_S:
            self._slow_flush_s[name] = slow_s
            stream.flush_interval = FLUSH_EVERY_S

    def settle(self) -> None:
        """Send what the streams hold and let them be as they were: the cell has ended."""
        self.flush()
        for name, slow_s in self._slow_flush_s.items():
            stream: Any = sys.stderr if name == "stderr" else sys.stdout
            if hasattr(stream, "flush_interval"):
                stream.flush_interval = slow_s
        self._slow_flush_s.clear()

    def flush(self) -> None:
        """Send what the streams hold, so that what follows stands after it."""
        sys.stdout.flush()
        sys.stderr.flush()

    def display(
        self, data: dict[str, Any], metadata: dict[str, Any], display_id: str | None = None
    ) -> None:
        """Show a bundle, under an id of ours when it is to be replaced later."""
        transient = {} if display_id is None else {"display_id": display_id}
        self.flush()
        self._shell.display_pub.publish(data=data, metadata=metadata, transient=transient)

    def update(self, data: dict[str, Any], metadata: dict[str, Any], display_id: str) -> None:
        """Replace what was shown under ``display_id``."""
        self._shell.display_pub.publish(
            data=data, metadata=metadata, transient={"display_id": display_id}, update=True
        )

    def result(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Show a bundle as the cell's value, with its number."""
        self.flush()
        self._shell.displayhook(RemoteValue(data, metadata))

    def clear(self, *, wait: bool) -> None:
        """Remove what the cell has shown; a terminal keeps it."""
        if self.is_frontend:
            self.flush()
            self._shell.display_pub.clear_output(wait=wait)
