"""The format of a segment file: records of a header and whole events.

    u32 length | u32 crc | u64 offset | f64 time | data          (big-endian)

The checksum covers the rest of the header and the data. A reader takes records as long as they
are whole, right and contiguous: of a file that was cut or damaged it sees a valid prefix.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

_HEADER = struct.Struct(">IIQd")
_AFTER_CRC = struct.Struct(">IQd")
HEADER_BYTES: Final = _HEADER.size
MAX_RECORD_BYTES: Final = 64 * 1024 * 1024


class Record(NamedTuple):
    """A record as it stands in the file. ``next_at``: where the next one begins."""

    offset: int
    time_s: float
    data: bytes
    next_at: int


def _crc(length: int, offset: int, time_s: float, data: bytes | memoryview) -> int:
    return zlib.crc32(data, zlib.crc32(_AFTER_CRC.pack(length, offset, time_s)))


def encode(offset: int, time_s: float, data: bytes | memoryview) -> bytes:
    """Return the header that stands before ``data``."""
    crc = _crc(len(data), offset, time_s, data)
    return _HEADER.pack(len(data), crc, offset, time_s)


def scan(
    file: BinaryIO, *, at: int = 0, offset: int = 0, end: int | None = None
) -> Iterator[Record]:
    """Yield the records from position ``at`` of the file, where stream byte ``offset`` begins.

    Ends before the first record that is cut, damaged or out of order, and at stream byte ``end``.
    """
    file.seek(at)
    while end is None or offset < end:
        header = file.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            return
        length, crc, here, time_s = _HEADER.unpack(header)
        if here != offset or not 0 < length <= MAX_RECORD_BYTES:
            return
        data = file.read(length)
        if len(data) < length or _crc(length, here, time_s, data) != crc:
            return
        at += HEADER_BYTES + length
        offset += length
        yield Record(here, time_s, data, at)
