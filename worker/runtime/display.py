"""From IPython's displays to the MIME types that leave the sandbox.

What may be shown in a notebook goes out, within limits; of every other type of a bundle the name
alone goes out, so that the reader is told. What is done with each type there is decided there:
nothing that a sandbox leaves out protects anybody, since a lender can change his sandbox.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from IPython.core.formatters import DisplayFormatter

from gridx.events import MAX_EVENT_BYTES
from gridx.resources import KIB, MIB, format_bytes

IMAGE_TYPES: Final = ("image/png", "image/jpeg", "image/gif", "image/webp")
MARKUP_TYPES: Final = ("text/html", "text/markdown", "text/latex", "image/svg+xml")
JSON_TYPE: Final = "application/json"
MAX_TEXT_CHARS: Final = 256 * KIB
MAX_RICH_BYTES: Final = MAX_EVENT_BYTES - 2 * MIB  # room for text of four bytes a character
_MAX_NAMED: Final = 5
_MAX_METADATA_KEYS: Final = 20
_MAX_METADATA_CHARS: Final = 200
_SENT: Final = frozenset({"text/plain", JSON_TYPE, *MARKUP_TYPES, *IMAGE_TYPES})
_NEVER_MADE: Final = "application/pdf"  # takes its time, and no page shows it
_IS_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement
_HOOKS: Final = (
    "__getattr__",
    "_ipython_display_",
    "_repr_mimebundle_",
    *(
        f"_repr_{name}_"
        for name in ("html", "markdown", "svg", "png", "pdf", "jpeg", "latex", "json", "javascript")
    ),
)


class Bundle(NamedTuple):
    """What of a MIME bundle goes out: an empty text in ``data`` names a type that does not."""

    data: dict[str, str]
    binary: dict[str, bytes]
    metadata: dict[str, Any]


class Formats(DisplayFormatter):
    """Asks an object for every type that may be shown, and one that has only text for its text.

    A number, a string, an array of NumPy has no other form than its text. To ask each of ten
    formatters for it would be most of a small cell's time.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.active_types = [name for name in self.format_types if name != _NEVER_MADE]
        self._text = self.formatters["text/plain"]
        self._others = [f for name, f in self.formatters.items() if name != "text/plain"]
        self._has_text_alone: dict[type, bool] = {}

    def format(
        self, obj: Any, include: Any = None, exclude: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        if include is None and exclude is None and self._is_text_alone(type(obj)):
            text = self._text(obj)
            if isinstance(text, str):
                return {"text/plain": text}, {}
        made: tuple[dict[str, Any], dict[str, Any]] = super().format(obj, include, exclude)
        return made

    def _is_text_alone(self, kind: type) -> bool:
        known = self._has_text_alone.get(kind)
        if known is None:
            # Its class cannot be changed, nor can an object of it have attributes of its own.
            known = self._has_text_alone[kind] = (
                not kind.__flags__ & _IS_HEAP_TYPE
                and kind.__dictoffset__ == 0
                and not any(hasattr(kind, hook) for hook in _HOOKS)
            )
        return known and not any(
            formatter.singleton_printers
            or formatter.deferred_printers
            or not formatter.type_printers.keys().isdisjoint(kind.__mro__)
            for formatter in self._others
        )


def to_bundle(data: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> Bundle:
    """Return the part of ``data`` that may leave, each part within its limit."""
    text = data.get("text/plain")
    if len(data) == 1 and isinstance(text, str):
        return Bundle({"text/plain": shorten(text)}, {}, {})
    sent: dict[str, str] = {}
    binary: dict[str, bytes] = {}
    notes: list[str] = []
    free_bytes = MAX_RICH_BYTES
    for mime in (*IMAGE_TYPES, *MARKUP_TYPES, JSON_TYPE):
        value = data.get(mime)
        if value is None:
            continue
        image = _as_bytes(value) if mime in IMAGE_TYPES else None
        markup = None if mime in IMAGE_TYPES else _as_text(mime, value)
        size = len(image) if image is not None else _size_bytes(markup)
        if size > free_bytes:
            notes.append(f"[{mime} of {format_bytes(size)}: too large to show]")
            continue
        free_bytes -= size
        if image is not None:
            binary[mime] = image
        elif markup:
            sent[mime] = markup
    if isinstance(text, str) and text:
        notes.insert(0, shorten(text))
    if notes:
        sent["text/plain"] = "\n".join(notes)
    kept = _kept(metadata or {}, (*binary, *sent))
    others = [mime for mime in data if isinstance(mime, str) and mime not in _SENT]
    sent.update((_sendable(mime[:100]), "") for mime in others[:_MAX_NAMED])
    return Bundle(sent, binary, kept)


def shorten(text: str) -> str:
    """Return ``text`` without half surrogate pairs, cut where an event could not hold it."""
    text = _sendable(text)
    if len(text) <= MAX_TEXT_CHARS:
        return text
    return f"{text[:MAX_TEXT_CHARS]}… [{len(text) - MAX_TEXT_CHARS} more characters]"


def _sendable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _size_bytes(text: str | None) -> int:
    if text is None:
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def _as_text(mime: str, value: object) -> str | None:
    if mime == JSON_TYPE:
        try:
            return json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            return None
    if isinstance(value, (bytes, bytearray)):
        value = bytes(value).decode("utf-8", "replace")
    return _sendable(value) if isinstance(value, str) else None


def _as_bytes(image: object) -> bytes | None:
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, str):  # as Jupyter's own messages carry it
        try:
            return base64.b64decode(image.encode("ascii", "strict"))
        except (binascii.Error, UnicodeError):
            return None
    return None


def _kept(metadata: Mapping[str, Any], kept_types: tuple[str, ...]) -> dict[str, Any]:
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
