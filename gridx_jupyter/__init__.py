"""Grid-X in the notebook: ``%load_ext gridx_jupyter`` gives ``%%gridx`` and ``%gridx``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from .magics import Installed

_installed: Installed | None = None


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics. Nothing connects before the first of them needs a coordinator."""
    from .magics import install

    global _installed
    if _installed is None:
        _installed = install(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Take the magics out again and close the connection; jobs go on."""
    global _installed
    if _installed is not None:
        _installed.remove(shell)
        _installed = None
