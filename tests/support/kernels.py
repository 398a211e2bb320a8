"""A real Jupyter kernel for tests: cells in, timed messages out."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from jupyter_client.manager import KernelManager


@dataclass
class CellRun:
    """What one cell did: the kernel's reply and every output message with its arrival time."""

    reply: dict[str, Any] = field(default_factory=dict)
    messages: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)

    @property
    def stdout(self) -> str:
        return "".join(
            c["text"] for _, t, c in self.messages if t == "stream" and c["name"] == "stdout"
        )

    @property
    def error(self) -> dict[str, Any] | None:
        return next((c for _, t, c in self.messages if t == "error"), None)

    @property
    def plain(self) -> str:
        """Every text/plain that was displayed, updates included."""
        return "\n".join(
            str(c["data"].get("text/plain", ""))
            for _, t, c in self.messages
            if t in ("display_data", "update_display_data", "execute_result")
        )

    def mime_types(self) -> list[str]:
        return [k for _, t, c in self.messages if "data" in c for k in c["data"]]


def _as_started_by_a_person() -> dict[str, str]:
    """Return this process's environment without what pytest adds.

    A kernel that finds it does not read what its children say.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


class Kernel:
    """One kernel with ``gridx_jupyter`` loaded and connected to ``url`` as ``user``."""

    def __init__(self, url: str, user: str, *, cwd: Path | None = None, **env: str):
        # What the notebook keeps on this machine stays out of the home of whoever runs the tests.
        self._data = tempfile.TemporaryDirectory(prefix="gridx-data-")
        ours = {"GRIDX_URL": url, "GRIDX_USER": user, "XDG_DATA_HOME": self._data.name}
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(
            env={**_as_started_by_a_person(), **ours, **env},
            cwd=cwd,
            stdout=subprocess.DEVNULL,  # it repeats there what its cells print
        )
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        loaded = self.run("%load_ext gridx_jupyter")
        assert loaded.reply["status"] == "ok", loaded.reply

    def start(self, code: str, *, allow_stdin: bool = False, store_history: bool = True) -> str:
        msg_id: str = self.client.execute(
            code, store_history=store_history, allow_stdin=allow_stdin
        )
        return msg_id

    def answer(self, text: str) -> str:
        """Answer the next question of a cell that was started with ``allow_stdin``; return it."""
        question = self.client.get_stdin_msg(timeout=30)["content"]["prompt"]
        self.client.input(text)
        return str(question)

    def messages(self, msg_id: str, timeout_s: float) -> Any:
        """Yield (time, type, content) until the kernel is idle again."""
        deadline = time.monotonic() + timeout_s
        while True:
            message = self.client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return
            if kind in (
                "stream",
                "display_data",
                "update_display_data",
                "execute_result",
                "error",
                "clear_output",
            ):
                yield time.time(), kind, content

    def finish(self, msg_id: str, timeout_s: float = 90.0) -> CellRun:
        run = CellRun(messages=list(self.messages(msg_id, timeout_s)))
        while True:
            reply = self.client.get_shell_msg(timeout=30)
            if reply["parent_header"].get("msg_id") == msg_id:
                run.reply = reply["content"]
                return run

    def run(self, code: str, timeout_s: float = 90.0) -> CellRun:
        return self.finish(self.start(code), timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()
        self._data.cleanup()
