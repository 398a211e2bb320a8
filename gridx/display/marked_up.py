"""Markdown of a worker, as HTML: a page would obey the HTML, links and diagrams in its source.

Formulas pass through as they stand, so that the page typesets them.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Final

from .hypertext import Cleaned, clean_html

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_inline import StateInline

MAX_MARKDOWN_CHARS: Final = 50_000
_FORMULA: Final = re.compile(
    r"\$\$(?:[^$\\]|\\.)+?\$\$|\$(?![\s$])(?:[^$\\\n]|\\.)+?(?<!\s)\$(?!\d)", re.DOTALL
)


def _formula(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] != "$":
        return False
    found = _FORMULA.match(state.src, state.pos)
    if found is None:
        return False
    if not silent:
        state.push("text", "", 0).content = found[0]
    state.pos = found.end()
    return True


@functools.cache
def _renderer() -> MarkdownIt:
    from markdown_it import MarkdownIt

    made = MarkdownIt("commonmark", {"html": True, "maxNesting": 30}).enable(
        ["table", "strikethrough"]
    )
    made.inline.ruler.before("escape", "formula", _formula)
    return made


def markdown_to_html(text: str) -> Cleaned:
    """Return the HTML of Markdown, cleaned. At most ``MAX_MARKDOWN_CHARS`` go in.

    Source:
        CommonMark 0.31, with tables and strikethrough of GitHub's.
    """
    return clean_html(_renderer().render(text))
