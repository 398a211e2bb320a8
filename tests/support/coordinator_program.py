"""The coordinator as a program of its own, for what a test inside one process cannot show."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

PATIENCE_S = 30.0


class CoordinatorProgram:
    """``python -m coordinator.main`` on free ports, which a second start takes again."""

    started: ClassVar[list[CoordinatorProgram]] = []

    def __init__(self, data_dir: Path, *options: str, cwd: Path | None = None) -> None:
        self.data_dir, self._options, self._cwd = data_dir, options, cwd
        self.http_port = self.ws_port = 0
        self.ready_line = ""
        self.log: list[str] = []
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.ws_port}/ws/worker"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it and wait for its ready line."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "coordinator.main"),
            *("--data-dir", str(self.data_dir)),
            *("--http-port", str(self.http_port), "--ws-port", str(self.ws_port)),
            *self._options,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self._cwd,
        )
        self._reading = asyncio.get_running_loop().create_task(self._read_log())
        self.started.append(self)
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            line = (await self._process.stdout.readline()).decode().strip()
            if not line:
                await self._reading
        self.ready_line = line
        found = re.fullmatch(
            r"ready http=http://127\.0\.0\.1:(\d+) ws=ws://127\.0\.0\.1:(\d+)/ws/worker", line
        )
        assert found, (line, self.log)
        self.http_port, self.ws_port = int(found[1]), int(found[2])

    async def _read_log(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self.log.append(line.decode().rstrip())

    async def end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end; return the exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        async with asyncio.timeout(PATIENCE_S):
            code = await self._process.wait()
            if self._reading is not None:
                await self._reading
        # asyncio keeps the pipe of a process that was read to its end open until collected.
        self._process._transport.close()  # type: ignore[attr-defined]
        return code

    async def kill(self) -> None:
        """End it as a power failure would."""
        await self.end(signal.SIGKILL)

    @classmethod
    async def kill_what_is_left(cls) -> None:
        """End what a failed test has not come to end."""
        left, cls.started[:] = cls.started[:], []
        for program in left:
            if program._process is not None and program._process.returncode is None:
                await program.kill()

    def memory_bytes(self) -> int:
        """Return its resident memory."""
        text = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        assert found
        return int(found[1]) * 1024

    def log_objects(self) -> list[dict[str, Any]]:
        """Return the lines of its log, each of which has to be a JSON object."""
        return [json.loads(line) for line in self.log]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.end(signal.SIGKILL)
