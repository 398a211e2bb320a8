"""MIME bundles of a worker, rebuilt from an allow-list.

A page trusts what its own kernel shows: HTML, JavaScript, SVG, widgets and plots with scripts
would run there with the user's rights. So only what is inert passes, and images are looked at
before they do.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..resources import MIB, format_bytes
from .text import clean_line, clean_text

MAX_IMAGE_BYTES = 8 * MIB
MAX_SIDE_PX = 20_000
MAX_AREA_PX = 100_000_000  # about 400 MB once a browser has unpacked it
MAX_SHOWN_PX = 10_000  # for width and height in the metadata

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_JPEG_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD8)})


class SafeBundle(NamedTuple):
    """What of a bundle can be shown: ``data`` and ``metadata`` in Jupyter's form.

    ``left_out`` names the types that were dropped; ``notes`` says why an image was refused.
    """

    data: dict[str, str]
    metadata: dict[str, Any]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def _png_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 33 or not data.startswith(_PNG) or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
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


_IMAGES = {"image/png": _png_size, "image/jpeg": _jpeg_size}


def _refusal(mime: str, data: bytes) -> str:
    """Return why an image cannot be shown; empty when it can."""
    size = _IMAGES[mime](data)
    if size is None:
        return f"{mime} left out: its bytes are not that kind of image"
    if len(data) > MAX_IMAGE_BYTES:
        return f"{mime} left out: {format_bytes(len(data))}, at most {format_bytes(MAX_IMAGE_BYTES)} is shown"
    width, height = size
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX) or width * height > MAX_AREA_PX:
        return f"{mime} left out: {width} by {height} pixels is too large to show"
    return ""


def _shown_size(metadata: Mapping[str, Any], mime: str) -> dict[str, int]:
    """Return width and height of the worker's metadata, and nothing else of it."""
    own = metadata.get(mime)
    source = own if isinstance(own, dict) else {}
    return {
        key: value
        for key in ("width", "height")
        if type(value := source.get(key)) is int and 0 < value <= MAX_SHOWN_PX
    }


def safe_bundle(
    data: Mapping[str, str], binary: Mapping[str, bytes], metadata: Mapping[str, Any]
) -> SafeBundle:
    """Return what of a worker's bundle can be shown.

    Args:
        data: text by MIME type, as it came.
        binary: bytes by MIME type, as they came.
        metadata: as it came; of it only integer sizes of images are kept.
    """
    shown: dict[str, str] = {}
    sizes: dict[str, Any] = {}
    left_out: list[str] = []
    notes: list[str] = []
    for mime, text in data.items():
        if mime == "text/plain":
            shown[mime] = clean_text(text)
        else:
            left_out.append(clean_line(mime, 80))
    for mime, raw in binary.items():
        if mime not in _IMAGES:
            left_out.append(clean_line(mime, 80))
            continue
        refusal = _refusal(mime, raw)
        if refusal:
            notes.append(refusal)
            continue
        shown[mime] = base64.b64encode(raw).decode("ascii")
        size = _shown_size(metadata, mime)
        if size:
            sizes[mime] = size
    return SafeBundle(shown, sizes, tuple(left_out[:10]), tuple(notes))
