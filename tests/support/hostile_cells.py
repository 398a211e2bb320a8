"""Hostile code in real sandboxes, started as the worker starts them, for plain test functions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from gridx.errors import SandboxError
from gridx.ids import new_worker_id
from gridx.resources import ResourceRequest
from gridx.states import Cause
from worker.runtime.frames import Run
from worker.sandbox.base import Death
from worker.sandbox.docker import DockerEngine, DockerSandbox

from .sandbox_contract import Said, call, first_output, read_to_exit

T = TypeVar("T")

# What every hostile cell begins with.
PRELUDE = '''
import ctypes, errno, json, os, socket, sys, time
_libc = ctypes.CDLL(None, use_errno=True)

def tried(act, *words):
    """What becomes of it: "done", the name of the error number, or of the exception."""
    try:
        act(*words)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    except Exception as error:
        return type(error).__name__
    return "done"

def kernel(number, *words):
    """The same for a kernel call by its number."""
    own = os.getpid()
    ctypes.set_errno(0)
    answer = _libc.syscall(ctypes.c_long(number),
                           *(ctypes.c_long(w) if isinstance(w, int) else w for w in words))
    if os.getpid() != own:
        os._exit(0)  # it made a process
    return errno.errorcode[ctypes.get_errno()] if answer == -1 else "done"

def read(path):
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError as error:
        return errno.errorcode[error.errno]

def say(**found):
    print(json.dumps(found), flush=True)
'''


@dataclass(frozen=True)
class Ended:
    """How a hostile cell ended. ``death`` where its whole sandbox did, and had no say."""

    said: Said | None
    death: Death | None
    state: dict[str, Any]  # of the engine, where it was asked for

    @property
    def cause(self) -> Cause:
        if self.said is not None:
            return self.said.exited.cause
        assert self.death is not None and self.death.out_of_memory, self.death
        return Cause.OUT_OF_MEMORY

    @property
    def stdout(self) -> str:
        assert self.said is not None, self.death
        return self.said.stdout


class HostileCells:
    """One worker's engine, and cells that mean it harm."""

    def __init__(self, api: Any) -> None:
        """
        Args:
            api: a client of the same engine, for what only the engine can tell.
        """
        self.api = api
        self.worker_id = new_worker_id()
        self._runner = asyncio.Runner()
        self.engine = DockerEngine(worker_id=self.worker_id)
        self.wait(self.engine.prepare())

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what ``work`` returns."""
        return self._runner.run(work)

    def start(self, **size: Any) -> DockerSandbox:
        """Return a warm sandbox. Whoever starts one kills it, or ``close`` does."""
        return self.wait(self.engine.start(ResourceRequest(**size)))

    def run(
        self,
        code: str,
        *,
        timeout_s: float = 30.0,
        kind: str = "script",
        with_state: bool = False,
        **size: Any,
    ) -> Ended:
        """Run ``code`` in a sandbox of that size to its end, whatever that is.

        Args:
            timeout_s: its time limit.
            kind: "script" or "cell".
            with_state: ask the engine how the container ended.
        """
        return self.wait(self._run(code, timeout_s, kind, with_state, size))

    async def _run(
        self, code: str, timeout_s: float, kind: str, with_state: bool, size: dict[str, Any]
    ) -> Ended:
        sandbox = await self.engine.start(ResourceRequest(**size))
        said: Said | None = None
        death: Death | None = None
        state: dict[str, Any] = {}
        try:
            try:
                said = await call(sandbox, PRELUDE + code, kind=kind, timeout_s=timeout_s)
            except SandboxError:
                death = await sandbox.post_mortem()
            if with_state:
                sandbox._stream.close()  # what is left of it ends with its worker's end
                state = dict(await self.engine.state_of(sandbox.id))
        finally:
            await sandbox.kill()
        return Ended(said, death, state)

    def probe(self, code: str, **size: Any) -> dict[str, Any]:
        """Run harmless ``code`` that calls ``say`` once; return what it said."""
        return _found(self.run(code, **size))

    def probe_in(self, sandbox: DockerSandbox, code: str) -> dict[str, Any]:
        """The same in a sandbox that is there. It is used up, and goes on until it is killed."""
        return _found(Ended(self.wait(call(sandbox, PRELUDE + code)), None, {}))

    def begin(self, sandbox: DockerSandbox, code: str, *, timeout_s: float = 50.0) -> None:
        """Let ``code`` run, and return when it has written something."""
        self.wait(
            sandbox.send(Run(kind="script", code=PRELUDE + code, timeout_s=timeout_s)),
        )
        self.wait(first_output(sandbox))

    def finish(self, sandbox: DockerSandbox) -> Said:
        """Return what comes after ``begin``, to the end."""
        return self.wait(read_to_exit(sandbox))

    def kill(self, *sandboxes: DockerSandbox) -> None:
        """Kill and remove them."""
        for sandbox in sandboxes:
            self.wait(sandbox.kill())

    def inspect(self, sandbox: DockerSandbox) -> dict[str, Any]:
        """Return what the engine knows of it."""
        found: dict[str, Any] = self.api.inspect_container(sandbox.id)
        return found

    def close(self) -> None:
        """Remove every sandbox that is left."""
        try:
            self.wait(self.engine.close())
        finally:
            self._runner.close()


def _found(ended: Ended) -> dict[str, Any]:
    assert ended.cause is Cause.COMPLETED, ended
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found
