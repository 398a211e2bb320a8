"""Big things, around the messages: cut into chunks, named by digest, compressed where it pays.

A blob is at most ``CHUNK_BYTES`` of raw bytes, named by their BLAKE3 digest. Anything larger is
a sequence of blobs, cut at fixed places, so that a change in one element is a change in one
blob. Digests are over the raw bytes; how they are stored or sent is nobody else's concern.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import blake3

from .resources import KIB, MIB
from .schemas import BlobRef

CHUNK_BYTES: Final = 8 * MIB
LEAST_BLOB_BYTES: Final = 64 * KIB  # what is smaller travels inside the message


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A blob with its bytes, which stay where they are."""

    ref: BlobRef
    data: memoryview


def cut(data: bytes | bytearray | memoryview) -> Iterator[memoryview]:
    """Yield ``data`` in chunks of ``CHUNK_BYTES``, the last one shorter."""
    view = memoryview(data).cast("B")
    for at in range(0, len(view), CHUNK_BYTES):
        yield view[at : at + CHUNK_BYTES]


def digest(data: bytes | bytearray | memoryview) -> str:
    """Return the name of ``data``: BLAKE3, 64 hexadecimal digits."""
    return blake3.blake3(data).hexdigest()


def to_blob(data: memoryview) -> Blob:
    """Return one chunk as a blob."""
    return Blob(ref=BlobRef(digest=digest(data), size=len(data)), data=data)
