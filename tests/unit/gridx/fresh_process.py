"""A clean process that forks a child for each cell: fresh, and without the price of a start.

It has never seen the notebook; the child holds what ``restore`` puts there and nothing else.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gridx.blobs import Blob
from gridx.schemas import FileSpec

_SERVER = """
import ast, asyncio, inspect, io, json, os, struct, sys, traceback, types, warnings
warnings.simplefilter("ignore")
import numpy, pandas
from IPython.core.interactiveshell import InteractiveShell
from gridx.codec.results import encode_result, snapshot
from gridx.ship.restore import restore

def read(stream):
    size = stream.read(4)
    return stream.read(struct.unpack("<I", size)[0]) if size else None

def run_plain(cell, namespace):
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    result = eval(compile(cell, "<cell>", "exec", flags=flags, dont_inherit=True), namespace)
    if inspect.iscoroutine(result):
        asyncio.run(result)

def run_in_shell(cell, main):
    shell = InteractiveShell.instance(user_module=main, user_ns=main.__dict__)
    shell.history_manager.enabled = False
    def system(command):
        command = shell.var_expand(command, depth=1)
        print(os.popen(command).read(), end="")
    shell.system = system
    result = shell.run_cell(cell)
    error = result.error_before_exec or result.error_in_exec
    if error is not None:
        raise error

def child(head, payload):
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    main.__dict__["__builtins__"] = __builtins__
    sys.stdout = out = io.StringIO()
    error = before = None
    try:
        if payload:
            sys.path.insert(0, head["folder"] + "/modules")
            os.chdir(head["folder"] + "/work")
            restore(payload, main.__dict__, head["folder"])
        before = snapshot(main.__dict__, head["inputs"])
        if head["ipython"]:
            run_in_shell(head["cell"], main)
        else:
            run_plain(head["cell"], main.__dict__)
    except BaseException as exc:
        error = f"{type(exc).__name__}: {exc}"
    result = b""
    if before is not None:
        result = encode_result(
            before, main.__dict__, expected=head["expected"], cell=head["cell"]
        )
    return {"out": out.getvalue(), "error": error, "result": result.hex()}

stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
while True:
    head, payload = read(stdin), read(stdin)
    if head is None:
        break
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer = json.dumps(child(json.loads(head), payload)).encode()
        while answer:
            answer = answer[os.write(writer, answer):]
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    stdout.write(struct.pack("<I", len(answer)) + answer)
    stdout.flush()
"""


def lay_out(files: Iterable[FileSpec], folder: Path) -> None:
    """Write files of a cell below ``folder``, as a worker does: modules apart from the others."""
    places = {"module": folder / "modules", "work": folder / "work"}
    for place in places.values():
        place.mkdir()
    for file in files:
        data = file.data or b"".join((folder / ref.digest).read_bytes() for ref in file.blobs)
        target = places[file.kind] / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


class FreshProcesses:
    """Runs cells in forked children of one clean process."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(
        self,
        cell: str,
        payload: bytes,
        *,
        ipython: bool = False,
        inputs: Iterable[str] = (),
        expected: Iterable[str] | None = None,
        blobs: Iterable[Blob] = (),
        files: Iterable[FileSpec] = (),
    ) -> dict[str, Any]:
        """Return ``out`` (stdout), ``error`` (text, or None) and ``result`` (hex) of ``cell``."""
        with tempfile.TemporaryDirectory() as folder:
            for blob in blobs:
                (Path(folder) / blob.ref.digest).write_bytes(blob.data)
            lay_out(files, Path(folder))
            return self._run(cell, payload, ipython, inputs, expected, folder)

    def _run(
        self,
        cell: str,
        payload: bytes,
        ipython: bool,
        inputs: Iterable[str],
        expected: Iterable[str] | None,
        folder: str,
    ) -> dict[str, Any]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        head = {
            "cell": cell,
            "folder": folder,
            "ipython": ipython,
            "inputs": list(inputs),
            "expected": None if expected is None else list(expected),
        }
        for part in (json.dumps(head).encode(), payload):
            self._server.stdin.write(struct.pack("<I", len(part)) + part)
        self._server.stdin.flush()
        (size,) = struct.unpack("<I", self._server.stdout.read(4))
        answer: dict[str, Any] = json.loads(self._server.stdout.read(size))
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


_KEPT = """
import contextlib, io, json, struct, sys, types
from gridx.ship.restore import restore

def read():
    size = sys.stdin.buffer.read(4)
    return sys.stdin.buffer.read(struct.unpack("<I", size)[0]) if size else None

stdout = sys.stdout.buffer
main = sys.modules["__main__"] = types.ModuleType("__main__")
main.__dict__["__builtins__"] = __builtins__
while (head := read()) is not None:
    head, payload, out, error = json.loads(head), read(), io.StringIO(), None
    try:
        restore(payload, main.__dict__, head["folder"])
        with contextlib.redirect_stdout(out):
            exec(compile(head["cell"], "<cell>", "exec", dont_inherit=True), main.__dict__)
    except BaseException as exc:
        error = f"{type(exc).__name__}: {exc}"
    answer = json.dumps({"out": out.getvalue(), "error": error}).encode()
    stdout.write(struct.pack("<I", len(answer)) + answer)
    stdout.flush()
"""


class KeptProcess:
    """One process whose namespace lives from cell to cell, as a session's does."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", _KEPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(self, cell: str, payload: bytes, folder: Path) -> str:
        """Restore ``payload``, run ``cell`` and return what it printed."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        head = json.dumps({"cell": cell, "folder": str(folder)}).encode()
        for part in (head, payload):
            self._server.stdin.write(struct.pack("<I", len(part)) + part)
        self._server.stdin.flush()
        (size,) = struct.unpack("<I", self._server.stdout.read(4))
        answer = json.loads(self._server.stdout.read(size))
        assert answer["error"] is None, answer["error"]
        return str(answer["out"])

    def close(self) -> None:
        """End the process."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()
