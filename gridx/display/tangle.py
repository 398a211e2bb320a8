"""How tangled HTML is, before a parser meets it.

The rules for mending broken HTML make a parser's work grow with the square of the depth, and a
few unclosed elements multiply into very many. HTML whose elements close in order has neither;
of other HTML only a little is parsed.
"""

from __future__ import annotations

import re
from typing import Final

MAX_DEPTH: Final = 200
MAX_UNTIDY_TAGS: Final = 400
MAX_UNTIDY_CHARS: Final = 200_000
MAX_TAGS: Final = 400_000
_MAX_ATTRIBUTES: Final = 100

_TAG: Final = re.compile(
    r"<(?P<end>/?)(?P<name>[a-zA-Z][a-zA-Z0-9-]*+)"
    r"(?P<attributes>(?:[\s/]++[^\s\"'<>/=]++(?:\s*+=\s*+(?:\"[^\"]*+\"|'[^']*+'|[^\s\"'=<>`]++))?+)*+)"
    r"\s*+/?+\s*+>"
)
_MARKUP: Final = re.compile(r"<(?=[a-zA-Z/!?])")
_VOID: Final = frozenset(
    [
        "area",
        "base",
        "br",
        "col",
        "embed",
        "hr",
        "img",
        "input",
        "link",
        "meta",
        "param",
        "source",
        "track",
        "wbr",
    ]
)
# An opening tag that closes those before it, as browsers do: rows and items are often left open.
_CELLS: Final = frozenset({"td", "th"})
_ROWS: Final = _CELLS | {"tr"}
_BODIES: Final = _ROWS | {"thead", "tbody", "tfoot"}
_CLOSED_BY: Final = {
    "p": frozenset({"p"}),
    "li": frozenset({"li"}),
    "dt": frozenset({"dt", "dd"}),
    "dd": frozenset({"dt", "dd"}),
    **dict.fromkeys(("td", "th"), _CELLS),
    "tr": _ROWS,
    **dict.fromkeys(("thead", "tbody", "tfoot"), _BODIES),
}
_MAY_STAY_OPEN: Final = frozenset(_CLOSED_BY)
_OTHER_RULES: Final = frozenset(  # inside these the parser closes by other rules
    [
        "svg",
        "math",
        "template",
        "select",
        "frameset",
        "plaintext",
        "xmp",
        "noembed",
        "noframes",
        "noscript",
        "textarea",
        "title",
    ]
)
_NEVER_SHOWN: Final = ("script", "style", "svg")


def without_the_unseen(text: str) -> str:
    """Return HTML without comments, declarations, scripts, style sheets and drawings in it.

    None of them would be shown. What this leaves, a wrong guess included, is still cleaned.
    """
    text = _cut(text, re.compile("<!--"), re.compile("-->"))
    text = _cut(text, re.compile(r"<[!?]"), re.compile(">"))
    for name in _NEVER_SHOWN:
        if f"<{name}" in text.lower():
            opening = re.compile(rf"<{name}\b", re.IGNORECASE)
            text = _cut(text, opening, re.compile(rf"</{name}\s*>", re.IGNORECASE))
    return text


def _cut(text: str, begin: re.Pattern[str], end: re.Pattern[str]) -> str:
    kept, at = [], 0
    while found := begin.search(text, at):
        closing = end.search(text, found.end())
        if closing is None:
            break
        kept.append(text[at : found.start()])
        at = closing.end()
    return "".join([*kept, text[at:]]) if at else text


def tangle_refusal(text: str) -> str:
    """Return why HTML is not parsed, as the end of a sentence; empty when it can be."""
    tags, tidy = 0, True
    stack: list[str] = []
    at = 0
    while markup := _MARKUP.search(text, at):
        tags += 1
        tag = _TAG.match(text, markup.start())
        if tag is None:
            tidy, at = False, markup.end()
        else:
            at = tag.end()
            attributes = tag["attributes"]
            if len(attributes) > 200 and attributes.count("=") > _MAX_ATTRIBUTES:
                return "an element of it has too many attributes"
            name = tag["name"].lower()
            tidy &= name not in _OTHER_RULES
            if tag["end"]:
                tidy &= _close(stack, name)
            elif name not in _VOID:
                _open(stack, name)
                if len(stack) > MAX_DEPTH:
                    return "its elements are nested too deeply"
        if not tidy and (tags > MAX_UNTIDY_TAGS or len(text) > MAX_UNTIDY_CHARS):
            return "its elements do not close in order, and there are too many of them"
        if tags > MAX_TAGS:
            return f"it has more than {MAX_TAGS:,} elements"
    return ""


def _open(stack: list[str], name: str) -> None:
    for _ in range(3):  # a cell, its row, their body
        if stack and stack[-1] in _CLOSED_BY.get(name, ()):
            stack.pop()
    stack.append(name)


def _close(stack: list[str], name: str) -> bool:
    """Take ``name`` off the stack; return whether it was its turn."""
    if name in _VOID:
        return True
    while stack and stack[-1] != name and stack[-1] in _MAY_STAY_OPEN:
        stack.pop()
    if not stack or stack[-1] != name:
        return False
    stack.pop()
    return True
