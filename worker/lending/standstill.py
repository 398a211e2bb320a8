"""Jobs that stand still: freezing and thawing them in the background, and giving up in time.

A job that stood still for as long as the lender set is handed back, so that another worker may
run it. A session has its variables to lose: it stands for most of an hour, after which the
coordinator gives up what stands still.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from gridx.errors import SandboxError
from gridx.protocol import AttemptRef

from ..attempt import AttemptRun
from ..machine import CannotRun, Froze, FrozenTooLong, Thawed

_log = logging.getLogger(__name__)

SESSION_FOR_S: Final = 50 * 60.0


class Standstill:
    """The attempts of one worker that stand still, or are about to."""

    def __init__(
        self,
        *,
        find: Callable[[AttemptRef], AttemptRun | None],
        tell: Callable[[Froze | Thawed | FrozenTooLong | CannotRun], None],
        freeze_for_s: float,
    ) -> None:
        """
        Args:
            find: returns the run of an attempt, when it has one.
            tell: the machine's ear.
            freeze_for_s: a job stands still for so long at most.
        """
        self._find = find
        self._tell = tell
        self._freeze_for_s = freeze_for_s
        self._over: dict[AttemptRef, asyncio.TimerHandle] = {}
        self._work: set[asyncio.Task[None]] = set()

    def freeze(self, ref: AttemptRef, *, is_session: bool) -> None:
        """Let an attempt stand still."""
        limit_s = SESSION_FOR_S if is_session else self._freeze_for_s
        self._run_aside(self._freeze(ref, limit_s))

    def thaw(self, ref: AttemptRef) -> None:
        """Let it go on."""
        self.forget(ref)
        self._run_aside(self._thaw(ref))

    def forget(self, ref: AttemptRef) -> None:
        """Wait for its end no more: it has ended, or gone on."""
        timer = self._over.pop(ref, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Do nothing more."""
        for ref in list(self._over):
            self.forget(ref)
        for task in self._work:
            task.cancel()

    async def _freeze(self, ref: AttemptRef, limit_s: float) -> None:
        run = self._find(ref)
        if run is None:
            return
        try:
            stands = await run.freeze()
        except SandboxError as error:
            _log.warning(
                "a job cannot stand still, and is handed back",
                extra={"action": "freeze", "job_id": ref.job_id, "error": error.message},
            )
            self._tell(CannotRun(ref=ref, reason="Paused by its lender, where it cannot wait."))
            return
        if stands:
            _log.info("frozen", extra={"action": "freeze", "job_id": ref.job_id})
            loop = asyncio.get_running_loop()
            self.forget(ref)
            self._over[ref] = loop.call_later(limit_s, self._too_long, ref)
            self._tell(Froze(ref=ref))

    async def _thaw(self, ref: AttemptRef) -> None:
        run = self._find(ref)
        if run is None:
            return
        try:
            moves = await run.thaw()
        except SandboxError as error:
            _log.error(
                "a frozen job cannot go on, and is handed back",
                extra={"action": "thaw", "job_id": ref.job_id, "error": error.message},
            )
            self._tell(CannotRun(ref=ref, reason="It stood still and could not go on."))
            return
        if moves:
            self.forget(ref)
            _log.info("thawed", extra={"action": "thaw", "job_id": ref.job_id})
            self._tell(Thawed(ref=ref))

    def _too_long(self, ref: AttemptRef) -> None:
        self._over.pop(ref, None)
        self._tell(FrozenTooLong(ref=ref))

    def _run_aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
