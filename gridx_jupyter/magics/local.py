"""``--local``: the cell runs here, in a fresh process, and comes home as from a worker."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from gridx.events import Event, Stream, decode_events
from gridx.protocol import Position
from gridx.quantities import format_duration
from gridx.schemas import BlobRef, JobView, Reason
from gridx.updates import EventArrived, Finished, StateChanged, Update

from .order import Order

_END: Final = object()
_PIECE: Final = 65_536


class LocalJob:
    """A process of this machine, watched as a job of the grid is."""

    id = "local"

    def __init__(self, order: Order) -> None:
        captured = order.captured
        assert captured is not None
        self._limit_s = order.options.timeout_s
        self._texts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._result = bytearray()
        self._failed: bool | None = None
        self._cancelled = self._timed_out = False
        self.finished: Finished | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="gridx-local-"))
        modules = _lay_out(order, self._folder)
        request = {
            "code": order.body,
            "prelude": order.spec.prelude,
            "inputs": captured.payload,
            "watched": order.spec.inputs,
            "expected": [
                n for n in order.spec.expected if order.spec.out is None or n in order.spec.out
            ],
            "fetch": order.spec.fetch,
            "module_folder": modules,
        }
        (self._folder / "order").write_bytes(msgspec.msgpack.encode(request))
        self.view = JobView(
            job_id=self.id,
            user_id="",
            status="running",
            language="python",
            kind="cell",
            limits=order.options.limits(),
            reserved=0.0,
            cost=0.0,
            attempt=1,
            worker_name="this machine",
            created_at=datetime.now(UTC),
            started_at=datetime.now(UTC),
        )
        self._begun_s = time.monotonic()
        self._start()

    def _start(self) -> None:
        read, write = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gridx_jupyter.local_process", str(write), self._folder],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(write,),
                start_new_session=True,  # an interrupt of the notebook is passed on by cancel()
            )
        finally:
            os.close(write)
        readers = [
            threading.Thread(target=self._read_records, args=(os.fdopen(read, "rb"),), daemon=True)
        ]
        for name in ("stdout", "stderr"):
            pipe = getattr(self._process, name)
            readers.append(threading.Thread(target=self._read_text, args=(name, pipe), daemon=True))
        for reader in readers:
            reader.start()
        threading.Thread(target=self._join, args=(readers,), daemon=True).start()

    def _read_records(self, file: IO[bytes]) -> None:
        with file:
            while head := file.read(5):
                data = file.read(int.from_bytes(head[1:], "big"))
                match head[:1]:
                    case b"E":
                        for event in decode_events(data):
                            self._queue.put(event)
                    case b"R":
                        self._result += data
                    case _:
                        self._failed = data == b"1"

    def _read_text(self, name: Any, file: IO[bytes]) -> None:
        # What is written past Python: by children and native code.
        with file:
            while data := os.read(file.fileno(), _PIECE):
                self._queue.put(Stream(name=name, text=data.decode("utf-8", "replace")))

    def _join(self, readers: list[threading.Thread]) -> None:
        readers[0].join()
        self._process.wait()
        self._signal(signal.SIGKILL)  # children that outlive the cell
        for reader in readers[1:]:
            reader.join()
        self._queue.put(_END)

    @property
    def stdout(self) -> str:
        """What the cell printed so far."""
        return "".join(self._texts["stdout"])

    @property
    def stderr(self) -> str:
        """What it wrote on stderr so far."""
        return "".join(self._texts["stderr"])

    def updates(self, *, idle_s: float) -> Iterator[Update | None]:
        """Yield what happens, ``Finished`` last."""
        yield StateChanged(self.view)
        while self.finished is None:
            if time.monotonic() - self._begun_s > self._limit_s and not self._timed_out:
                self._timed_out = True
                self._signal(signal.SIGKILL)
            try:
                found = self._queue.get(timeout=idle_s)
            except queue.Empty:
                yield None
                continue
            if found is _END:
                yield self._end()
                return
            yield self._arrived(found)

    def _arrived(self, event: Event) -> EventArrived:
        if isinstance(event, Stream):
            self._texts[event.name].append(event.text)
        return EventArrived(event, Position())

    def download(self, refs: Sequence[BlobRef], on_progress: object = None) -> bytearray:
        """Everything is here already."""
        return bytearray()

    def cancel(self, timeout_s: float = 2.0) -> Finished | None:
        """Interrupt the process, and kill it when it does not end in time."""
        if self.finished is not None:
            return self.finished
        self._cancelled = True
        self._signal(signal.SIGINT)
        until_s = time.monotonic() + timeout_s
        ended: Finished | None = None
        while ended is None:
            try:
                left_s = max(0.0, until_s - time.monotonic())
                if self._queue.get(timeout=left_s) is _END:
                    ended = self._end()
            except queue.Empty:
                until_s = time.monotonic() + 60.0
                self._signal(signal.SIGKILL)
        return ended

    def footer(self, finished: Finished) -> str:
        """Return the line that stays."""
        took = format_duration(finished.view.elapsed_s or 0.0)
        return f"{finished.view.status} here in {took} · cost 0 · --local, without a sandbox"

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            return

    def _end(self) -> Finished:
        status, reason = self._verdict()
        self.view = msgspec.structs.replace(
            self.view,
            status=status,
            reason=reason,
            exit_code=self._process.returncode,
            finished_at=datetime.now(UTC),
            elapsed_s=time.monotonic() - self._begun_s,
        )
        shutil.rmtree(self._folder, ignore_errors=True)
        result = bytes(self._result) if self._failed is not None else None
        self.finished = Finished(self.view, 0, None, None, result)
        return self.finished

    def _verdict(self) -> tuple[str, Reason | None]:
        if self._cancelled:
            return "cancelled", Reason(code="cancelled", message="Stopped here.")
        if self._timed_out:
            return "failed", Reason(code="timeout", message=f"Stopped at {self._limit_s:g} s.")
        if self._failed is None:
            code = self._process.returncode
            return "failed", Reason(code="crashed", message=f"The process ended with {code}.")
        if self._failed:
            return "failed", Reason(code="error", message="The cell raised.")
        return "completed", None


def _lay_out(order: Order, folder: Path) -> str:
    """Write the files of ``order`` below ``folder``; return the folder of its modules."""
    (folder / "work").mkdir()
    blobs = {blob.ref.digest: blob.data for blob in order.blobs}
    has_modules = False
    for file in order.spec.files:
        is_module = file.kind == "module"
        has_modules = has_modules or is_module
        target = folder / ("modules" if is_module else "work") / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.data or b"".join(bytes(blobs[ref.digest]) for ref in file.blobs))
    return str(folder / "modules") if has_modules else ""
