"""What a job and a call of a session have in common for whoever reads their updates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from .feed import Feed
from .schemas import JobView
from .updates import EventArrived, Finished, Update


class Watched:
    """Something whose updates are read. ``updates`` has one reader at a time."""

    def __init__(self, job_id: str, feed: Feed) -> None:
        self._feed = feed
        self._wake = asyncio.Event()
        self.id = job_id
        self.sent_bytes = 0  # of variables and blobs, as they travelled; 0 when attached
        self.finished: Finished | None = None
        self.position = feed.position

    @property
    def view(self) -> JobView:
        """The newest state that came."""
        assert self._feed.view is not None, "set by the answer to submit or attach"
        return self._feed.view

    async def updates(self) -> AsyncIterator[Update]:
        """Yield what happens, ``Finished`` last.

        Raises:
            TransportError: the coordinator was lost and stayed away.
            ProtocolError: what came is not in the protocol.
        """
        while self.finished is None:
            update = self.take()
            if update is not None:
                yield update
                continue
            self._wake.clear()
            if not self._feed.has_next():
                await self._wake.wait()

    def take(self, timeout_s: float | None = None) -> Update | None:
        """Return the next update, or None. With ``timeout_s`` it blocks its thread so long:
        for a reader outside the event loop (gridx.blocking), never for a coroutine."""
        update = self._feed.take(timeout_s)
        if update is None and self._feed.is_over and not self._feed.has_next():
            update = self._feed.end  # taken before, by a reader who was interrupted just then
        if self._feed.wants_resume:
            self._resume_soon()
        if isinstance(update, EventArrived):
            self.position = update.position
        elif isinstance(update, Finished):
            self.finished = update
        return update

    def _resume_soon(self) -> None:
        """End the pause of the feed; called from any thread."""
        raise NotImplementedError

    async def wait(self) -> Finished:
        """Read, and drop, the updates to the end; return the last."""
        async for _ in self.updates():
            pass
        assert self.finished is not None
        return self.finished


def answer_to_come() -> asyncio.Future[None]:
    """Return a future whose error is no surprise when whoever waited has left."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def resolve(future: asyncio.Future[None] | None) -> None:
    """Answer whoever waits for ``future``, if it is one and still open."""
    if future is not None and not future.done():
        future.set_result(None)
