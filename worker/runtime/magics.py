"""Magics that make no sense in a sandbox: each says so, and what to do instead.

Everything else is IPython's own and works as in a kernel. There is no history, no editor, no
terminal and no network in a sandbox; what needs one of them would fail late, or silently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from IPython.core.error import UsageError

if TYPE_CHECKING:
    from .shell import CellShell

_NO_HISTORY: Final = (
    "%{name} needs the history of your notebook, which stays with you: run it in a cell of its "
    "own, without %%gridx."
)
_NO_EDITOR: Final = "%{name} needs your editor: run it in a cell of its own, without %%gridx."
_NO_DEBUGGER: Final = (
    "%{name} needs somebody to answer it, and nobody can here: print what you need, or bring the "
    "values home and debug them in a cell without %%gridx."
)
_NO_INSTALLER: Final = (
    "%{name} cannot install here: a sandbox has no network and cannot be written to. "
    "`%gridx workers` shows the images, and what is in them."
)
_NO_WINDOW: Final = "%{name} needs a screen, and there is none here: use %matplotlib inline."

_REFUSED: Final[dict[str, str]] = {
    **dict.fromkeys(
        ["history", "hist", "recall", "rep", "rerun", "save", "notebook", "macro", "pastebin"],
        _NO_HISTORY,
    ),
    **dict.fromkeys(["logstart", "logon", "logoff", "logstop", "logstate"], _NO_HISTORY),
    **dict.fromkeys(["edit", "ed", "load", "loadpy"], _NO_EDITOR),
    **dict.fromkeys(["debug", "pdb"], _NO_DEBUGGER),
    **dict.fromkeys(["pip", "conda", "mamba", "micromamba", "uv"], _NO_INSTALLER),
    "gui": _NO_WINDOW,
}
_INLINE: Final = (None, "auto", "inline", "agg")


def refuse_magics(shell: CellShell) -> None:
    """Put a sentence in the place of every magic that cannot work."""
    for name, sentence in _REFUSED.items():
        shell.magics_manager.register_function(_refusal(name, sentence), "line", name)


def _refusal(name: str, sentence: str) -> Callable[[str], None]:
    def refuse(line: str) -> None:
        raise UsageError(sentence.format(name=name))

    refuse.__doc__ = sentence.format(name=name)
    return refuse


def inline_backend(gui: Any) -> str:
    """Return the backend to use for ``%matplotlib gui``; any other than inline is only told."""
    if gui not in _INLINE:
        import sys

        print(
            f"%matplotlib {gui} needs a screen or a widget, and there is none here: figures are "
            "shown inline.",
            file=sys.stderr,
        )
    return "inline"
