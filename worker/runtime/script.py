"""Runs a script job: what a terminal would show for ``python job.py``.

No echo of a last expression; a traceback as text on stderr, in CPython's own form with the
lines of the script; ``sys.exit`` and exit codes as the interpreter has them.
"""

from __future__ import annotations

import atexit
import builtins
import linecache
import os
import sys
import threading
import traceback
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, Final

from .records import Done

FILE_NAME: Final = "<job>"
_HERE: Final = os.path.dirname(os.path.abspath(__file__))
MAX_MESSAGE_CHARS: Final = 500


def run_script(code: str, namespace: MutableMapping[str, Any]) -> Done:
    """Run ``code`` as ``__main__`` with ``namespace``, to the very end: threads, then atexit."""
    _leave_the_notebook()
    lines = code.splitlines(keepends=True)
    linecache.cache[FILE_NAME] = (len(code), None, lines, FILE_NAME)
    done = _run(code, namespace)
    # What the interpreter does before it ends: wait for threads, then call what was registered.
    # Neither has a public name.
    for last in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        try:
            last()
        except BaseException as error:
            _show(error)
    return done


def _run(code: str, namespace: MutableMapping[str, Any]) -> Done:
    try:
        exec(compile(code, FILE_NAME, "exec", dont_inherit=True), dict_of(namespace))
    except SystemExit as leaving:
        return _exited(leaving)
    except BaseException as error:
        _show(error)
        return Done(
            completed=False,
            exit_code=130 if isinstance(error, KeyboardInterrupt) else 1,
            message=one_line(error),
            memory_error=isinstance(error, MemoryError),
        )
    return Done(completed=True, exit_code=0)


def dict_of(namespace: MutableMapping[str, Any]) -> dict[str, Any]:
    """Return ``namespace`` itself: ``exec`` takes a real dict as globals."""
    assert isinstance(namespace, dict)
    return namespace


def _exited(leaving: SystemExit) -> Done:
    code = exit_code_of(leaving)
    if leaving.code is not None and not isinstance(leaving.code, int):
        print(leaving.code, file=sys.stderr)
    message = "" if code == 0 else f"The script left with exit code {code}."
    return Done(completed=code == 0, exit_code=code, message=message)


def exit_code_of(leaving: SystemExit) -> int:
    """Return the status with which the interpreter would leave: 0 to 255."""
    if leaving.code is None:
        return 0
    return leaving.code & 0xFF if isinstance(leaving.code, int) else 1


def one_line(error: BaseException) -> str:
    """Return type and text of ``error`` as one short line."""
    try:
        text = " ".join(str(error).split())
    except Exception as worse:  # its own __str__ is the job's code
        text = f"<str() failed: {type(worse).__name__}>"
    line = f"{type(error).__qualname__}: {text}" if text else type(error).__qualname__
    return line if len(line) <= MAX_MESSAGE_CHARS else line[: MAX_MESSAGE_CHARS - 1] + "…"


def hide_runtime_frames(error: BaseException) -> None:
    """Take the runtime's own frames off both ends of ``error``'s traceback."""
    tb = error.__traceback__
    while tb is not None and _is_ours(tb):
        tb = tb.tb_next
    error.__traceback__ = last_kept = tb
    while tb is not None:
        if not _is_ours(tb):
            last_kept = tb
        tb = tb.tb_next
    if last_kept is not None and last_kept.tb_next is not None:
        last_kept.tb_next = None


def _is_ours(tb: TracebackType) -> bool:
    return tb.tb_frame.f_code.co_filename.startswith(_HERE + os.sep)


def _show(error: BaseException) -> None:
    """Show ``error`` as the interpreter would, or as the script's own ``sys.excepthook`` does."""
    hide_runtime_frames(error)
    hook = sys.excepthook
    if hook is not sys.__excepthook__:
        try:
            hook(type(error), error, error.__traceback__)
            return
        except BaseException as worse:
            print("Error in sys.excepthook:", file=sys.stderr)
            traceback.print_exception(worse)
            print("\nOriginal exception was:", file=sys.stderr)
    # Not sys.__excepthook__: that one looks for source lines in files only.
    traceback.print_exception(error)


def _show_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is None or isinstance(args.exc_value, SystemExit):
        return
    name = args.thread.name if args.thread is not None else str(threading.get_ident())
    print(f"Exception in thread {name}:", file=sys.stderr)
    traceback.print_exception(args.exc_value)


def _leave_the_notebook() -> None:
    """Take back what the warm IPython shell changed outside itself."""
    interactive = sys.modules.get("IPython.core.interactiveshell")
    if interactive is not None:
        interactive.InteractiveShell.clear_instance()
    for name in ("__IPYTHON__", "display", "get_ipython"):
        if hasattr(builtins, name):
            delattr(builtins, name)
    sys.excepthook = sys.__excepthook__
    sys.displayhook = sys.__displayhook__
    threading.excepthook = _show_of_thread
    os.environ["MPLBACKEND"] = "agg"
    sys.argv = [FILE_NAME]
