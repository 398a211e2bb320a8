"""Text for a terminal: remote words without any control sequence, tables aligned."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from .display.text import clean_line, clean_text

_COLOURS = re.compile(r"\x1b\[[0-9;:]*m")
_CELL_CHARS = 80


def plain_text(text: str) -> str:
    """Return ``text`` without anything that a terminal would obey, colours included.

    >>> plain_text("red \\x1b[31malert\\x1b[0m \\x1b]0;title\\x07\\x00")
    'red alert '
    """
    return _COLOURS.sub("", clean_text(text))


def _columns(text: str) -> int:
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Return an aligned table, one line a row, columns two spaces apart.

    Args:
        head: column titles.
        rows: cells; each is made harmless and put on one line.
        right: indices of the columns that are aligned right (numbers).
    """
    lines = [[clean_line(cell, _CELL_CHARS) for cell in row] for row in (head, *rows)]
    widths = [max(_columns(row[i]) for row in lines) for i in range(len(head))]

    def pad(index: int, cell: str) -> str:
        space = " " * (widths[index] - _columns(cell))
        return space + cell if index in right else cell + space

    return "\n".join(
        "  ".join(pad(i, cell) for i, cell in enumerate(row)).rstrip() for row in lines
    )
