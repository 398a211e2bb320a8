"""MIME bundles of a worker, rebuilt from an allow-list.

A page trusts what its own kernel shows: HTML, JavaScript, SVG, widgets and plots with scripts
would run there with the user's rights. So each type that may be shown has its treatment here,
every other one is left out by name, and nothing passes as it came but checked pictures.

| type | treatment |
| --- | --- |
| ``text/plain`` | without control sequences but colours |
| ``text/html`` | cleaned (hypertext); on the user's word in a sandboxed frame (frame) |
| ``text/markdown`` | made HTML, then cleaned (marked_up) |
| ``text/latex`` | passes when no command of it reaches beyond the formula (formula) |
| ``image/png``, ``jpeg``, ``gif``, ``webp`` | passes when its bytes and size are right (raster) |
| ``image/svg+xml`` | shown by an image element, where it has no script (vector) |
| ``application/json`` | parsed, bounded, built anew (tree) |
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from ..resources import MIB, format_bytes
from . import frame, hypertext
from .formula import formula_refusal, quiet_formula
from .hypertext import clean_html
from .marked_up import MAX_MARKDOWN_CHARS, markdown_to_html
from .raster import RASTER_TYPES, raster_refusal
from .text import clean_line, clean_text
from .tree import TreeRefused, safe_tree
from .vector import svg_as_image, svg_refusal

Show = Literal["clean", "interactive", "text"]

MAX_TEXT_CHARS: Final = MIB
MAX_SHOWN_PX: Final = 10_000  # for width and height in the metadata
_MAX_NOTES: Final = 10
_NAME_CHARS: Final = 200  # a shorter text is the name of an object, as a rule
_IN_A_FRAME: Final = "--show interactive shows it in a sandboxed frame"
_KINDS: Final = {
    "application/javascript": "a script of a worker never runs in the page",
    "text/javascript": "a script of a worker never runs in the page",
    "application/vnd.jupyter.widget-view+json": "a widget needs a kernel, and the cell's is gone",
    "application/vnd.jupyter.widget-state+json": "a widget needs a kernel, and the cell's is gone",
    "application/pdf": "save it with --fetch and open it from there",
}
_PLOTS: Final = ("plotly", "vega", "bokeh", "holoviews")


class SafeBundle(NamedTuple):
    """What of a bundle can be shown: ``data`` and ``metadata`` in Jupyter's form.

    ``left_out`` names the types that were dropped; ``notes`` says so in one sentence each, with
    the reason and, where there is one, the way to see it.
    """

    data: dict[str, Any]
    metadata: dict[str, Any]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def safe_bundle(
    data: Mapping[str, str],
    binary: Mapping[str, bytes],
    metadata: Mapping[str, Any],
    *,
    show: Show = "clean",
    caption: str = "",
) -> SafeBundle:
    """Return what of a worker's bundle can be shown.

    Args:
        data: text by MIME type, as it came; JSON as its text. An empty text names a type that
            the sandbox did not send.
        binary: bytes by MIME type, as they came.
        metadata: as it came; of it only integer sizes of pictures are kept.
        show: ``interactive`` puts HTML that acts into a sandboxed frame: only on the user's
            word. ``text`` shows plain text alone.
        caption: whose output it is, for the line above a frame.
    """
    made = _Rebuilt(data, binary, metadata, show, caption)
    for mime in data:
        made.add_text(mime)
    for mime in binary:
        made.add_binary(mime)
    made.settle()
    return SafeBundle(
        made.shown, made.sizes, tuple(made.left_out[:_MAX_NOTES]), tuple(made.notes[:_MAX_NOTES])
    )


class _Rebuilt:
    """A bundle while it is built anew."""

    def __init__(
        self,
        data: Mapping[str, str],
        binary: Mapping[str, bytes],
        metadata: Mapping[str, Any],
        show: Show,
        caption: str,
    ) -> None:
        self._data, self._binary, self._metadata = data, binary, metadata
        self._show, self._caption = show, caption
        self.shown: dict[str, Any] = {}
        self.sizes: dict[str, Any] = {}
        self.left_out: list[str] = []
        self.notes: list[str] = []
        self._is_framed = False
        self._unsent_plots: list[str] = []
        self._instead = ""  # source that is shown where the rest says nothing

    def add_text(self, mime: str) -> None:
        text = self._data[mime]
        if mime == "text/plain":
            self._plain(text)
        elif self._show == "text" and mime in TEXT_TYPES:
            pass  # asked for
        elif mime == "text/html":
            self._html(text)
        elif mime == "text/markdown":
            self._markdown(text)
        elif mime == "text/latex":
            self._formula(text)
        elif mime == "image/svg+xml":
            self._drawing(text)
        elif mime == "application/json":
            self._tree(text)
        else:
            self._unknown(mime)

    def add_binary(self, mime: str) -> None:
        if mime not in RASTER_TYPES:
            self._unknown(mime)
            return
        if self._show == "text":
            return
        raw = self._binary[mime]
        refusal = raster_refusal(mime, raw)
        if refusal:
            self._leave_out(mime, refusal)
            return
        self.shown[mime] = base64.b64encode(raw).decode("ascii")
        size = self._size(mime)
        if size:
            self.sizes[mime] = size

    def settle(self) -> None:
        """Decide what depends on the whole bundle.

        A source that could not be rendered is shown as it is, and plots that only a script could
        draw are named, unless their HTML is in a frame.
        """
        if self._instead and len(self.shown.get("text/plain", "")) < _NAME_CHARS:
            self._plain(self._instead)
        if not self._is_framed:
            for mime in self._unsent_plots:
                self._leave_out(mime, f"a plot of scripts; as HTML {_IN_A_FRAME}")

    def _plain(self, text: str) -> None:
        rest = len(text) - MAX_TEXT_CHARS
        shown = clean_text(text[:MAX_TEXT_CHARS])
        self.shown["text/plain"] = f"{shown}… [{rest:,} more characters]" if rest > 0 else shown

    def _html(self, text: str) -> None:
        mime = "text/html"
        active = hypertext.is_active(text[: frame.MAX_FRAME_CHARS])
        dressed = hypertext.has_style_sheet(text[: frame.MAX_FRAME_CHARS])
        if self._show == "interactive" and (active or dressed):
            if len(text) <= frame.MAX_FRAME_CHARS:
                height_px = self._size(mime).get("height")
                self.shown[mime] = frame.sandboxed_frame(text, self._caption, height_px)
                self._is_framed = True
            else:
                self._leave_out(mime, f"it is {format_bytes(len(text))}, too large for a frame")
            return
        if hypertext.needs_style_sheet(text) and self._data.get("text/plain"):
            self._leave_out(mime, f"it needs its own style sheet; {_IN_A_FRAME}")
            return
        cleaned = clean_html(text)
        if cleaned.refusal:
            self._leave_out(mime, f"{cleaned.refusal}; {_IN_A_FRAME}")
        elif cleaned.html:
            self.shown[mime] = cleaned.html
        if active:
            self._note(f"{clean_line(active, 30)} in {mime} left out; {_IN_A_FRAME}")
        elif dressed:
            self._note(f"the style sheet in {mime} left out; {_IN_A_FRAME}")
        elif cleaned.dropped_pictures:
            self._note(f"pictures in {mime} that lie elsewhere left out: loading them tells of you")

    def _markdown(self, text: str) -> None:
        if self._data.get("text/html"):
            return  # a page would show that one
        if len(text) > MAX_MARKDOWN_CHARS:
            self._instead = text
            return
        cleaned = markdown_to_html(text)
        if cleaned.html:
            self.shown["text/html"] = cleaned.html
        else:
            self._instead = text
        active = hypertext.is_active(text)
        if active:
            self._note(f"{clean_line(active, 30)} in text/markdown left out")

    def _formula(self, text: str) -> None:
        refusal = formula_refusal(text)
        if refusal:
            self._leave_out("text/latex", refusal)
            self._instead = text
        else:
            self.shown["text/latex"] = quiet_formula(clean_text(text))

    def _drawing(self, text: str) -> None:
        mime = "image/svg+xml"
        refusal = svg_refusal(text) if text else "it was not sent"
        if refusal:
            self._leave_out(mime, refusal)
        elif not self._data.get("text/html"):
            self.shown["text/html"] = svg_as_image(text, self._size(mime))

    def _tree(self, text: str) -> None:
        try:
            self.shown["application/json"] = safe_tree(text)
        except TreeRefused as exc:
            self._leave_out("application/json", str(exc))

    def _unknown(self, mime: str) -> None:
        name = clean_line(mime, 80)
        if any(plot in mime for plot in _PLOTS):
            self._unsent_plots.append(name)
        else:
            self._leave_out(name, _KINDS.get(mime, "not a type that a worker may show"))

    def _leave_out(self, mime: str, reason: str) -> None:
        self.left_out.append(mime)
        self._note(f"{mime} left out: {reason}")

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _size(self, mime: str) -> dict[str, int]:
        """Return width and height of the worker's metadata, and nothing else of it."""
        own = self._metadata.get(mime)
        source = own if isinstance(own, dict) else {}
        return {
            key: value
            for key in ("width", "height")
            if type(value := source.get(key)) is int and 0 < value <= MAX_SHOWN_PX
        }


TEXT_TYPES: Final = (
    "text/plain",
    "text/html",
    "text/markdown",
    "text/latex",
    "image/svg+xml",
    "application/json",
)
