"""The outer form of a message: magic, head, blobs; and the scan that bounds it before parsing.

A blob of ``_ALIGNED_BYTES`` or more begins at a multiple of ``_ALIGNMENT``, so that an array can
live in the message itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from . import tags
from .failures import CodecError
from .limits import Limits

_PREFIX: Final = struct.Struct("<4sQ")
_ALIGNMENT: Final = 64
_ALIGNED_BYTES: Final = 4_096
# A head of this size can become so many objects at most, and msgspec bounds its depth.
_UNSCANNED_BYTES: Final = 4 << 20
_BLOCK_BYTES: Final = 8 << 20
# Levels of MessagePack for one level of containers: pandas and Arrow nodes nest a few lists.
_LEVELS_PER_DEPTH: Final = 3
_FIXED: Final = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCC: 1, 0xD0: 1, 0xCD: 2, 0xD1: 2,
    0xCA: 4, 0xCE: 4, 0xD2: 4, 0xCB: 8, 0xCF: 8, 0xD3: 8,
}  # fmt: skip
_SIZED: Final = {0xC4: 1, 0xD9: 1, 0xC5: 2, 0xDA: 2, 0xC6: 4, 0xDB: 4}
_ARRAYS: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """A message in the buffers that it was made of: large ones are the user's own memory."""

    buffers: tuple[bytes | memoryview, ...]
    size_bytes: int

    def join(self) -> bytes:
        """Return the message as one string: a second copy of all of it."""
        return b"".join(self.buffers)

    def blocks(self, max_bytes: int = _BLOCK_BYTES) -> Iterator[bytes | memoryview]:
        """Yield the message in blocks of ``max_bytes``, the last one shorter.

        A block that lies in one buffer is a view of it; only one across buffers is a copy.
        """
        gathered: list[memoryview] = []
        missing = max_bytes
        for buffer in self.buffers:
            view = memoryview(buffer)
            while view:
                part, view = view[:missing], view[missing:]
                gathered.append(part)
                missing -= len(part)
                if not missing:
                    yield gathered[0] if len(gathered) == 1 else b"".join(gathered)
                    gathered, missing = [], max_bytes
        if gathered:
            yield gathered[0] if len(gathered) == 1 else b"".join(gathered)


def join(magic: bytes, root: Any, blobs: Sequence[bytes | memoryview]) -> bytes:
    """Return the message of ``root`` and ``blobs``."""
    return pieces(magic, root, blobs).join()


def pieces(magic: bytes, root: Any, blobs: Sequence[bytes | memoryview]) -> Pieces:
    """Return the message of ``root`` and ``blobs`` without copying the blobs."""
    views = [memoryview(blob).cast("B") for blob in blobs]
    head = msgspec.msgpack.encode([tags.VERSION, root, [len(view) for view in views]])
    buffers: list[bytes | memoryview] = [_PREFIX.pack(magic, len(head)), head]
    at = _PREFIX.size + len(head)
    for view in views:
        gap = _gap(at, len(view))
        buffers += [bytes(gap), view] if gap else [view]
        at += gap + len(view)
    return Pieces(buffers=tuple(buffers), size_bytes=at)


def _gap(at: int, size_bytes: int) -> int:
    return -at % _ALIGNMENT if size_bytes >= _ALIGNED_BYTES else 0


def split(
    magic: bytes, data: bytes | bytearray | memoryview, limits: Limits
) -> tuple[Any, list[memoryview]]:
    """Return root and blobs of the message ``data``.

    Raises:
        CodecError: another magic or version, too large, too deep, or sizes that do not add up.
    """
    view = memoryview(data).cast("B")
    if len(view) > limits.bytes:
        raise CodecError(f"A result of {len(view):,} bytes is above the limit.")
    if len(view) < _PREFIX.size:
        raise CodecError("The result is cut off.")
    found, length = _PREFIX.unpack_from(view)
    if found != magic:
        raise CodecError("These bytes are not a result of this release of Grid-X.")
    body = _PREFIX.size + length
    if body > len(view):
        raise CodecError("The result is cut off.")
    head = view[_PREFIX.size : body]
    if len(head) > _UNSCANNED_BYTES:
        scan(bytes(head), depth=limits.depth * _LEVELS_PER_DEPTH, nodes=limits.nodes * 2)
    try:
        message = msgspec.msgpack.decode(head)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError, MemoryError):
        raise CodecError("The head of the result is malformed.") from None
    if not (type(message) is list and len(message) == 3 and message[0] == tags.VERSION):
        raise CodecError("The result has another version.")
    return message[1], _blobs(message[2], view, body)


def _blobs(sizes: Any, view: memoryview, at: int) -> list[memoryview]:
    if type(sizes) is not list:
        raise CodecError("The sizes in the result do not add up.")
    blobs = []
    for size in sizes:
        if type(size) is not int or not 0 <= size <= len(view):
            raise CodecError("The sizes in the result do not add up.")
        at += _gap(at, size)
        blobs.append(view[at : at + size])
        at += size
    if at != len(view):
        raise CodecError("The sizes in the result do not add up.")
    return blobs


def scan(head: bytes, *, depth: int, nodes: int) -> None:
    """Walk the MessagePack headers of ``head`` without building anything.

    Raises:
        CodecError: nested deeper than ``depth``, more than ``nodes``, cut off, or an extension.
    """
    at, end, count = 0, len(head), 0
    open_items = [1]
    while open_items:
        if open_items[-1] == 0:
            open_items.pop()
            continue
        open_items[-1] -= 1
        if at >= end:
            raise CodecError("The result is cut off.")
        code = head[at]
        at += 1
        count += 1
        children = 0
        if code <= 0x7F or code >= 0xE0:
            continue
        if code >= 0xC0:
            if code in _FIXED:
                at += _FIXED[code]
            elif code in _SIZED:
                width = _SIZED[code]
                at += width + int.from_bytes(head[at : at + width], "big")
            elif code in _ARRAYS:
                width, each = _ARRAYS[code]
                children = each * int.from_bytes(head[at : at + width], "big")
                at += width
            else:
                raise CodecError("The result holds an extension type, which is not used.")
        elif code >= 0xA0:
            at += code & 31
        else:
            children = code & 15 if code >= 0x90 else 2 * (code & 15)
        if children:
            if children > end - at:
                raise CodecError("The result is cut off.")
            if len(open_items) > depth:
                raise CodecError("The result is nested too deeply.")
            open_items.append(children)
        if count > nodes:
            raise CodecError("The result has too many parts.")
    if at != end:
        raise CodecError("The result has bytes after its end.")
