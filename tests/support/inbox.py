"""What a double has received, and waiting for what it has not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
M = TypeVar("M")


async def found(changed: asyncio.Condition, find: Callable[[], T | None], patience_s: float) -> T:
    """Return what ``find`` returns, asked again after each change until it is not None."""
    async with asyncio.timeout(patience_s), changed:
        while (answer := find()) is None:
            await changed.wait()
        return answer


def first(
    received: Sequence[object], kind: type[M] | tuple[type[M], ...], fields: dict[str, Any]
) -> M | None:
    """Return the first message of this kind with these values, or None."""
    for message in received:
        if isinstance(message, kind) and all(
            getattr(message, name) == value for name, value in fields.items()
        ):
            return message
    return None
