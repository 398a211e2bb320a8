"""A cell that was prepared: what it is, what travels, how its results come home."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from gridx.schemas import CellSpec

from .options import CellOptions
from .visible_cell import VisibleCell

if TYPE_CHECKING:
    from gridx.blobs import Blob
    from gridx.ship.capture import Captured
    from gridx.ship.offers import Wish


@dataclass(frozen=True)
class Order:
    """One cell on its way. ``captured`` is None for a cell of which only the journal knows, and
    for a script of another language."""

    line: str
    body: str
    options: CellOptions
    visible: VisibleCell
    spec: CellSpec
    captured: Captured | None = None
    file_blobs: tuple[Blob, ...] = ()
    sent_files: Mapping[str, str] = field(default_factory=dict)  # path to digest
    notes: tuple[str, ...] = ()  # what was found out about its environment
    notice: str = ""  # why it will have to wait, known before it is sent
    earlier: Mapping[str, tuple[str, int]] = field(default_factory=dict)  # cells of its session
    at_submit: dict[str, Any] | None = None  # what the user has rebound since stays

    @property
    def size_bytes(self) -> int:
        """Bytes of variables and files, before compression; what is there already counts too."""
        variables = 0 if self.captured is None else self.captured.size_bytes
        in_message = sum(len(file.data) for file in self.spec.files)
        return variables + in_message + sum(blob.ref.size for blob in self.file_blobs)

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Everything that travels beside the message."""
        variables = () if self.captured is None else self.captured.blobs
        return (*variables, *self.file_blobs)

    @property
    def wish(self) -> Wish:
        """What it asks of an image."""
        from gridx.ship.offers import Wish

        options = self.options
        return Wish(options.language, self.spec.python, options.image, bool(options.pip))

    @property
    def expected(self) -> frozenset[str]:
        """The only names that the result may touch: seen in the cell, or asked for by --out."""
        return frozenset(self.spec.expected)

    @property
    def stayed_here(self) -> tuple[str, ...]:
        """Names that the cell might have wanted and that did not travel."""
        captured = self.captured
        if captured is None:
            return ()
        return (*captured.withheld, *captured.left_out, *captured.unpicklable)

    def without_payload(self) -> Order:
        """Return the order of a cell that was sent: its inputs need no memory here any more."""
        captured = self.captured
        if captured is not None:
            captured = captured.sent()
        spec = msgspec.structs.replace(self.spec, files=())
        return dataclasses.replace(self, captured=captured, spec=spec, file_blobs=())

    def landed(self) -> Order:
        """Return the order of a cell that has landed, or whose landing is another's business.

        The namespace of the submit would keep what the notebook has dropped since.
        """
        return dataclasses.replace(self, at_submit=None)

    def at(self, namespace: dict[str, Any]) -> Order:
        """Return the order of a cell that the notebook does not wait for any more.

        What its names stand for now is kept: what the user binds again from here on stays.
        """
        then = {name: namespace[name] for name in self.expected if name in namespace}
        return dataclasses.replace(self, at_submit=then)
