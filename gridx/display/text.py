"""Terminal text of a worker: colours stay, everything else that a terminal would obey goes.

Kept: newline, tab, carriage return and SGR sequences (colour and weight). Removed: OSC, DCS, PM,
APC and SOS strings, other escape sequences, C0 and C1 controls, in their 7-bit and 8-bit forms.
Bidirectional overrides, which can make text read differently from what it says, are marked.

Source: ECMA-48 section 8.3; Boucher and Anderson, "Trojan Source", 2021, for the overrides.
"""

from __future__ import annotations

import re

_STRING_LIMIT = 4096  # longest control string that is looked for; a longer one is shown as text

_CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)(?P<parameters>[0-?]*)(?P<between>[ -/]*)(?P<final>[@-~])"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])"
    rf"[^\x07\x18\x1a\x1b\x90\x98\x9b-\x9f]{{0,{_STRING_LIMIT}}}(?:[\x07\x18\x1a\x9c]|\x1b\\)"
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
    r"|(?P<bidi>[\u202a-\u202e\u2066-\u2069])"
)
# A control string holds no introducer of another one, so that every search is linear.
# The beginning of a sequence that the next piece may complete.
_UNFINISHED = re.compile(
    r"(?:"
    r"(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,8}"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])"
    rf"[^\x07\x18\x1a\x1b\x90\x98\x9b-\x9f]{{0,{_STRING_LIMIT}}}\x1b?"
    r"|\x1b[ -/]{0,8}"
    r")\Z"
)
_SGR_PARAMETERS = re.compile(r"[0-9;:]{0,64}")
RESET = "\x1b[0m"


def _replacement(match: re.Match[str]) -> str:
    bidi = match["bidi"]
    if bidi:
        return f"<U+{ord(bidi):04X}>"
    parameters = match["parameters"]
    is_sgr = match["final"] == "m" and not match["between"]
    if is_sgr and _SGR_PARAMETERS.fullmatch(parameters):
        return f"\x1b[{parameters}m"
    return ""


def clean_text(text: str) -> str:
    """Return ``text`` with nothing in it that a terminal or a page would obey but colours."""
    return _CONTROL.sub(_replacement, text)


def clean_line(text: str, limit_chars: int = 500) -> str:
    """Return ``text`` for a place that has one line: no colours, no line breaks, cut at the limit."""
    text = clean_text(text[: 4 * limit_chars])
    text = " ".join(re.sub(r"\x1b\[[0-9;:]*m", "", text).split())
    return text if len(text) <= limit_chars else text[: limit_chars - 1] + "…"


class TextCleaner:
    """Cleans a stream piece by piece: a sequence that is cut between two pieces is still found."""

    def __init__(self) -> None:
        self._tail = ""
        self._coloured = False

    def feed(self, piece: str) -> str:
        """Return what of the stream can be shown now."""
        text = self._tail + piece
        self._tail = ""
        cut = _UNFINISHED.search(text, max(0, len(text) - _STRING_LIMIT - 3))
        if cut is not None:
            text, self._tail = text[: cut.start()], cut[0]
        cleaned = clean_text(text)
        self._note_colour(cleaned)
        return cleaned

    def finish(self) -> str:
        """Return the rest of the stream, with the colours switched off again."""
        rest = clean_text(self._tail)
        self._tail = ""
        self._note_colour(rest)
        reset = RESET if self._coloured else ""
        self._coloured = False
        return rest + reset

    def _note_colour(self, cleaned: str) -> None:
        at = cleaned.rfind("\x1b[")
        if at >= 0:
            self._coloured = not re.match(r"\x1b\[0*m", cleaned[at:])
