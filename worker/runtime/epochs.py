"""Which call of a session a thread or a task works for.

A call starts threads and tasks that may outlive it. What they say belongs to it and not to the
call that runs by then: tasks inherit the mark with their context, threads are marked when they
are started, and a pool's thread takes the mark of whoever handed it the work.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any, Final

_CALL: Final[ContextVar[int | None]] = ContextVar("gridx_call", default=None)
_MARK: Final = "_gridx_call"
_newest = 0


def begin_epoch(call: int) -> None:
    """Say that the main thread works for ``call`` from now on."""
    global _newest
    _newest = call
    _CALL.set(call)


def call_of_this_thread() -> int:
    """Return the call that this thread works for."""
    call = _CALL.get()
    if call is not None:
        return call
    thread = threading.current_thread()
    mark: int | None = getattr(thread, _MARK, None)
    if mark is None:  # started below ``threading``: it belongs to the call that sees it first
        mark = _newest
        setattr(thread, _MARK, mark)
    return mark


def follow_threads() -> None:
    """Mark every thread that is started, and every piece of work for a pool, from now on."""
    from concurrent.futures import thread as futures

    start = threading.Thread.start
    work: Any = futures._WorkItem
    make, run = work.__init__, work.run

    def start_marked(self: threading.Thread) -> None:
        setattr(self, _MARK, call_of_this_thread())
        start(self)

    def make_marked(self: Any, *args: Any, **more: Any) -> None:
        setattr(self, _MARK, call_of_this_thread())
        make(self, *args, **more)

    def run_marked(self: Any) -> None:
        token = _CALL.set(getattr(self, _MARK))
        try:
            run(self)
        finally:
            _CALL.reset(token)

    threading.Thread.start = start_marked  # type: ignore[method-assign]
    work.__init__, work.run = make_marked, run_marked
