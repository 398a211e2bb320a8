"""HTML of a worker, cleaned: what is left can be looked at, and does nothing.

A cell's outputs are trusted by the page that shows them, so a script, a handler or a style sheet
of a worker would be the user's own. Kept are elements of text and tables, links to the web,
pictures that are in the HTML itself, and a few style properties whose values are checked: none
of them loads, moves or covers anything.

Source: JupyterLab, "Security in notebook documents"; the element list is that of Ammonia.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
from typing import Any, Final, NamedTuple

from ..resources import MIB, format_bytes
from .formula import disarm_formulas
from .raster import RASTER_TYPES, raster_refusal
from .tangle import tangle_refusal, without_the_unseen

MAX_HTML_CHARS: Final = 2 * MIB
MAX_PICTURES_BYTES: Final = 8 * MIB
_MAX_SPAN: Final = 1_000
_MOST: Final = format_bytes(MAX_HTML_CHARS)

_COLOUR: Final = (
    r"(?:[a-z]{3,20}|#[0-9a-f]{3,8}|rgba?\([\d\s.,%/]{5,40}\)|hsla?\([\d\s.,%/a-z]{5,40}\))"
)
_LENGTH: Final = r"\d{1,2}(?:\.\d{1,3})?(?:px|em|rem|ex|ch|pt|%)?"
_LENGTHS: Final = rf"{_LENGTH}(?:\s+{_LENGTH}){{0,3}}"
_EXTENT: Final = (
    r"(?:\d{1,4}(?:\.\d{1,3})?(?:px|pt)|\d{1,2}(?:\.\d{1,3})?r?em|\d{1,3}(?:\.\d{1,3})?%|auto)"
)
_BORDER: Final = rf"(?:none|0|{_LENGTH}\s+(?:solid|dashed|dotted|double)(?:\s+{_COLOUR})?)"
_STYLE_VALUES: Final = {
    name: re.compile(pattern)
    for names, pattern in (
        ("color background-color background border-color", _COLOUR),
        ("text-align", "left|right|center|justify|start|end"),
        ("vertical-align", "top|middle|bottom|baseline|sub|super|text-top|text-bottom"),
        ("font-weight", "normal|bold|lighter|bolder|[1-9]00"),
        ("font-style", "normal|italic|oblique"),
        ("font-family", r"(?:(?:monospace|serif|sans-serif)(?:,\s*)?)+"),
        (
            "font-size",
            r"(?:[1-4]?\d(?:\.\d+)?(?:px|pt)|[1-3]?(?:\.\d+)?r?em|[1-3]?\d\d%|small|large)",
        ),
        ("text-decoration", "none|underline|line-through|overline"),
        ("white-space", "normal|nowrap|pre|pre-wrap|pre-line"),
        ("line-height", r"(?:normal|[0-3](?:\.\d{1,3})?)"),
        ("padding padding-left padding-right padding-top padding-bottom", _LENGTHS),
        ("margin margin-left margin-right margin-top margin-bottom", rf"(?:auto|{_LENGTHS})"),
        ("border border-left border-right border-top border-bottom", _BORDER),
        ("border-radius", _LENGTHS),
        ("border-collapse", "collapse|separate"),
        ("width max-width min-width height max-height", _EXTENT),
        ("display", "inline|block|inline-block|none"),
    )
    for name in names.split()
}
_WEB: Final = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)
_PICTURE: Final = re.compile(r"data:(image/(?:png|jpeg|gif|webp));base64,([A-Za-z0-9+/=\s]*)\Z")
_IMAGE: Final = re.compile(r'<img((?:\s[a-z]+="[^"]*")*)>')  # as the cleaner writes it
_ALT: Final = re.compile(r'\salt="([^"]+)"')
_NUMBER: Final = re.compile(r"\d{1,4}%?")
_ACTIVE: Final = re.compile(
    r"<\s*(script|iframe|object|embed|form|input|button|select|textarea|video|audio|canvas|svg"
    r"|frameset|portal|dialog)\b|[\s\"'/](on[a-z]{3,30})\s*=|(javascript)\s*:",
    re.IGNORECASE,
)
_STYLE_SHEET: Final = re.compile(r"<\s*style\b[^>]*>", re.IGNORECASE)
_FALLBACK: Final = "text-repr-fallback"  # sklearn and xarray: shown where their style sheet is not


def clean_style(text: str) -> str:
    """Return the declarations of a ``style`` attribute that only dress the element's own text."""
    kept = []
    for declaration in text.lower().split(";")[:50]:
        name, _, value = declaration.partition(":")
        name, value = name.strip(), value.replace("!important", "").strip()
        pattern = _STYLE_VALUES.get(name)
        if pattern is not None and len(value) <= 100 and pattern.fullmatch(value):
            kept.append(f"{name}: {value}")
    return "; ".join(kept)


class _Attributes:
    """Decides about each attribute that the element list lets through."""

    def __init__(self) -> None:
        self.dropped_pictures = 0
        self._room_bytes = MAX_PICTURES_BYTES

    def __call__(self, tag: str, name: str, value: str) -> str | None:
        match name:
            case "src":
                if self._is_picture(value):
                    return value
                self.dropped_pictures += 1
                return None
            case "href":
                return value if _WEB.match(value) else None
            case "style":
                return clean_style(value) or None
            case "rowspan" | "colspan" | "span":
                return value if value.isdecimal() and int(value[:9]) <= _MAX_SPAN else None
            case "width" | "height" | "size" | "border" | "start":
                return value if _NUMBER.fullmatch(value) else None
            case "cite":
                return None
            case _:
                return value[:2_000]

    def _is_picture(self, address: str) -> bool:
        found = _PICTURE.match(address)
        if found is None:
            return False
        self._room_bytes -= len(address) * 3 // 4
        if self._room_bytes < 0:
            return False
        try:
            data = base64.b64decode(found[2])
        except binascii.Error:
            return False
        return found[1] in RASTER_TYPES and not raster_refusal(found[1], data)


@functools.cache
def _rules() -> dict[str, Any]:
    import nh3

    attributes = {tag: set(names) for tag, names in nh3.ALLOWED_ATTRIBUTES.items()}
    attributes.pop("bdo", None)
    attributes["*"] = {"style", "title", "lang"}
    attributes["table"] = {"align", "summary", "border"}  # pandas writes border="1"
    attributes["details"] = {"open"}
    return {
        "tags": nh3.ALLOWED_TAGS - {"area", "map", "bdo"},  # bdo turns text round
        "attributes": attributes,
        "url_schemes": {"http", "https", "mailto", "data"},
        "link_rel": "noopener noreferrer",
        "set_tag_attribute_values": {"a": {"target": "_blank"}},
    }


def _named(image: re.Match[str]) -> str:
    """Return a picture, or its name where it has lost its bytes."""
    attributes = image[1]
    if ' src="' in attributes:
        return image[0]
    alt = _ALT.search(attributes)
    name = "picture" if alt is None else alt[1].replace("<", "&lt;").replace(">", "&gt;")
    return f"[{name}]"


class Cleaned(NamedTuple):
    """What of HTML can be shown; empty where nothing can, then ``refusal`` may say why, as the
    end of a sentence. ``dropped_pictures`` would be loaded from elsewhere, or are broken."""

    html: str
    refusal: str = ""
    dropped_pictures: int = 0


def clean_html(text: str) -> Cleaned:
    """Return what of HTML can be shown."""
    import nh3

    if len(text) > MAX_HTML_CHARS:
        return Cleaned("", f"it is {format_bytes(len(text))}, at most {_MOST} are cleaned")
    text = without_the_unseen(text)
    refusal = tangle_refusal(text)
    if refusal:
        return Cleaned("", refusal)
    # One cleaner a document: its filter counts what the pictures in it weigh.
    attributes = _Attributes()
    cleaned = nh3.Cleaner(attribute_filter=attributes, **_rules()).clean(text)
    if len(cleaned) > 2 * MAX_HTML_CHARS:
        return Cleaned("", "its elements do not close in order, and multiply")
    html = _IMAGE.sub(_named, disarm_formulas(cleaned.replace("\x00", ""))).strip()
    return Cleaned(html, "", attributes.dropped_pictures)


def is_active(text: str) -> str:
    """Return the first thing in HTML that acts, as ``script`` or ``onclick``; empty if nothing."""
    found = _ACTIVE.search(text)
    return "" if found is None else next(filter(None, found.groups())).lower()


def needs_style_sheet(text: str) -> bool:
    """Return whether HTML is not fit to be read without its own style sheet."""
    return _FALLBACK in text


def has_style_sheet(text: str) -> bool:
    """Return whether HTML brings a style sheet, but for the one that pandas puts into a table."""
    return any("scoped" not in found[0] for found in _STYLE_SHEET.finditer(text))
