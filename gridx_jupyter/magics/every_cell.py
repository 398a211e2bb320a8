"""``%gridx on``: every following cell is remote, and stays plain Python for the editor.

An input transformer puts the call of the magic before the cell's text, so that lines, history
and the editor see what was typed. What belongs to this kernel stays here: lines that load
extensions or speak to us, and cells that say so. Everything else is remote, a magic that this
kernel does not know included: nothing is run here by mistake.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from .options import line_over, usage_error

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

# Of these a line is about this kernel, its front end or this machine's files.
LOCAL_MAGICS: Final = frozenset(
    [
        "gridx",
        "load_ext",
        "reload_ext",
        "unload_ext",
        "config",
        "matplotlib",
        "load",
        "loadpy",
        "save",
        "recall",
        "history",
        "hist",
        "notebook",
        "logstart",
        "logstop",
        "logon",
        "logoff",
        "logstate",
        "autoawait",
        "gui",
        "pylab",
        "colors",
        "quickref",
        "lsmagic",
        "magic",
        "alias",
        "rehashx",
        "who",
        "who_ls",
        "whos",
        "reset",
        "reset_selective",
        "xdel",
        "autoreload",
        "aimport",
        "connect_info",
        "qtconsole",
    ]
)
_MAGIC_LINE: Final = re.compile(r"\s*%(?!%)(\w+)")
_CELL_MAGIC: Final = re.compile(r"%%(\w+)")
_COMMENT: Final = re.compile(r"#\s*gridx:\s*(.*)")


class EveryCell:
    """Makes cells remote while it is switched on."""

    # Tells IPython not to ask it whether a half-typed cell is complete.
    has_side_effects: Final = True

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._line = ""
        self._is_on = False
        self._is_running = False  # a cell runs: what it compiles itself is no cell

    def switch_on(self, line: str) -> None:
        """Make every following cell remote, with the options ``line``."""
        self._line = line
        if not self._is_on:
            self._is_on = True
            self._is_running = True  # the cell that says so is here
            self._shell.input_transformers_cleanup.insert(0, self)
            self._shell.events.register("pre_run_cell", self._begin)
            self._shell.events.register("post_run_cell", self._end)

    def switch_off(self) -> None:
        """Let cells run here again."""
        if self._is_on:
            self._is_on = False
            self._shell.input_transformers_cleanup.remove(self)
            self._shell.events.unregister("pre_run_cell", self._begin)
            self._shell.events.unregister("post_run_cell", self._end)

    def _begin(self, *_event: object) -> None:
        self._is_running = True

    def _end(self, *_event: object) -> None:
        self._is_running = False

    def __call__(self, lines: list[str]) -> list[str]:
        """Return the lines of a cell as they are run."""
        if self._is_running or not self._is_a_cell():
            return lines
        return remote_lines(lines, self._line)

    def _is_a_cell(self) -> bool:
        """Whether a person runs this: editors look at variables with code of their own."""
        shell = self._shell
        parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
        asked = parent.get("content", {})
        return not asked.get("silent", False) and bool(asked.get("store_history", True))


def remote_lines(lines: list[str], options: str) -> list[str]:
    """Return the lines of a cell with everything in it made remote that does not stay here.

    >>> remote_lines(["x = 1\\n"], "--cpus 2")
    ["get_ipython().run_cell_magic('gridx', '--cpus 2', 'x = 1\\\\n')\\n"]
    """
    first = next((n for n, line in enumerate(lines) if line.strip()), None)
    if first is None:
        return lines
    magic = _CELL_MAGIC.match(lines[first])
    if magic is not None and magic[1] == "local":
        return [*lines[:first], "#\n", *lines[first + 1 :]]
    if magic is not None and magic[1] == "gridx":
        return lines
    comment = _COMMENT.match(lines[first].strip())
    if comment is not None:
        if comment[1].strip() == "local":
            return lines
        options = line_over(comment[1].strip(), options)
    begin = first
    while begin < len(lines) and (not lines[begin].strip() or _stays_here(lines[begin])):
        begin += 1
    rest = lines[begin:]
    if not any(line.strip() for line in rest):
        return lines
    if any(_is_ours(line) for line in rest):
        raise usage_error("%gridx stands below code: put it first, or into a cell of its own.")
    call = f"get_ipython().run_cell_magic('gridx', {options!r}, {''.join(rest)!r})\n"
    return [*lines[:begin], call]


def _stays_here(line: str) -> bool:
    magic = _MAGIC_LINE.match(line)
    if magic is not None:
        return magic[1] in LOCAL_MAGICS
    text = line.strip()
    return text.startswith("?") or (text.endswith("?") and not text.startswith("#"))


def _is_ours(line: str) -> bool:
    magic = _MAGIC_LINE.match(line)
    return magic is not None and magic[1] == "gridx"
