"""A value that can only travel as a pickle, and stays closed until the user opens it."""

from __future__ import annotations

import pickle
import warnings
from typing import Any


class Opaque:
    """An inert handle on a value that a worker made.

    It can be sent on to a later cell, where it becomes the value again; it can be opened here
    with ``unpickle(trust=True)``, which runs what the worker wrote.
    """

    __slots__ = ("__weakref__", "data", "source", "summary", "type_name")

    def __init__(self, type_name: str, summary: str, data: bytes, source: str = "") -> None:
        """
        Args:
            type_name: the type, as the worker tells it.
            summary: what the worker says about it; text, never trusted.
            data: the pickle; empty when the value could not be pickled.
            source: which worker and job it comes from.
        """
        self.type_name = type_name
        self.summary = summary
        self.data = data
        self.source = source

    def __repr__(self) -> str:
        from_where = f" from {self.source}" if self.source else ""
        if not self.data:
            return f"<gridx.Opaque {self.type_name}{from_where}: {self.summary}>"
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
        warnings.warn(
            f"Unpickling {self.type_name} from {self.source or 'a worker'} on this machine.",
            stacklevel=2,
        )
        return pickle.loads(self.data)  # noqa: S301  # asked for with trust=True

    def __reduce__(self) -> Any:
        # Sent on, it is opened in the container of the later cell, not here.
        if self.data:
            return pickle.loads, (self.data,)
        return Opaque, (self.type_name, self.summary, self.data, self.source)
