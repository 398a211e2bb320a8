"""SVG of a worker, shown as an image: there no script runs and nothing is loaded, in any front end.

As ``image/svg+xml`` it would do in JupyterLab, but other front ends and exported pages put it
into the page itself. What is left to check is how much work it makes.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final
from xml.parsers import expat

from ..resources import MIB, format_bytes
from .raster import RASTER_TYPES, raster_refusal

MAX_SVG_BYTES: Final = 4 * MIB
MAX_DEPTH: Final = 200
MAX_ELEMENTS: Final = 200_000
MAX_DRAWN: Final = 1_000_000  # elements once every reference has been followed
MAX_FILTERS: Final = 50
_REFERENCE: Final = re.compile(r"url\(\s*['\"]?#([^)'\"\s]+)")
_DATA_IMAGE: Final = re.compile(r"\s*data:(image/[a-z+]+);base64,")
_DECLARATION: Final = re.compile(r"\A\s*<\?xml[^>]*\?>")
_NAMESPACE: Final = "http://www.w3.org/2000/svg"


class _Refused(Exception):
    """Why the drawing is not shown."""


class _Survey:
    """Counts what a drawing makes a browser draw. References multiply: ten levels of ten are
    ten thousand million."""

    def __init__(self) -> None:
        self.elements = 0
        self._filters = 0
        self._has_root = False
        self._open: list[int] = []
        self._by_id: dict[str, int] = {}
        self._parent: list[int] = []
        self._refers: list[list[str]] = []

    def doctype(self, _name: str, _system: object, _public: object, declares: int) -> None:
        if declares:
            raise _Refused("it declares entities, which can multiply text")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        local = name.rpartition(":")[2].lower()
        if not self._has_root and local != "svg":
            raise _Refused("its bytes are not that kind of image")
        self._has_root = True
        number = self.elements
        self.elements += 1
        if self.elements > MAX_ELEMENTS or len(self._open) >= MAX_DEPTH:
            raise _Refused("it has too many elements")
        if local.startswith("fe") or local == "filter":
            self._filters += 1
            if self._filters > MAX_FILTERS:
                raise _Refused("it has too many filters")
        refers = []
        for key, value in attributes.items():
            bare = key.rpartition(":")[2].lower()
            if bare == "id":
                self._by_id.setdefault(value, number)
            elif bare == "href":
                refers += self._followed(local, value)
            else:
                refers += _REFERENCE.findall(value)
        self._parent.append(self._open[-1] if self._open else -1)
        self._refers.append(refers)
        self._open.append(number)

    def end(self, _name: str) -> None:
        self._open.pop()

    @staticmethod
    def _followed(element: str, address: str) -> list[str]:
        if address.startswith("#"):
            return [address[1:]]
        if element not in ("image", "feimage"):
            return []  # an image loads nothing from elsewhere
        picture = _DATA_IMAGE.match(address)
        if picture is None:
            return []
        if picture[1] not in RASTER_TYPES:
            raise _Refused(f"it holds {picture[1][:40]}")
        try:
            data = base64.b64decode(address[picture.end() :])
        except binascii.Error:
            raise _Refused("a picture in it is broken") from None
        refusal = raster_refusal(picture[1], data)
        if refusal:
            raise _Refused(f"a picture in it is refused: {refusal}")
        return []

    def drawn(self) -> int:
        """Return how many elements are drawn, or ``MAX_DRAWN`` + 1 for more than that."""
        inside: list[list[int]] = [[] for _ in range(self.elements)]
        for number, parent in enumerate(self._parent):
            if parent >= 0:
                inside[parent].append(number)
        size = [0] * self.elements  # 0: not begun, -1: begun
        waiting = [0] if self.elements else []
        while waiting:
            number = waiting[-1]
            targets = [self._by_id[name] for name in self._refers[number] if name in self._by_id]
            needed = [*inside[number], *targets]
            if size[number] == 0:
                size[number] = -1
                if any(size[other] < 0 for other in targets):
                    raise _Refused("it refers to itself")
                waiting += [other for other in needed if size[other] == 0]
                continue
            waiting.pop()
            if size[number] == -1:
                size[number] = min(1 + sum(max(size[other], 0) for other in needed), MAX_DRAWN + 1)
        return size[0] if size else 0


def svg_refusal(text: str) -> str:
    """Return why a drawing cannot be shown, as the end of a sentence; empty when it can."""
    data = text.encode("utf-8", "replace")
    if len(data) > MAX_SVG_BYTES:
        return f"it is {format_bytes(len(data))}, at most {format_bytes(MAX_SVG_BYTES)} is shown"
    survey = _Survey()
    parser = expat.ParserCreate("utf-8")
    parser.StartDoctypeDeclHandler = survey.doctype
    parser.StartElementHandler = survey.start
    parser.EndElementHandler = survey.end
    try:
        parser.Parse(data, True)
        if survey.drawn() > MAX_DRAWN:
            return "its references draw too much"
    except _Refused as exc:
        return str(exc)
    except expat.ExpatError:
        return "its bytes are not that kind of image"
    return ""


def svg_as_image(text: str, size: dict[str, int]) -> str:
    """Return the HTML of an image element that shows a checked drawing.

    Args:
        size: ``width`` and ``height`` in pixels, where they are known.
    """
    # Without its namespace an image element shows nothing; a declared encoding is not the one here.
    text = _DECLARATION.sub("", text)
    if _NAMESPACE not in text:
        text = re.sub(r"<svg\b", f'<svg xmlns="{_NAMESPACE}"', text, count=1)
    data = base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")
    shown = "".join(f' {key}="{value}"' for key, value in size.items())
    return f'<img alt="drawing"{shown} src="data:image/svg+xml;base64,{data}">'
