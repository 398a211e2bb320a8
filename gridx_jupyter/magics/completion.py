"""Completion after ``%gridx`` and ``%%gridx``: subcommands, options, and names of variables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .line import COMMANDS
from .options import option_names

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_TAKES_VARIABLES = ("--needs", "--without", "--out", "-o")


def complete(line: str, word: str, variables: list[str]) -> list[str]:
    """Return what may follow in ``line``, the text up to the cursor, for its last ``word``."""
    before = line[: len(line) - len(word)].split()
    if line.startswith("%gridx"):
        return sorted(COMMANDS) if len(before) <= 1 else []
    if before and before[-1] in _TAKES_VARIABLES:
        return variables
    return option_names()


def install_completion(shell: InteractiveShell) -> None:
    """Teach IPython's completer the two magics."""
    set_hook: Any = shell.set_hook

    def completer(self: object, event: Any) -> list[str]:
        names = [name for name in shell.user_ns if not name.startswith("_")]
        return complete(event.line, event.symbol, names)

    for magic in ("%gridx", "%%gridx"):
        set_hook("complete_command", completer, str_key=magic)
