"""The process of a cell with ``--local``: what was captured goes in, what a worker sends comes out.

    python -m gridx_jupyter.local_process FD FOLDER

``FOLDER`` holds ``order``, a MessagePack map, and ``work``, the folder that the cell runs in. On
``FD`` records leave: one letter, the length, the bytes. ``E`` is an output event, ``R`` a piece of
the result, ``X`` the end. There is no sandbox: this is for finding out what a cell needs.
"""

from __future__ import annotations

import base64
import os
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgspec
from IPython.core.compilerop import CachingCompiler
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from gridx.codec.results import result_pieces, snapshot
from gridx.events import (
    ClearOutput,
    DisplayData,
    ErrorOutput,
    Event,
    ExecuteResult,
    Stream,
    UpdateDisplayData,
    encode_event,
)
from gridx.remote_error import exception_to_data
from gridx.ship.restore import restore

CELL_FILE: Final = "<cell>"


class LocalOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to do."""

    code: str
    prelude: str
    inputs: bytes
    watched: tuple[str, ...]
    expected: tuple[str, ...]
    fetch: tuple[str, ...]
    module_folder: str


class Records:
    """Writes records from any thread."""

    def __init__(self, fd: int) -> None:
        self._file = os.fdopen(fd, "wb", buffering=0)
        self._lock = threading.Lock()

    def put(self, kind: bytes, data: bytes | memoryview) -> None:
        """Write one record."""
        with self._lock:
            for part in (kind + len(data).to_bytes(4, "big"), data):
                view = memoryview(part)
                while view:
                    view = view[self._file.write(view) :]

    def event(self, event: Event) -> None:
        """Write one output event."""
        self.put(b"E", encode_event(event))


class _Writer:
    """``sys.stdout`` or ``sys.stderr``: text leaves in the order in which it was written."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, name: Any, records: Records, fd: int) -> None:
        self._name = name
        self._records = records
        self._fd = fd

    def write(self, text: str) -> int:
        if text:
            safe = text.encode("utf-8", "backslashreplace").decode()
            self._records.event(Stream(name=self._name, text=safe))
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._fd


class _Publisher(DisplayPublisher):
    records: Records

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
        text, binary = _bundle(data)
        display_id = (transient or {}).get("display_id")
        if update and display_id is not None:
            event: Event = UpdateDisplayData(data=text, binary=binary, display_id=str(display_id))
        else:
            event = DisplayData(data=text, binary=binary, display_id=display_id)
        self.records.event(event)

    def clear_output(self, wait: bool = False) -> None:
        self.records.event(ClearOutput(wait=bool(wait)))


class _ResultHook(DisplayHook):
    records: Records
    last: Any = None
    cell = ""

    def __call__(self, result: Any = None) -> None:
        if result is not None and not self.quiet():
            _ResultHook.last = result
        super().__call__(result)

    def quiet(self) -> bool:
        return ";" in self.cell and bool(self.semicolon_at_end_of_expression(self.cell))

    def write_output_prompt(self) -> None:
        pass

    def write_format_data(
        self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None
    ) -> None:
        text, binary = _bundle(format_dict)
        self.records.event(ExecuteResult(data=text, binary=binary))

    def log_output(self, format_dict: dict[str, Any]) -> None:
        pass

    def finish_displayhook(self) -> None:
        self._is_active = False


class _Compiler(CachingCompiler):
    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        return CELL_FILE


class _Shell(InteractiveShell):
    displayhook_class = _ResultHook
    display_pub_class = _Publisher
    compiler_class = _Compiler

    def showtraceback(self, *args: Any, **kwargs: Any) -> None:
        """The error leaves as data."""

    def showsyntaxerror(self, *args: Any, **kwargs: Any) -> None:
        """The error leaves as data."""


def _bundle(data: dict[str, Any]) -> tuple[dict[str, str], dict[str, bytes]]:
    text: dict[str, str] = {}
    binary: dict[str, bytes] = {}
    for kind, value in data.items():
        if isinstance(value, bytes):
            binary[kind] = value
        elif isinstance(value, str) and kind in ("image/png", "image/jpeg"):
            binary[kind] = base64.b64decode(value)
        elif isinstance(value, str):
            text[kind] = value
    return text, binary


def _shell(records: Records) -> _Shell:
    main = ModuleType("__main__")
    sys.modules["__main__"] = main
    config = Config()
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    config.InteractiveShell.cache_size = 0
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.autocall = 0
    _Publisher.records = _ResultHook.records = records
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    shell: _Shell = _Shell.instance(config=config, user_module=main, user_ns=main.__dict__)
    return shell


def _run(shell: _Shell, order: LocalOrder) -> tuple[BaseException | None, list[Any]]:
    namespace = shell.user_ns
    try:
        if order.inputs:
            restore(order.inputs, namespace)
        if order.prelude:
            exec(compile(order.prelude, "<prelude>", "exec"), namespace)  # noqa: S102
        before = snapshot(namespace, order.watched)
    except BaseException as error:
        return error, []
    _ResultHook.cell = order.code
    ran = shell.run_cell(order.code, store_history=False)
    failure: Any = ran.error_before_exec or ran.error_in_exec
    if ran.error_before_exec is not None:
        failure.__traceback__ = None
    if "matplotlib_inline.backend_inline" in sys.modules:
        sys.modules["matplotlib_inline.backend_inline"].flush_figures()
    pieces = result_pieces(
        before,
        namespace,
        expected=order.expected,
        cell=order.code,
        files=_fetched(order.fetch),
        last=_ResultHook.last,
    )
    return failure, [pieces]


def _fetched(patterns: tuple[str, ...]) -> list[tuple[str, bytes]]:
    folder = Path.cwd()
    found: dict[str, bytes] = {}
    for pattern in patterns:
        for match in sorted(folder.glob(pattern)):
            for path in sorted(match.rglob("*")) if match.is_dir() else (match,):
                if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                    found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return list(found.items())


def _no_input(prompt: object = "", /) -> str:
    raise EOFError("input() cannot ask anybody here; pass the value as a variable.")


def main(fd: int, folder: Path) -> None:
    """Run the cell of ``folder`` and send what becomes of it."""
    import builtins

    records = Records(fd)
    sys.stdout = _Writer("stdout", records, 1)
    sys.stderr = _Writer("stderr", records, 2)
    builtins.input = _no_input
    order = msgspec.msgpack.decode((folder / "order").read_bytes(), type=LocalOrder)
    os.chdir(folder / "work")
    sys.argv = [""]
    sys.path.insert(0, str(folder / "work"))
    if order.module_folder:
        sys.path.insert(0, order.module_folder)
    error, pieces = _run(_shell(records), order)
    if error is not None:
        data = exception_to_data(_below_ours(error), {CELL_FILE})
        records.event(ErrorOutput(error=data))
    for piece in pieces:
        for block in piece.blocks():
            records.put(b"R", block)
    records.put(b"X", b"1" if error is not None else b"0")


def _below_ours(error: BaseException) -> BaseException:
    """Return ``error`` with the frames from the cell on; those above it are the shell's."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename != CELL_FILE:
        tb = tb.tb_next
    if tb is not None:
        error.__traceback__ = tb
    return error


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
