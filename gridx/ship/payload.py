"""Lays out what was pickled as a head and blobs, in the form that ``restore`` reads."""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from . import restore

if TYPE_CHECKING:
    from ..blobs import Blob
    from .chunk_digests import PendingBlobs

# Above it a body is worth the request that puts it: the second time it need not be sent.
_MAX_BODY_BYTES: Final = 1 << 20
ANY_PYTHON: Final = (0, 0)
"""Of a payload without code objects."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What travels: ``head`` inside the message, ``blobs`` around it, each of them once."""

    head: bytes
    blobs: tuple[Blob, ...] = ()


def pack(
    stream: bytes,
    raws: Sequence[memoryview],
    pending: dict[int, PendingBlobs],
    *,
    python: tuple[int, int] | None = None,
    with_blobs: bool = False,
) -> Packed:
    """Return the payload of one pickle stream and its buffers.

    Args:
        stream: what the pickler wrote.
        raws: its out-of-band buffers, in order.
        pending: by index, the buffers that travel as blobs.
        python: the version that can read the stream, when not this one.
        with_blobs: a large stream may travel as blobs too.
    """
    sizes = []
    names: list[bytes] = []
    blobs: dict[str, Blob] = {}
    for index, raw in enumerate(raws):
        size = raw.nbytes | (restore.READ_ONLY if raw.readonly else 0)
        if index in pending:
            size |= restore.APART
            for blob in pending[index].result():
                names.append(bytes.fromhex(blob.ref.digest))
                blobs.setdefault(blob.ref.digest, blob)
        sizes.append(size)
    flags, pieces = 0, list[bytes | memoryview]()
    if with_blobs and len(stream) > _MAX_BODY_BYTES:
        flags |= restore.STREAM_APART
        for blob in _as_blobs(stream):
            names.append(bytes.fromhex(blob.ref.digest))
            blobs.setdefault(blob.ref.digest, blob)
    else:
        pieces.append(stream)
    pieces = [
        restore.BODY.pack(len(sizes), len(stream)),
        struct.pack(f"<{len(sizes)}Q", *sizes),
        *names,
        *pieces,
    ]
    at = sum(len(piece) for piece in pieces)
    for index, raw in enumerate(raws):
        if index not in pending:
            pieces += [bytes(-at % restore.ALIGNMENT), raw]
            at += -at % restore.ALIGNMENT + raw.nbytes
    if with_blobs and at > _MAX_BODY_BYTES:
        flags |= restore.BODY_APART
        body = _as_blobs(b"".join(pieces))
        blobs |= {blob.ref.digest: blob for blob in body}
        pieces = [bytes.fromhex(blob.ref.digest) for blob in body]
    major, minor = sys.version_info[:2] if python is None else python
    header = restore.HEADER.pack(restore.MAGIC, major, minor, flags, restore.CHUNK_BYTES, at)
    return Packed(b"".join([header, *pieces]), tuple(blobs.values()))


def _as_blobs(data: bytes) -> list[Blob]:
    from .chunk_digests import CHUNK_DIGESTS

    return CHUNK_DIGESTS.start(memoryview(data)).result()
