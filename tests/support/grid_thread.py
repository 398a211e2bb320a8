"""The scripted coordinator in a thread of its own, for tests that drive a real kernel."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from tests.support.scripted_coordinator import (
    ScriptedCoordinator,
    ScriptedJob,
    scripted_coordinator,
)

Script = Callable[[ScriptedCoordinator, ScriptedJob], Awaitable[None]]


class GridThread:
    """A scripted coordinator; ``script`` is what each new job does."""

    def __init__(self, grid: ScriptedCoordinator, loop: asyncio.AbstractEventLoop) -> None:
        self.grid = grid
        self._loop = loop
        self.script: Script | None = None
        self._running: asyncio.Future[None] | None = None
        grid.on_submit = self._on_submit

    @property
    def url(self) -> str:
        return self.grid.url

    def forget(self) -> None:
        """Begin a test with no jobs and no script."""
        self.grid.jobs.clear()
        self.grid.received.clear()
        self.grid.refusals.clear()
        self.grid.cancel_ends_job = True
        self.script = None

    def call(self, action: Callable[[], None]) -> None:
        """Run ``action`` in the coordinator's thread, and wait for it."""
        done = threading.Event()

        def run() -> None:
            action()
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(10)

    async def _on_submit(self, job: ScriptedJob) -> None:
        # A task of its own: the connection that submitted must be heard meanwhile.
        if self.script is not None:
            self._running = asyncio.ensure_future(self.script(self.grid, job))


@contextmanager
def grid_thread() -> Iterator[GridThread]:
    """Serve until the block ends; it listens before the block begins."""
    ready = threading.Event()
    made: list[GridThread] = []
    ends: list[Callable[[], None]] = []

    async def serve() -> None:
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with scripted_coordinator() as grid:
            made.append(GridThread(grid, loop))
            ends.append(lambda: loop.call_soon_threadsafe(end.set))
            ready.set()
            await end.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="scripted-grid")
    thread.start()
    assert ready.wait(10)
    try:
        yield made[0]
    finally:
        ends[0]()
        thread.join(10)
