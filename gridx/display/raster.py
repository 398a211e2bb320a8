"""Pictures of a worker: their bytes are what they say, and a browser can unpack them.

Only headers are read here; no decoder runs in the notebook's process.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from ..resources import MIB, format_bytes

MAX_IMAGE_BYTES: Final = 8 * MIB
MAX_SIDE_PX: Final = 20_000
MAX_AREA_PX: Final = 100_000_000  # about 400 MB once a browser has unpacked it
MAX_FRAMES: Final = 2_000  # of an animation

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
_JPEG_SIZE_MARKERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE_MARKERS: Final = frozenset({0x01, *range(0xD0, 0xD8)})

Size = tuple[int, int]


def _png_size(data: bytes) -> Size | None:
    if len(data) < 33 or not data.startswith(_PNG) or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def _jpeg_size(data: bytes) -> Size | None:
    if not data.startswith(_JPEG):
        return None
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _JPEG_BARE_MARKERS:
            at += 2
        elif marker in _JPEG_SIZE_MARKERS:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _gif_size(data: bytes) -> Size | None:
    """Return the largest of the screen and its frames; too many frames are no size at all."""
    if len(data) < 14 or data[:6] not in (b"GIF87a", b"GIF89a"):
        return None
    width, height = struct.unpack("<HH", data[6:10])
    at = 13 + _colour_table_bytes(data[10])
    frames = 0
    while at < len(data):
        block = data[at]
        if block == 0x3B:
            break
        if block == 0x21:  # an extension
            at += 2
        elif block == 0x2C and at + 10 <= len(data):
            left, top, frame_width, frame_height = struct.unpack("<HHHH", data[at + 1 : at + 9])
            width, height = max(width, left + frame_width), max(height, top + frame_height)
            at += 11 + _colour_table_bytes(data[at + 9])
            frames += 1
        else:
            return None
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return (width, height) if 0 < frames <= MAX_FRAMES else None


def _colour_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp_size(data: bytes) -> Size | None:
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


RASTER_TYPES: Final[dict[str, Callable[[bytes], Size | None]]] = {
    "image/png": _png_size,
    "image/jpeg": _jpeg_size,
    "image/gif": _gif_size,
    "image/webp": _webp_size,
}


def raster_refusal(mime: str, data: bytes) -> str:
    """Return why the picture cannot be shown, as the end of a sentence; empty when it can.

    Args:
        mime: one of ``RASTER_TYPES``.
        data: the file's bytes.
    """
    size = RASTER_TYPES[mime](data)
    if size is None:
        return "its bytes are not that kind of image"
    if len(data) > MAX_IMAGE_BYTES:
        return f"it is {format_bytes(len(data))}, at most {format_bytes(MAX_IMAGE_BYTES)} is shown"
    width, height = size
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX) or width * height > MAX_AREA_PX:
        return f"{width} by {height} pixels is too large to show"
    return ""
