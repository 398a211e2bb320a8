"""What one kernel knows of its remote cells; the two magics share it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .defaults import Defaults, GridX
from .options import CellOptions, parse_cell_options

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ..connection import Connection
    from .background import Background
    from .cache import Cache
    from .every_cell import EveryCell
    from .files import Fetched
    from .journal import Journal
    from .order import Order
    from .prelude import Prelude
    from .result import CellResult
    from .sessions import Sessions


class Notebook:
    """The state of one kernel. Parts that a plain cell does not need are made on first use."""

    def __init__(self, shell: InteractiveShell, connection: Connection) -> None:
        self.shell = shell
        self.connection = connection
        self.config = GridX(parent=shell)
        self.defaults = Defaults(self.config)
        self.backgrounds: list[Background] = []
        self.latest: Order | None = None  # what was captured last, for `%gridx why`
        self.left_behind: dict[str, Order] = {}  # by job, of cells whose end was not awaited
        self.latest_job: str | None = None
        self.notify_after_s: float | None = None  # how long a cell takes that says when it ends
        self.sent_digests: set[str] = set()  # of blobs that the coordinator has by now

    def options(self, line: str) -> CellOptions:
        """Return the options of a cell, its defaults included. Raises UsageError, NotBuilt."""
        return parse_cell_options(line, self.shell.ev, self.defaults.of)

    @cached_property
    def journal(self) -> Journal:
        """The jobs of this notebook on this machine."""
        from .journal import Journal, data_folder, notebook_name

        return Journal(data_folder(), notebook_name(self.shell.user_ns))

    @cached_property
    def prelude(self) -> Prelude:
        """The lines that run first in every remote cell."""
        from .prelude import Prelude

        return Prelude()

    @cached_property
    def fetched(self) -> Fetched:
        """The files that came home."""
        from .files import Fetched

        return Fetched(Path.cwd())

    @cached_property
    def sessions(self) -> Sessions:
        """The open sessions of this kernel."""
        from .sessions import Sessions

        return Sessions(self)

    @cached_property
    def every_cell(self) -> EveryCell:
        """What makes cells remote after `%gridx on`."""
        from .every_cell import EveryCell

        return EveryCell(self.shell)

    def session_names(self) -> list[str]:
        """Return the names of the sessions that were used here."""
        return self.sessions.names() if "sessions" in self.__dict__ else []

    @property
    def has_prelude(self) -> bool:
        """Whether anything runs before a cell."""
        return "prelude" in self.__dict__ and bool(self.prelude.text)

    def cache(self) -> Cache:
        """Return the kept results of who we are."""
        from .cache import Cache
        from .journal import data_folder

        settings = self.connection.settings
        return Cache(data_folder(), settings.url, settings.user)

    def background_of(self, job_id: str) -> Background | None:
        """Return the cell of this kernel that goes on in the background under that id."""
        return next((b for b in self.backgrounds if b.result.job == job_id), None)

    def run_again(self, order: Order) -> CellResult | None:
        """Run the cell of ``order`` with the variables of now, and the options it had."""
        from .cell import run_cell

        return run_cell(self, order.line, order.body, self.options(order.line), order.visible)

    def close(self) -> None:
        """Let cells run here again and close the connection; jobs go on."""
        if "every_cell" in self.__dict__:
            self.every_cell.switch_off()
        self.connection.close()

    def land_ended(self, *_event: object) -> None:
        """Bind the results of background cells that have ended. Called between cells."""
        for background in [b for b in self.backgrounds if b.has_ended]:
            background.land()
            self.backgrounds.remove(background)

    def may_ask(self) -> bool:
        """Whether a question can be put to somebody at the keyboard."""
        import sys

        kernel = getattr(self.shell, "kernel", None)
        if kernel is not None:
            return bool(getattr(kernel, "_allow_stdin", False))
        return sys.stdin.isatty()
