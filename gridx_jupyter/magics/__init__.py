"""``%%gridx`` and ``%gridx``: registered together, over one connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..connection import Connection
from .cell import CellMagic
from .line import LineMagic

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_BETWEEN_CELLS = ("pre_run_cell", "post_run_cell")


@dataclass
class Installed:
    """What ``install`` has put into a shell."""

    connection: Connection
    cell: CellMagic

    def remove(self, shell: InteractiveShell) -> None:
        """Take it out again."""
        for event in _BETWEEN_CELLS:
            shell.events.unregister(event, self.cell.land_ended)
        for kind in ("cell", "line"):
            shell.magics_manager.magics[kind].pop("gridx", None)
        self.connection.close()


def install(shell: InteractiveShell) -> Installed:
    """Register the magics, the landing of background results, and completion."""
    from .completion import install_completion

    connection = Connection()
    cell = CellMagic(shell, connection)
    shell.register_magics(cell)
    shell.register_magics(LineMagic(shell, connection))
    for event in _BETWEEN_CELLS:
        shell.events.register(event, cell.land_ended)
    install_completion(shell)
    return Installed(connection, cell)
