"""Where the body of a magic cell stands in the cell that the reader sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


class VisibleCell(NamedTuple):
    """The cell as typed, under a file name that tracebacks know."""

    file: str
    line_offset: int  # lines of the visible cell before the first line of the body
    cell_id: str
    text: str = ""


def visible_cell(shell: InteractiveShell, line: str, body: str) -> VisibleCell:
    """Register the visible text of the cell that runs now, and say where its body begins.

    IPython compiles a magic cell as one call of the magic, so that it knows none of its lines;
    this gives it the text as it was typed, under the name that it has for that text.
    """
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    text = str(parent.get("content", {}).get("code", ""))
    if not text.rstrip().endswith(body.rstrip()):
        history = getattr(shell.history_manager, "input_hist_raw", None) or [""]
        text = str(history[-1])
    at = text.rfind(body.rstrip()) if body.strip() else -1
    if at < 0 or not text.rstrip().endswith(body.rstrip()):
        text = f"%%gridx {line}".rstrip() + f"\n{body}"
        at = text.index("\n") + 1
    file: str = shell.compile.cache(text, _number_of(shell, text), raw_code=text)
    cell_id = parent.get("metadata", {}).get("cellId", "")
    return VisibleCell(file, text.count("\n", 0, at), str(cell_id), text)


def visible_again(shell: InteractiveShell, text: str, line_offset: int) -> VisibleCell:
    """Register the text of a cell of an earlier kernel, as the journal has kept it."""
    file: str = shell.compile.cache(text, _number_of(shell, text), raw_code=text)
    return VisibleCell(file, line_offset, "", text)


def _number_of(shell: InteractiveShell, text: str) -> int:
    """Return the number in the cell's prompt, which IPython 9 has counted on by now."""
    history = getattr(shell.history_manager, "input_hist_raw", None) or [""]
    if str(history[-1]).rstrip() == text.rstrip():
        return len(history) - 1
    return int(shell.execution_count)
