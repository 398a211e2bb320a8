"""``%%gridx``: a cell that runs on somebody else's machine as if it had run here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from IPython.core.magic import Magics, cell_magic, magics_class, no_var_expand

from gridx.display import clean_line
from gridx.errors import GridXError, JobFailed

from .failures import shown_as_name, shown_as_sentence
from .foreground import Footer, Foreground
from .options import CellOptions, usage_error
from .order import Order
from .prepare import check_environment, dry_run_text, prepare
from .progress import status_line
from .render import StatusLine
from .result import CellResult, Watched
from .screen import Screen
from .send import send, with_files
from .visible_cell import VisibleCell, visible_cell

if TYPE_CHECKING:
    from .notebook import Notebook
    from .sessions import OpenSession

T = TypeVar("T")


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
        move files, --cache reuses a result, --local runs the cell here. --pip NAME
        installs packages for it, --language bash or node runs it as a script.

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
    if options.session is not None and not options.dry_run:
        return _run_in_session(notebook, line, body, options, visible)
    session = None
    if options.dry_run and options.session is not None:
        session, _ = notebook.sessions.find(options.session)
    order = prepare(notebook, line, body, options, visible, session)
    if options.dry_run:
        print(dry_run_text(order, notebook.connection))
        return None
    if not options.local:
        order = check_environment(notebook, order)
    order = with_files(order)
    screen = Screen(notebook.shell)
    status = status_line(screen, options)
    _say_why_it_waits(order, screen)
    if options.local:
        from .local import LocalJob

        local = LocalJob(order)
        return watch(notebook, order, local, screen, status, local.footer)
    if options.cache is not None:
        _run_cached(notebook, order, screen, status)
        return None
    job = _sent(lambda: send(order, notebook, status), status)
    return watch(notebook, order, job, screen, status)


def _say_why_it_waits(order: Order, screen: Screen) -> None:
    if order.notice:
        screen.write("stderr", f"Grid-X: {clean_line(order.notice, 300)}\n")


def _sent(submit: Callable[[], T], status: StatusLine) -> T:
    try:
        return submit()
    except KeyboardInterrupt:
        if status.display_id is not None:
            status.finish("interrupted before it began; nothing runs")
        raise


def _run_in_session(
    notebook: Notebook, line: str, body: str, options: CellOptions, visible: VisibleCell
) -> CellResult | None:
    """Run a cell where the cells of its session have run before."""
    assert options.session is not None
    sessions = notebook.sessions
    held, note = sessions.find(options.session)
    if held is not None:
        options = held.options_of(options)
    order = prepare(notebook, line, body, options, visible, held)
    order = with_files(check_environment(notebook, order))
    screen = Screen(notebook.shell)
    status = status_line(screen, options)
    if note:
        screen.write("stderr", f"Grid-X: {note}\n")
    if held is None:
        _say_why_it_waits(order, screen)
    call = _sent(lambda: sessions.send(order, held, status), status)
    session = sessions.of(call)
    order = session.with_earlier(order, call)
    return watch(notebook, order, call, screen, status, session.footer, session)


def _run_cached(notebook: Notebook, order: Order, screen: Screen, status: StatusLine) -> None:
    """Show the kept result of ``order``, or run it and keep what it gives."""
    from .cache import CachedRun

    cached = CachedRun(notebook, order)
    found = None if order.options.fresh else cached.find()
    if found is not None:
        watch(notebook, order, found, screen, status, found.footer)
        return
    job = _sent(lambda: send(order, notebook, status), status)
    foreground = Foreground(order.without_payload(), job, notebook, screen, status)
    result = foreground.result
    result.keeps_raw = True
    _store(notebook, order, result)
    foreground.run()
    if result.ok and result.kept.is_whole:
        cached.keep(job.view, result.kept.stream(), bytes(result.raw) or None)


def watch(
    notebook: Notebook,
    order: Order,
    job: Watched,
    screen: Screen,
    status: StatusLine,
    footer: Footer | None = None,
    session: OpenSession | None = None,
) -> CellResult | None:
    """Show a job that runs: until its end, or from now on in the background."""
    order = order.without_payload()

    sent = order.landed()

    def landed(result: CellResult) -> None:
        if session is not None:
            notebook.sessions.landed(session, sent, result)

    if order.options.background:
        from .background import Background

        background = Background(order, job, notebook, screen, status, footer)
        background.result.on_landed = landed
        notebook.backgrounds.append(background)
        _store(notebook, order, background.result)
        background.start()
        return None if order.options.store_as else background.result
    foreground = Foreground(order, job, notebook, screen, status, footer)
    foreground.result.on_landed = landed
    _store(notebook, order, foreground.result)
    try:
        foreground.run()
        return None
    except JobFailed:
        name = foreground.result.asked_for
        if name is None or name in order.options.needs:
            raise
    # A formula inside of a value names it. Nothing has run yet, so the cell is sent again.
    screen.write("stderr", f"Grid-X: a variable refers to {name}: the cell is sent again with it\n")
    options = dataclasses.replace(order.options, needs=(*order.options.needs, name))
    return run_cell(notebook, order.line, order.body, options, order.visible)


def _store(notebook: Notebook, order: Order, result: CellResult) -> None:
    if order.options.store_as is not None:
        notebook.shell.user_ns[order.options.store_as] = result
