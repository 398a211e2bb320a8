"""Big things, around the messages: cut into chunks, named by digest, compressed where it pays.

A blob is at most ``CHUNK_BYTES`` of raw bytes, named by their BLAKE3 digest. Anything larger is
a sequence of blobs, cut at fixed places, so that a change in one element is a change in one
blob. Digests are over the raw bytes; how they are stored or sent is nobody else's concern.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import blake3

from .errors import BlobMismatch
from .resources import KIB, MIB
from .schemas import BlobRef

CHUNK_BYTES: Final = 8 * MIB
LEAST_BLOB_BYTES: Final = 64 * KIB  # what is smaller travels inside the message
MAX_BLOBS: Final = 4096  # that one message may name: 32 GiB

OCTETS: Final = "application/octet-stream"  # how a blob travels over HTTP
ZSTD: Final = "zstd"  # its Content-Encoding when it is packed

_LEVEL: Final = 1  # 250 to 600 MB/s; higher ones are slower than most networks
_PROBE_BYTES: Final = 64 * KIB
_WORTH_IT: Final = 0.9  # packed is worth its time when it has at most so much of the size
_MAX_WINDOW_BYTES: Final = 2 * CHUNK_BYTES  # what a frame may ask its reader to set aside


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A blob with its bytes, which stay where they are."""

    ref: BlobRef
    data: memoryview


@dataclass(frozen=True, slots=True)
class Packed:
    """A blob as it travels: raw, where the bytes stay where they are, or one zstd frame that
    says its size."""

    body: bytes | bytearray | memoryview
    is_zstd: bool


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


def pack(data: bytes | bytearray | memoryview) -> Packed:
    """Return ``data`` as it should travel: compressed where that saves a tenth or more.

    A part from its middle is tried first, so that random numbers cost next to nothing. It takes
    up to 30 ms for a full chunk: call it in a thread.
    """
    import zstandard  # the sandbox image reads blobs and has no zstandard

    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    start = max(0, len(data) - _PROBE_BYTES) // 2
    probe = data[start : start + _PROBE_BYTES]
    if len(compressor.compress(probe)) <= len(probe) * _WORTH_IT:
        body = compressor.compress(data)
        if len(body) <= len(data) * _WORTH_IT:
            return Packed(body, is_zstd=True)
    return Packed(data, is_zstd=False)


def unpack(body: bytes, ref: BlobRef, *, is_zstd: bool) -> bytes:
    """Return the raw bytes of the blob ``ref``, and nothing else.

    A frame that would become longer is refused before a byte of it is written.

    Raises:
        BlobMismatch: the bytes have another size or digest, or are no zstd frame.
    """
    raw = _inflate(body, ref.size) if is_zstd else body
    check((raw,), ref)
    return raw


def unpack_into(
    target: memoryview, pieces: Sequence[bytes], ref: BlobRef, *, is_zstd: bool
) -> None:
    """Put the raw bytes of the blob ``ref``, which came in pieces, into ``target``.

    Raises:
        BlobMismatch: as ``unpack``; what is in ``target`` then means nothing.
    """
    raw = (unpack(b"".join(pieces), ref, is_zstd=True),) if is_zstd else pieces
    if not is_zstd:
        check(raw, ref)
    at = 0
    for piece in raw:
        target[at : at + len(piece)] = piece
        at += len(piece)


def check(pieces: Sequence[bytes], ref: BlobRef) -> None:
    """Refuse raw bytes that are not the blob ``ref``.

    Raises:
        BlobMismatch: they have another size or digest.
    """
    size = sum(map(len, pieces))
    if size != ref.size:
        raise BlobMismatch(f"Blob {ref.digest[:16]} came with {size} of {ref.size} bytes.")
    hasher = blake3.blake3()
    for piece in pieces:
        hasher.update(piece)
    if hasher.hexdigest() != ref.digest:
        raise BlobMismatch(f"Blob {ref.digest[:16]} came with other bytes than its name says.")


def _inflate(body: bytes, size: int) -> bytes:
    import zstandard  # the sandbox image reads blobs and has no zstandard

    try:
        # Looked at first: a frame that states its size is given that much memory, limit or not.
        frame = zstandard.get_frame_parameters(body)
        if frame.content_size != size:
            raise BlobMismatch(f"A packed blob of {size} bytes does not say this size in its head.")
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        return decompressor.decompress(body, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise BlobMismatch(f"A packed blob is no zstd frame: {exc}.") from None
