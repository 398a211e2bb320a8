"""The ``gridx`` command as people run it: in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

COMMAND = [sys.executable, "-m", "gridx.cli"]


def environment(home: Path, **more: str) -> dict[str, str]:
    """An environment whose settings and data lie below ``home``, and nobody else's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GRIDX_")}
    folders = {"XDG_CONFIG_HOME": str(home / "config"), "XDG_DATA_HOME": str(home / "data")}
    return {**kept, **folders, "GRIDX_USER": "ada", **more}


def gridx(
    *arguments: str, env: Mapping[str, str], stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env=dict(env),
        timeout=120,
        check=False,
    )


class Up:
    """``gridx up`` on free ports, ready when the constructor returns."""

    def __init__(self, folder: Path, *options: str, env: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [
                *(*COMMAND, "up", "--http-port", "0", "--ws-port", "0"),
                *("--data-dir", str(folder), *options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=dict(env),
        )
        self.err: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self.process.stdout is not None
        self.ready_line = self.process.stdout.readline()  # empty when it ended before
        self.addresses = dict(re.findall(r"(\w+)=(\S+)", self.ready_line))
        self.url = self.addresses.get("http", "")

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.err.extend(self.process.stderr)

    def children(self) -> dict[str, int]:
        """The process ids of its two programs, by module name."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has just ended
                continue
            if parent == self.process.pid and b"-m" in words:
                found[words[words.index(b"-m") + 1].decode()] = int(folder.name)
        return found

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, if it still runs; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()
