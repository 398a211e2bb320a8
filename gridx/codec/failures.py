"""What goes wrong with a message."""

from __future__ import annotations

from ..errors import GridXError


class CodecError(GridXError):
    """The bytes of a worker are not a well-formed result; nothing of them was applied."""

    code = "bad_result"
    default_hint = "Run the cell again; if it happens again, avoid that worker and tell its owner."


class Unsupported(Exception):
    """The encoder has no safe form for a value; it travels as an Opaque."""


class LibraryMissing(Exception):
    """A value needs a library that the user has not installed."""

    def __init__(self, library: str) -> None:
        super().__init__(library)
        self.library = library
