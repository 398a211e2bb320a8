"""From IPython's MIME bundles to the types that leave the sandbox in this release.

Plain text, PNG and JPEG go out; every other type of a bundle is left out, its text stays.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from gridx.events import MAX_EVENT_BYTES
from gridx.resources import KIB, MIB, format_bytes

IMAGE_TYPES: Final = ("image/png", "image/jpeg")
MAX_TEXT_CHARS: Final = 256 * KIB
MAX_IMAGES_BYTES: Final = MAX_EVENT_BYTES - 2 * MIB  # room for text of four bytes a character
_MAX_METADATA_KEYS: Final = 20
_MAX_METADATA_CHARS: Final = 200


class Bundle(NamedTuple):
    """What of a MIME bundle goes out."""

    data: dict[str, str]
    binary: dict[str, bytes]
    metadata: dict[str, Any]


def to_bundle(data: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> Bundle:
    """Return the part of ``data`` that may leave, each part within its limit."""
    notes: list[str] = []
    binary: dict[str, bytes] = {}
    free_bytes = MAX_IMAGES_BYTES
    for mime in IMAGE_TYPES:
        image = _as_bytes(data.get(mime))
        if image is None:
            continue
        if len(image) > free_bytes:
            notes.append(f"[{mime} of {format_bytes(len(image))}: too large to show]")
            continue
        binary[mime] = image
        free_bytes -= len(image)
    text = data.get("text/plain")
    if not isinstance(text, str):
        others = [] if binary or notes else [str(mime)[:100] for mime in list(data)[:5]]
        notes = notes or [f"[{', '.join(others)}: not shown in this release]"] if others else notes
        text = ""
    plain = "\n".join([*([shorten(text)] if text else []), *notes])
    return Bundle({"text/plain": plain} if plain else {}, binary, _kept(metadata or {}, binary))


def shorten(text: str) -> str:
    """Return ``text`` without half surrogate pairs, cut where an event could not hold it."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) <= MAX_TEXT_CHARS:
        return text
    return f"{text[:MAX_TEXT_CHARS]}… [{len(text) - MAX_TEXT_CHARS} more characters]"


def _as_bytes(image: object) -> bytes | None:
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, str):  # as Jupyter's own messages carry it
        try:
            return base64.b64decode(image.encode("ascii", "strict"))
        except (binascii.Error, UnicodeError):
            return None
    return None


def _kept(metadata: Mapping[str, Any], kept_types: Mapping[str, object]) -> dict[str, Any]:
    """Return the metadata of what is kept: plain values one level down."""
    result: dict[str, Any] = {}
    for mime in kept_types:
        values = metadata.get(mime)
        if isinstance(values, dict):
            result[mime] = {
                key: value
                for key, value in list(values.items())[:_MAX_METADATA_KEYS]
                if isinstance(key, str) and _is_plain(key) and _is_plain(value)
            }
    return result


def _is_plain(value: object) -> bool:
    if isinstance(value, bool | float) or value is None:
        return True
    if isinstance(value, int):
        return abs(value) < 1 << 53
    return isinstance(value, str) and len(value) <= _MAX_METADATA_CHARS and value.isascii()
