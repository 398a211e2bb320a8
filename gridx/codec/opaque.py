"""A value that can only travel as a pickle, and stays closed until the user opens it."""

from __future__ import annotations

import pickle
import sys
from typing import Any, Self


class Opaque:
    """An inert handle on a value that a worker made.

    It can be sent on to a later cell, where it becomes the value again; it can be opened here
    with ``unpickle(trust=True)``, which runs what the worker wrote. Whose worker it was makes no
    difference: only the coordinator says so.
    """

    __slots__ = ("__weakref__", "data", "source", "summary", "type_name")

    def __init__(self, type_name: str, summary: str, data: bytes, source: str = "") -> None:
        """
        Args:
            type_name: the type, as the worker tells it.
            summary: what the worker says about it; text, never trusted.
            data: the pickle; empty when the value could not be pickled, and is lost.
            source: which worker and job it comes from.
        """
        self.type_name = type_name
        self.summary = summary
        self.data = data
        self.source = source

    @property
    def size_bytes(self) -> int:
        """Bytes of the pickle."""
        return len(self.data)

    @property
    def is_lost(self) -> bool:
        """Whether the value stayed in its container, and nothing but this handle is left."""
        return not self.data

    def __repr__(self) -> str:
        from_where = f" from {self.source}" if self.source else ""
        if self.is_lost:
            return f"<gridx.Opaque {self.type_name}{from_where}, not here: {self.summary}>"
        return (
            f"<gridx.Opaque {self.type_name}, {len(self.data):,} bytes{from_where}: "
            f"{self.summary!r}; send it to a later cell, or .unpickle(trust=True)>"
        )

    def unpickle(self, *, trust: bool = False) -> Any:
        """Return the value, by running the pickle that the worker wrote.

        Raises:
            PermissionError: ``trust`` is not True.
            ValueError: there is no pickle to open.
        """
        if trust is not True:
            raise PermissionError(
                "Opening this runs what a stranger's worker wrote, on this machine. Send it to a "
                "later %%gridx cell instead, or pass trust=True if you trust that worker."
            )
        if not self.data:
            raise ValueError(f"There is nothing to open: {self.summary}.")
        sys.stderr.write(
            f"Warning: unpickling {self.type_name} from {self.source or 'a worker'} runs what that "
            f"worker wrote, on this machine.\n"
        )
        return pickle.loads(self.data)  # noqa: S301  # asked for with trust=True

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> Any:
        if self.is_lost:
            from ..ship.refusal import StaysHere  # the user's side has it

            raise StaysHere(
                f"it is the handle of {self.type_name}, which stayed in its container "
                f"({self.summary}): make plain data of it in the cell that makes it"
            )
        # Sent on, it is opened in the container of the later cell, not here.
        return pickle.loads, (self.data,)
