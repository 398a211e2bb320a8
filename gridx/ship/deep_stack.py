"""Room for deep recursion: what pickles a structure of thousands of levels runs in it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Final, TypeVar

_Result = TypeVar("_Result")

_LEVEL_BYTES: Final = 9_000


def is_too_deep(error: BaseException) -> bool:
    """Return whether ``error`` says that the stack was not deep enough."""
    # cloudpickle raises an error of its own, with this word.
    return isinstance(error, RecursionError) or "recursion" in str(error)


def with_deep_stack(action: Callable[[], _Result], levels: int) -> _Result:
    """Return what ``action`` returns, run in a thread whose stack has room for ``levels``.

    Raises:
        RuntimeError: there is no memory for such a thread.
        Exception: what ``action`` raises.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as exc:
            errors.append(exc)

    stack_bytes = threading.stack_size(levels * _LEVEL_BYTES // 4_096 * 4_096)
    recursion = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(max(recursion, levels))
        thread = threading.Thread(target=run, name="gridx-deep-pickle", daemon=True)
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(recursion)
        threading.stack_size(stack_bytes)
    if errors:
        raise errors[0]
    return results[0]
