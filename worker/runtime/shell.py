"""Runs a cell job: an IPython shell whose displays, results and errors are data.

A notebook's cells are IPython, not Python: magics, ``!commands``, top-level ``await`` and
displays work here as they do in a kernel, without history files, pseudo-terminals or ``Out``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from bdb import BdbQuit
from collections.abc import Coroutine
from types import ModuleType, TracebackType
from typing import Any, Final

import IPython
from IPython.core.async_helpers import get_asyncio_loop
from IPython.core.compilerop import CachingCompiler
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.error import UsageError
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from traitlets.config import Config

from gridx.events import ClearOutput, DisplayData, ExecuteResult, UpdateDisplayData

from .display import Formats, to_bundle
from .magics import inline_backend, refuse_magics
from .streams import OutputCapture

CELL_FILE: Final = "<cell>"
NO_DEBUGGER: Final = (
    "A debugger cannot ask anybody here: print what you need, or bring the values home and debug"
    " them in a cell without %%gridx."
)
PRELUDE_FILE: Final = "<prelude>"
_MAX_DISPLAY_ID_CHARS: Final = 200


def file_of(call: int) -> str:
    """Return the file name of the code of a call: each has its own in a session, so that a
    traceback through functions of earlier calls shows the lines of those."""
    return CELL_FILE if call == 0 else f"<cell {call}>"


class _Compiler(CachingCompiler):
    """Names the cell's code after nothing of this machine."""

    call = 0
    is_prelude = False
    is_inner = False  # run by a cell: its lines are not those of the cell
    inner_cells = 0

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        if self.is_inner:
            return f"<inner cell {self.inner_cells}>"
        return PRELUDE_FILE if self.is_prelude else file_of(self.call)


class _Publisher(DisplayPublisher):
    """Sends displays as events."""

    capture: OutputCapture

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: object = None,
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **_others: object,
    ) -> None:
        text, binary, kept = to_bundle(data, metadata)
        display_id = (transient or {}).get("display_id")
        name = None if display_id is None else str(display_id)[:_MAX_DISPLAY_ID_CHARS]
        call = self.capture.calling()
        if update and name is not None:
            self.capture.publish(
                UpdateDisplayData(
                    call=call, data=text, binary=binary, metadata=kept, display_id=name
                )
            )
        else:
            self.capture.publish(
                DisplayData(call=call, data=text, binary=binary, metadata=kept, display_id=name)
            )

    def clear_output(self, wait: bool = False) -> None:
        self.capture.publish(ClearOutput(call=self.capture.calling(), wait=bool(wait)))


class _ResultHook(DisplayHook):
    """Sends the value of the last expression as an event."""

    capture: OutputCapture
    cell = ""
    last: Any = None  # the value of the cell's last expression that was shown

    def update_user_ns(self, result: Any) -> None:
        _ResultHook.last = result
        if self.shell is not None and self.shell.user_ns.get("_", self._) is self._:
            # For the next call of a session; a name that the user has bound stays his.
            self._ = self.shell.user_ns["_"] = result

    def quiet(self) -> bool:
        """Return whether the cell ends with a semicolon. (The stock one asks the history.)"""
        return ";" in self.cell and bool(self.semicolon_at_end_of_expression(self.cell))

    def write_output_prompt(self) -> None:
        """There is no prompt."""

    def write_format_data(
        self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None
    ) -> None:
        text, binary, kept = to_bundle(format_dict, md_dict)
        event = ExecuteResult(call=self.capture.calling(), data=text, binary=binary, metadata=kept)
        shell = self.shell
        if shell is not None and shell.ast_node_interactivity == "all":  # more may follow
            self.capture.publish(event)
        else:
            self.capture.publish_with_next(event)

    def log_output(self, format_dict: dict[str, Any]) -> None:
        """Nothing is logged."""

    def finish_displayhook(self) -> None:
        self._is_active = False


class CellShell(InteractiveShell):
    """The shell of one sandbox."""

    displayhook_class = _ResultHook
    display_pub_class = _Publisher
    compiler_class = _Compiler
    _depth = 0  # of cells that run in cells

    def init_display_formatter(self) -> None:
        """Ask objects for what may be shown, and no object for what it cannot have."""
        self.display_formatter = Formats(parent=self)
        self.configurables.append(self.display_formatter)  # type: ignore[arg-type]  # of any kind

    def init_virtualenv(self) -> None:
        """The image has none."""

    def enable_gui(self, gui: object = None) -> None:
        """There is no screen."""

    def enable_matplotlib(self, gui: Any = None) -> Any:
        """Show figures inline, whatever the cell asks for."""
        return super().enable_matplotlib(inline_backend(gui))

    def ask_exit(self) -> None:
        """``exit`` ends nothing: the cell goes on, as one in a notebook does."""

    def showtraceback(
        self,
        exc_tuple: Any = None,
        filename: str | None = None,
        tb_offset: int | None = None,
        exception_only: bool = False,
        running_compiled_code: bool = False,
    ) -> None:
        """Show errors beside the cell's own, which leaves as data when the cell has ended.

        Code that the cell has IPython run (``%%capture``, ``get_ipython().run_cell``) fails
        without the cell: its error is shown, past whatever is captured, as in a kernel.
        """
        error = exc_tuple[1] if exc_tuple else sys.exc_info()[1]
        is_of_a_cell = sys._getframe(1).f_code.co_name in _HANDLES_THE_CELL
        if error is None or (is_of_a_cell and self._depth <= 1):
            return
        if exception_only:
            error.__traceback__ = error.__context__ = error.__cause__ = None
        shown = error.with_traceback(_below_ipython(error.__traceback__))
        traceback.print_exception(shown, file=sys.__stderr__ if is_of_a_cell else sys.stderr)

    def showsyntaxerror(
        self, filename: str | None = None, running_compiled_code: bool = False
    ) -> None:
        """As above."""
        error = sys.exc_info()[1]
        if error is not None and self._depth > 1:
            traceback.print_exception(error.with_traceback(None), file=sys.__stderr__)

    def run_cell(self, *args: Any, **more: Any) -> ExecutionResult:
        """Run a cell, or code that a cell has run as one."""
        self._depth += 1
        _Compiler.inner_cells += self._depth > 1
        _Compiler.is_inner = self._depth > 1
        try:
            result: ExecutionResult = super().run_cell(*args, **more)
        finally:
            self._depth -= 1
            _Compiler.is_inner = self._depth > 1
        return result

    def system_piped(self, cmd: str) -> None:
        """Run ``!cmd`` on descriptors 1 and 2: a pseudo-terminal would lose the order."""
        line = self.var_expand(cmd, depth=1)
        code = subprocess.call(["/bin/sh", "-c", line], stdin=subprocess.DEVNULL)
        # What it said is taken out of the pipes now, before somebody else writes into them.
        sys.stdout.flush()
        self.user_ns["_exit_code"] = code

    system = system_raw = system_piped


_IPYTHON_DIR: Final = os.path.dirname(IPython.__file__) + os.sep
# Of IPython's own calls these handle the cell's error, which leaves as data; all others (%run, a
# formatter, a callback) show an error that the cell goes on after.
_HANDLES_THE_CELL: Final = frozenset(
    {"run_code", "run_ast_nodes", "run_cell_async", "_run_cell", "showindentationerror"}
)


def make_shell(main: ModuleType, capture: OutputCapture) -> CellShell:
    """Return the shell whose cells run in ``main``."""
    config = Config()
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    config.InteractiveShell.cache_size = 0
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.xmode = "Plain"
    config.InteractiveShell.autocall = 0
    _Publisher.capture = _ResultHook.capture = capture
    # instance() of the base class too: get_ipython() and matplotlib ask that one.
    shell: CellShell = CellShell.instance(config=config, user_module=main, user_ns=main.__dict__)
    shell.loop_runner = _run_in_loop
    refuse_magics(shell)
    return shell


def last_value() -> Any:
    """Return the value of the last expression of the cell that ran last, if it was shown."""
    return _ResultHook.last


def run_prelude(shell: CellShell, code: str) -> BaseException | None:
    """Run the lines that come before every cell; return what they raised."""
    _Compiler.is_prelude = True
    try:
        error = run_cell(shell, code)
    finally:
        _Compiler.is_prelude = False
    if error is not None:
        error.add_note(
            "This is the prelude, which runs before every cell; it failed, so the cell did not"
            " run. `%gridx prelude` shows it."
        )
    return error


def run_cell(shell: CellShell, code: str, call: int = 0) -> BaseException | None:
    """Run ``code`` as a cell; return what it raised."""
    _ResultHook.cell, _ResultHook.last = code, None
    if call:  # of a session: what the one before has left is not this one's
        shell.user_ns.pop("__warningregistry__", None)
        shell.displayhook._is_active = False
    _Compiler.call = call
    result = shell.run_cell(code, store_history=False)
    error = result.error_before_exec or result.error_in_exec
    if isinstance(error, BdbQuit) and not error.args:
        error.args = (NO_DEBUGGER,)
    if not isinstance(error, BaseException):
        return None
    if result.error_before_exec is not None or isinstance(error, UsageError):
        # A wrong line or magic: the error itself says where, its frames are IPython's.
        error.__traceback__ = None
    return error


def _run_in_loop(cell: Coroutine[Any, Any, ExecutionResult]) -> ExecutionResult:
    """Run a cell that awaits. An interrupt ends the await, and what was awaited, at once."""
    import asyncio

    loop = get_asyncio_loop()
    task = loop.create_task(cell)
    result: ExecutionResult
    try:
        result = loop.run_until_complete(task)
    except KeyboardInterrupt as interrupt:
        if not task.done():
            task.cancel()
            # The cell's own cleaning up may take its time, or be interrupted as well.
            result = loop.run_until_complete(task)
            if isinstance(result.error_in_exec, asyncio.CancelledError):
                where = result.error_in_exec.__traceback__
                result.error_in_exec = interrupt.with_traceback(where)
            return result
        raise
    return result


def _below_ipython(tb: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback that begins after IPython's last leading frame."""
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(_IPYTHON_DIR):
        tb = tb.tb_next
    return tb
