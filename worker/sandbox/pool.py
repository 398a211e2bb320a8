"""Warm sandboxes: started ahead, handed out once, refilled in the background."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from gridx.errors import SandboxError
from gridx.resources import ResourceRequest

from .base import DEFAULT_REQUEST, Sandbox, SandboxEngine

_log = logging.getLogger(__name__)

# A trivial job, and the way of its result to the notebook, are over by then: neither the refill
# nor the removal competes with them for a core.
REFILL_DELAY_S = 0.05
REMOVAL_DELAY_S = 0.05
FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 30.0


class SandboxPool:
    """Keeps ``target`` sandboxes of the default size warm.

    Other sizes, and GPUs, start cold, with the same bound on how many start at once: more than
    ``min(2, cores)`` in parallel start slower, not faster.
    """

    def __init__(
        self,
        engine: SandboxEngine,
        *,
        target: int,
        parallel: int,
        gpus: Sequence[str] = (),
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._target = target
        self._free_gpus = list(gpus)
        self._gpus_of: dict[str, list[str]] = {}  # sandbox id -> the devices it has
        self._starts = asyncio.Semaphore(max(1, parallel))
        self._warm: deque[Sandbox] = deque()
        self._waiters: deque[asyncio.Future[Sandbox]] = deque()
        self._starting = 0
        self._failures = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._on_change = on_change
        self.last_error: SandboxError | None = None

    @property
    def warm(self) -> int:
        """How many sandboxes wait for a job."""
        return len(self._warm)

    async def fill_first(self) -> None:
        """Start the first warm sandbox and return when it is ready; the others follow.

        Raises:
            SandboxError: it could not be started.
        """
        self._keep(await self._engine.start(DEFAULT_REQUEST))
        self._refill()

    async def take(self, request: ResourceRequest) -> Sandbox:
        """Return a sandbox of that size, warm when there is one. ``discard`` it afterwards.

        Raises:
            SandboxError: none could be started.
        """
        if self._closing.is_set():
            raise SandboxError("The worker is stopping.")
        if request != DEFAULT_REQUEST:
            return await self._start_cold(request)
        if (sandbox := self.take_warm(request)) is not None:
            return sandbox
        waiter: asyncio.Future[Sandbox] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._refill()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._keep(waiter.result())
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def take_warm(self, request: ResourceRequest) -> Sandbox | None:
        """Return a warm sandbox of that size, or None where ``take`` would have to wait."""
        if request != DEFAULT_REQUEST or self._closing.is_set():
            return None
        while self._warm:
            sandbox = self._warm.popleft()
            self._refill_soon()
            if not sandbox.is_closed:
                return sandbox
            self.discard(sandbox)
        return None

    def discard(self, sandbox: Sandbox, *, is_idle: bool = False) -> None:
        """Kill ``sandbox`` in the background. Its GPUs are free when it is gone.

        Args:
            sandbox: one that this pool gave away.
            is_idle: its call has ended, so that the kill may wait a moment.
        """
        self._run(self._kill(sandbox, REMOVAL_DELAY_S if is_idle else 0.0))

    def prune(self) -> None:
        """Replace warm sandboxes that ended while they waited."""
        ended = [sandbox for sandbox in self._warm if sandbox.is_closed]
        for sandbox in ended:
            self._warm.remove(sandbox)
            self.discard(sandbox)
        if ended:
            self._on_change()
            self._refill()

    async def close(self) -> None:
        """Kill every warm sandbox and wait for the kills that are under way."""
        self._closing.set()
        if self._timer is not None:
            self._timer.cancel()
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(SandboxError("The worker is stopping."))
        while self._warm:
            self.discard(self._warm.popleft())
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start_cold(self, request: ResourceRequest) -> Sandbox:
        if request.gpus > len(self._free_gpus):
            raise SandboxError("No GPU of this worker is free.")
        gpus = [self._free_gpus.pop() for _ in range(request.gpus)]
        try:
            async with self._starts:
                sandbox = await self._engine.start(request, gpus=gpus)
        except BaseException:
            self._free_gpus += gpus
            raise
        self._gpus_of[sandbox.id] = gpus
        return sandbox

    async def _kill(self, sandbox: Sandbox, delay_s: float) -> None:
        if delay_s:
            try:
                async with asyncio.timeout(delay_s):
                    await self._closing.wait()
            except TimeoutError:
                pass  # the usual case: nobody closes the pool meanwhile
        await sandbox.kill()
        self._free_gpus += self._gpus_of.pop(sandbox.id, [])

    # ---- refill

    def _refill_soon(self) -> None:
        if self._warm:
            self._later(REFILL_DELAY_S)
        else:
            self._refill()

    def _later(self, delay_s: float) -> None:
        if self._timer is None and not self._closing.is_set():
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._refill_by_timer)

    def _refill_by_timer(self) -> None:
        self._timer = None
        self._refill()

    def _refill(self) -> None:
        if self._closing.is_set() or (self._failures and self._timer is not None):
            return
        missing = self._target + len(self._waiters) - len(self._warm) - self._starting
        for _ in range(missing):
            self._starting += 1
            self._run(self._start_one())

    async def _start_one(self) -> None:
        try:
            async with self._starts:
                if self._closing.is_set():
                    return
                sandbox = await self._engine.start(DEFAULT_REQUEST)
        except SandboxError as error:
            self._starting -= 1
            self._failed(error)
            return
        except BaseException:
            self._starting -= 1
            raise
        self._starting -= 1
        self._failures = 0
        self.last_error = None
        self._keep(sandbox)

    def _keep(self, sandbox: Sandbox) -> None:
        if self._closing.is_set():
            self.discard(sandbox)
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(sandbox)
                return
        self._warm.append(sandbox)
        self._on_change()

    def _failed(self, error: SandboxError) -> None:
        self._failures += 1
        self.last_error = error
        _log.warning(
            "a sandbox could not be started",
            extra={"action": "refill", "error": str(error), "failures": self._failures},
        )
        # Who waits is told at once, and hands its attempt back: another worker may do better.
        if self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._later(min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(self._failures, 10)))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
