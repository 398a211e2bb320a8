"""The worker daemon as a child process, for tests that have their own event loop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any


class WorkerProgram:
    """``python -m worker.main`` and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._readers = [
            asyncio.create_task(self._read(process.stdout, self.stdout)),
            asyncio.create_task(self._read(process.stderr, self.stderr)),
        ]
        self._said = asyncio.Condition()

    @classmethod
    async def start(
        cls,
        url: str,
        data_dir: Path,
        *options: str,
        user: str = "lender",
        module: str = "worker.main",
        **env: str,
    ) -> WorkerProgram:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, "--coordinator", url, "--user", user),
            *("--data-dir", str(data_dir), *options),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "GRIDX_PASSWORD": "secret123", **env},
        )
        return cls(process)

    async def _read(self, stream: asyncio.StreamReader | None, lines: list[str]) -> None:
        assert stream is not None
        async for line in stream:
            lines.append(line.decode().rstrip())
            async with self._said:
                self._said.notify_all()

    async def wait_ready(self, within_s: float = 120.0) -> dict[str, str]:
        """Return the fields of the ready line."""
        async with asyncio.timeout(within_s), self._said:
            while not self.stdout:
                assert self.process.returncode is None, "\n".join(self.stderr)
                await self._said.wait()
        word, *fields = self.stdout[0].split()
        assert word == "ready"
        return dict(field.split("=", 1) for field in fields)

    async def wait_log(self, action: str, within_s: float = 60.0) -> dict[str, Any]:
        """Return the first log line of ``action``."""
        async with asyncio.timeout(within_s), self._said:
            while not self.log(action):
                await self._said.wait()
        return self.log(action)[0]

    def log(self, action: str) -> list[dict[str, Any]]:
        """Return the log lines of one action."""
        lines = [json.loads(line) for line in self.stderr if line.startswith("{")]
        return [line for line in lines if line.get("action") == action]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def wait_exit(self, within_s: float = 60.0) -> int:
        async with asyncio.timeout(within_s):
            code = await self.process.wait()
            await asyncio.gather(*self._readers)
        return code

    async def end(self) -> None:
        """End it, in order if it can."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                await self.wait_exit(30)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
                raise
        await asyncio.gather(*self._readers)


@asynccontextmanager
async def worker_program(
    url: str, data_dir: Path, *options: str, **more: Any
) -> AsyncIterator[WorkerProgram]:
    """A running worker; stopped in order at the end."""
    program = await WorkerProgram.start(url, data_dir, *options, **more)
    try:
        yield program
    finally:
        await program.end()
