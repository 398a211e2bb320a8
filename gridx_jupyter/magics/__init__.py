"""``%%gridx`` and ``%gridx``: registered together, over one connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..connection import Connection
from .cell import CellMagic
from .line import LineMagic
from .notebook import Notebook

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_BETWEEN_CELLS = ("pre_run_cell", "post_run_cell")


@dataclass
class Installed:
    """What ``install`` has put into a shell."""

    notebook: Notebook

    def remove(self, shell: InteractiveShell) -> None:
        """Take it out again."""
        for event in _BETWEEN_CELLS:
            shell.events.unregister(event, self.notebook.land_ended)
        for kind in ("cell", "line"):
            shell.magics_manager.magics[kind].pop("gridx", None)
        _configurables(shell).remove(self.notebook.config)
        self.notebook.close()


def install(shell: InteractiveShell) -> Installed:
    """Register the magics, the landing of background results, and completion."""
    from .completion import install_completion

    notebook = Notebook(shell, Connection())
    _configurables(shell).append(notebook.config)
    shell.register_magics(CellMagic(notebook))
    shell.register_magics(LineMagic(notebook))
    for event in _BETWEEN_CELLS:
        shell.events.register(event, notebook.land_ended)
    install_completion(notebook)
    return Installed(notebook)


def _configurables(shell: InteractiveShell) -> list[Any]:
    configurables: list[Any] = shell.configurables  # annotated too narrowly by IPython
    return configurables
