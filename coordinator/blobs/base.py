"""What a store of blobs promises.

A blob is kept under its owner and its digest: the same bytes of two owners are two blobs. It is
there whole or not at all, and what was answered survives a crash. Which blobs there are, and who
refers to them, is in the database; this holds bytes and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from gridx.schemas import BlobRef


class Stored(NamedTuple):
    """A blob as it is kept: raw, or one zstd frame."""

    body: bytes
    is_zstd: bool


class Blobs(Protocol):
    """Keep and return blobs. Nothing here blocks the event loop."""

    async def put(
        self, owner_id: int, ref: BlobRef, pieces: Sequence[bytes], *, is_zstd: bool
    ) -> int:
        """Keep a blob that came in pieces; durable when it returns. Again it changes nothing.

        Returns:
            how many bytes it takes here.

        Raises:
            BlobMismatch: the raw bytes do not have the size and digest of ``ref``.
            StorageError: the disk cannot be written.
        """

    async def get(self, owner_id: int, digest: str) -> Stored | None:
        """Return a blob, or None when it is not here.

        Raises:
            StorageError: the disk cannot be read.
        """

    async def close(self) -> None:
        """Finish what is under way."""
