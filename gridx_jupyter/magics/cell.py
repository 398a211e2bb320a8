"""``%%gridx``: a cell that runs on somebody else's machine as if it had run here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from IPython.core.magic import Magics, cell_magic, magics_class, no_var_expand

from gridx.errors import GridXError

from .failures import shown_as_name, shown_as_sentence
from .foreground import Foreground
from .options import CellOptions, usage_error
from .order import Order
from .prepare import dry_run_text, prepare
from .render import StatusLine
from .result import CellResult, Watched
from .screen import Screen
from .send import send
from .visible_cell import VisibleCell, visible_cell

if TYPE_CHECKING:
    from .notebook import Notebook


@magics_class
class CellMagic(Magics):
    """``%%gridx``."""

    def __init__(self, notebook: Notebook) -> None:
        super().__init__(shell=notebook.shell)
        self._notebook = notebook

    @no_var_expand
    @cell_magic
    def gridx(self, line: str, cell: str) -> CellResult | None:
        """Run this cell on a worker of the grid: %%gridx [options]

        Variables that the cell reads travel there, what it prints and draws appears
        here while it runs, what it binds comes home, and the stop button stops it.

            %%gridx
            total = sum(values)            # values travels there, total comes home

            %%gridx --cpus 4 --mem 8G --timeout 30m
            model = fit(table)

            %%gridx --bg --as run          # go on here; run.wait() shows its output
            result = simulate(1_000_000)

        --session NAME keeps the variables there for later cells, --files and --fetch
        move files, --cache reuses a result, --local runs the cell here.

        %gridx help cell lists every option; --dry-run shows what would be sent.
        %gridx on makes every following cell remote.
        """
        notebook = self._notebook
        try:
            options = notebook.options(line)
            if not cell.strip():
                raise usage_error("The cell has no code below its first line.")
            return run_cell(notebook, line, cell, options, visible_cell(notebook.shell, line, cell))
        except KeyboardInterrupt as exc:
            shown_as_name(exc)
            raise
        except GridXError as exc:
            error = exc if hasattr(exc, "_render_traceback_") else shown_as_sentence(exc)
        raise error from None


def run_cell(
    notebook: Notebook, line: str, body: str, options: CellOptions, visible: VisibleCell
) -> CellResult | None:
    """Run one cell as its options say; return the result of one that goes on by itself.

    Raises:
        GridXError: it was refused, or ended badly.
        Exception: what the cell raised there.
    """
    order = prepare(notebook, line, body, options, visible)
    if options.dry_run:
        print(dry_run_text(order, notebook.connection))
        return None
    screen = Screen(notebook.shell)
    status = StatusLine(screen, quiet=options.quiet)
    try:
        order, job = send(order, notebook, status)
    except KeyboardInterrupt:
        if status.display_id is not None:
            status.finish("interrupted before it began; nothing runs")
        raise
    return watch(notebook, order, job, screen, status)


def watch(
    notebook: Notebook, order: Order, job: Watched, screen: Screen, status: StatusLine
) -> CellResult | None:
    """Show a job that runs: until its end, or from now on in the background."""
    order = order.without_payload()
    if order.options.background:
        from .background import Background

        background = Background(order, job, notebook, screen, status)
        notebook.backgrounds.append(background)
        _store(notebook, order, background.result)
        background.start()
        return None if order.options.store_as else background.result
    foreground = Foreground(order, job, notebook, screen, status)
    _store(notebook, order, foreground.result)
    foreground.run()
    return None


def _store(notebook: Notebook, order: Order, result: CellResult) -> None:
    if order.options.store_as is not None:
        notebook.shell.user_ns[order.options.store_as] = result
