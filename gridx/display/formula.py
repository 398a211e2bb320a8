r"""TeX of a worker: what a page typesets, without the commands that reach beyond the formula.

``\href`` makes links (with ``javascript:`` too where the typesetter is not in its safe mode, as
in exported pages), ``\style`` and ``\class`` dress the page, and a definition stays in force for
every later formula of the page, the user's own included.
"""

from __future__ import annotations

import re
from typing import Final

MAX_FORMULA_CHARS: Final = 100_000
MAX_DEPTH: Final = 100

_COMMANDS: Final = (
    "href|url|includegraphics|require|input|include"
    "|class|cssId|style|data|bbox|htmlData|htmlClass|htmlId|htmlStyle|mmlToken"
    "|def|gdef|edef|xdef|let|futurelet|global|long|catcode|csname"
    "|(?:re)?newcommand|providecommand|(?:re)?newenvironment|DeclareMathOperator"
    "|DeclarePairedDelimiters?X?P?P?|DeclareRobustCommand|Newextarrow|definecolor|newcolumntype"
    "|label|ref|eqref|toggle|mathtip|texttip|tooltip|action"
)
_REACHES_OUT: Final = re.compile(rf"\\(?:{_COMMANDS})(?![A-Za-z])")
_TAG_LIKE: Final = re.compile(r"<(?=[A-Za-z/!?])")


def formula_refusal(text: str) -> str:
    """Return why a formula cannot be shown, as the end of a sentence; empty when it can."""
    if len(text) > MAX_FORMULA_CHARS:
        return f"it has {len(text):,} characters, at most {MAX_FORMULA_CHARS:,} are shown"
    found = _REACHES_OUT.search(text)
    if found is not None:
        return f"its command {found[0]} reaches beyond the formula"
    depth = deepest = 0
    for char in text:
        depth += (char == "{") - (char == "}")
        deepest = max(deepest, depth)
    return "it is nested too deeply" if deepest > MAX_DEPTH else ""


def quiet_formula(text: str) -> str:
    """Return a formula that stays one where a page is made of it: no ``<`` begins a tag."""
    return _TAG_LIKE.sub("< ", text)


def disarm_formulas(html: str) -> str:
    """Return cleaned HTML in which no formula of its text has a command that reaches out.

    A page typesets formulas in HTML too. The commands stay readable; a joiner that shows
    nothing makes them unknown.
    """
    return _REACHES_OUT.sub(lambda found: f"\\&#8288;{found[0][1:]}", html)
