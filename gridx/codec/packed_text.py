"""Many strings as two blobs: their text in one piece, and their lengths."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from .failures import CodecError

MISSING: Final = -1
"""The length that stands for no string at all."""


def pack(texts: Sequence[str | None]) -> tuple[bytes, bytes]:
    """Return the UTF-8 of all ``texts`` and their lengths in code points, int32 little-endian."""
    lengths = array("i", [MISSING if text is None else len(text) for text in texts])
    if sys.byteorder == "big":
        lengths.byteswap()
    joined = "".join([text for text in texts if text is not None])
    return joined.encode("utf-8", "surrogatepass"), lengths.tobytes()


def unpack(joined: memoryview, raw_lengths: memoryview, *, may_miss: bool) -> list[str | None]:
    """Return the strings that ``pack`` was given.

    Raises:
        CodecError: the lengths do not add up to the text, or it is not UTF-8.
    """
    if len(raw_lengths) % 4:
        raise CodecError("The lengths of packed strings are cut off.")
    lengths = array("i")
    lengths.frombytes(raw_lengths)
    if sys.byteorder == "big":
        lengths.byteswap()
    try:
        text = str(joined, "utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise CodecError("Packed strings are not UTF-8.") from None
    least = min(lengths, default=0)
    if least < (MISSING if may_miss else 0):
        raise CodecError("A packed string has a negative length.")
    sizes = [max(n, 0) for n in lengths] if least < 0 else list(lengths)
    ends = list(accumulate(sizes))
    if (ends[-1] if ends else 0) != len(text):
        raise CodecError("The lengths of packed strings do not add up.")
    pieces: list[str | None] = [
        text[end - size : end] for end, size in zip(ends, sizes, strict=True)
    ]
    if least < 0:
        return [None if n < 0 else piece for n, piece in zip(lengths, pieces, strict=True)]
    return pieces
