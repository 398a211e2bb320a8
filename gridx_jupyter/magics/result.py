"""CellResult: what became of one remote cell, during and after."""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
import threading
from collections.abc import Callable, Generator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from gridx.credits import format_credits, to_credits
from gridx.display import clean_line, clean_text
from gridx.errors import GridXError, JobFailed
from gridx.quantities import format_duration
from gridx.schemas import JobView
from gridx.ship.refusal import StaysHere
from gridx.updates import Finished

from .failures import shown_as_sentence, shown_at_its_lines
from .kept_output import KeptOutput
from .order import Order
from .render import worker_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gridx.codec.opaque import Opaque
    from gridx.codec.results import Applied
    from gridx.schemas import BlobRef
    from gridx.transfer import Progress
    from gridx.updates import Update

    from .notebook import Notebook


_MAX_NOTES = 10
_ASKED_FOR = re.compile(r"refers to the name '(\w+)'")
_RESTORE_MODULE = "gridx.ship.restore"  # raises before the cell begins


class Watched(Protocol):
    """A job that is read to its end: of the grid, of a session, of this machine, from the cache."""

    @property
    def id(self) -> str: ...
    @property
    def view(self) -> JobView: ...
    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...
    def updates(self, *, idle_s: float) -> Iterator[Update | None]: ...
    def cancel(self, timeout_s: float = ...) -> Finished | None: ...
    def download(
        self, refs: Sequence[BlobRef], on_progress: Progress | None = ...
    ) -> bytearray: ...


class CellResult:
    """One remote cell. Kept with ``--as NAME``, returned by ``--bg``, and awaitable."""

    def __init__(self, job: Watched, order: Order, notebook: Notebook) -> None:
        self._job = job
        self._order = order
        self._notebook = notebook
        self._landed = False
        self._on_wait: Callable[[float | None], None] | None = None
        self._finished: Finished | None = None
        self._data: bytes | bytearray | None = None
        self._waiters: list[concurrent.futures.Future[None]] = []
        self.ended = threading.Event()
        self.kept = KeptOutput()
        self.values: dict[str, Any] = {}
        self.files: dict[str, Path] = {}
        self.error: BaseException | None = None
        self.raised: BaseException | None = None  # what the cell raises: shown at its lines
        self.notes: list[str] = []
        self.applied: Applied | None = None
        self.is_not_begun = False  # its variables could not be restored
        self.asked_for: str | None = None  # a name that they were found to need, and may have
        self.keeps_raw = False  # for whoever keeps it: landing takes the bytes over
        self.on_landed: Callable[[CellResult], None] | None = None

    def __reduce__(self) -> NoReturn:
        raise StaysHere("it is the record of a cell and stays in this notebook")

    @property
    def job(self) -> str:
        """The job's id."""
        return self._job.id

    @property
    def state(self) -> str:
        """``queued``, ``running``, ``completed``, ``failed`` or ``cancelled``."""
        return clean_line((self._finished.view if self._finished else self._job.view).status, 20)

    @property
    def ok(self) -> bool:
        """Whether the cell has run to its end without an error."""
        return self.state == "completed" and self.error is None

    @property
    def stdout(self) -> str:
        """What the cell has printed so far, as it is shown: of escapes only colours are left."""
        return clean_text(self._job.stdout)

    @property
    def stderr(self) -> str:
        """What the cell has written on stderr so far, as it is shown."""
        return clean_text(self._job.stderr)

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """What the cell has shown so far, in the form that a notebook file has."""
        return self.kept.outputs(self._notebook.shell, self.job)

    @property
    def worker(self) -> str:
        """The name of the worker; empty while the cell is queued."""
        return worker_of(self._finished.view if self._finished else self._job.view)

    @property
    def seconds(self) -> float | None:
        """How long it ran, by the coordinator's clock; None before its end."""
        return self._finished.view.elapsed_s if self._finished else None

    @property
    def cost(self) -> float | None:
        """What it cost, in credits; None before its end."""
        return to_credits(self._finished.cost_ucr) if self._finished else None

    @property
    def sent_bytes(self) -> int:
        """Bytes of code, variables and files that travelled; what was there did not."""
        return int(getattr(self._job, "sent_bytes", 0))

    def wait(self, timeout: float | None = None) -> CellResult:
        """Wait for the end, show the output here, bind the results, raise the cell's error.

        Args:
            timeout: longest wait in seconds; None waits without a limit.

        Raises:
            TimeoutError: it still runs; nothing is lost.
        """
        if self._on_wait is not None:
            self._on_wait(timeout)
        return self

    def __await__(self) -> Generator[Any, None, CellResult]:
        """As ``wait()``, while other tasks of the notebook's loop go on."""
        return self._wait_in_loop().__await__()

    async def _wait_in_loop(self) -> CellResult:
        ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._waiters.append(ended)
        if self.ended.is_set():
            self._tell_waiters()
        await asyncio.wrap_future(ended)
        return self.wait()

    def _tell_waiters(self) -> None:
        while self._waiters:
            waiter = self._waiters.pop()
            if waiter.set_running_or_notify_cancel():
                waiter.set_result(None)

    def cancel(self) -> CellResult:
        """Stop the cell. The time it ran is charged, the rest of the hold comes back."""
        self._job.cancel(0.0 if self._on_wait is not None else 2.0)
        return self

    def retry(self) -> CellResult | None:
        """Run the same cell again, with the notebook's variables of now."""
        return self._notebook.run_again(self._order)

    def __repr__(self) -> str:
        parts = [f"<CellResult {self.job} {self.state}"]
        if self.worker:
            parts.append(f" on {self.worker}")
        if self.seconds is not None:
            parts.append(f" in {format_duration(self.seconds)}")
        if self._finished is not None:
            parts.append(f", cost {format_credits(self._finished.cost_ucr)}")
        if self.error is not None:
            parts.append(f", {type(self.error).__name__}: {clean_line(str(self.error), 80)}")
        return "".join(parts) + ">"

    def when_waited(self, action: Callable[[float | None], None]) -> None:
        """Set what ``wait`` does: background cells have something left to do."""
        self._on_wait = action

    def finish(self, finished: Finished) -> None:
        """Note the end. Any thread may call this."""
        self._finished = finished
        self.end()

    def end(self) -> None:
        """Let go who waits. Any thread may call this."""
        self.ended.set()
        self._tell_waiters()

    def fetch(self, finished: Finished, on_progress: Progress | None = None) -> None:
        """Get a result that is too large for a message. Any thread may call this.

        Raises:
            GridXError: it could not be read; `%gridx result JOB` tries again.
        """
        if finished.result is not None:
            self._data = finished.result
        elif finished.result_blobs:
            self._data = self._job.download(finished.result_blobs, on_progress)

    @property
    def raw(self) -> bytes | bytearray:
        """The result as it came; empty when there is none."""
        return self._data or b""

    def land(self, error_data: dict[str, Any] | None) -> None:
        """Bring values and error home. For the main thread, once; later calls do nothing."""
        if self._landed or self._finished is None:
            return
        self._landed = True
        failure: BaseException | None = self._finished.error()
        if isinstance(failure, JobFailed) and error_data is not None:
            failure = self._rebuilt(error_data)
        self._fail(failure)
        if self._data is not None:
            data, self._data = self._data, None
            if self.keeps_raw:
                self._data = bytes(data)
            self._apply(data)
        self._order = self._order.landed()
        if self.on_landed is not None:
            self.on_landed(self)

    def _fail(self, failure: BaseException | None) -> None:
        self.error = self.raised = failure
        if isinstance(failure, GridXError):
            shown_as_sentence(failure)
        elif failure is not None:
            self.raised = shown_at_its_lines(failure, self._notebook.shell)

    def fail(self, error: GridXError) -> None:
        """Note that the end of the cell will not be known here."""
        self._fail(error)

    def _rebuilt(self, data: dict[str, Any]) -> BaseException:
        from gridx.remote_error import rebuild, user_exceptions

        visible, shell = self._order.visible, self._notebook.shell
        captured = self._order.captured
        if data.get("module") == _RESTORE_MODULE:
            self.is_not_begun = True
            asked = _ASKED_FOR.search(str(data.get("message")))
            if asked is not None and captured is not None and asked[1] in captured.may_be_asked_for:
                self.asked_for = asked[1]
            return JobFailed(
                clean_line(str(data.get("message")), 500) + " The cell did not begin.",
                hint=f"--needs {asked[1]} sends it; whoever owns the worker can read it then."
                if asked is not None
                else "Make plain data of the variable first, or leave it out with "
                "--without NAME; a package that it needs there comes with --pip NAME.",
            )
        error = rebuild(
            data,
            cell_file=visible.file,
            user_classes=user_exceptions(shell.user_ns),
            line_offset=visible.line_offset,
            earlier=self._order.earlier,
        )
        if isinstance(error, NameError):
            stayed = self._order.stayed_here
            name = next((n for n in stayed if repr(n) in str(error)), None)
            if name is not None:
                error.add_note(f"{name} stayed in the notebook: send it with --needs {name}.")
        if isinstance(error, ModuleNotFoundError):
            error.add_note(
                "The worker's image does not have it: --pip NAME installs it for the cell."
            )
        return error

    def _apply(self, data: bytes | bytearray) -> None:
        from gridx.codec import CodecError
        from gridx.codec.results import apply_result

        namespace = self._notebook.shell.user_ns
        try:
            applied = apply_result(
                data,
                namespace,
                expected=self._order.expected,
                cell_source=self._order.body,
                source=f"worker {self.worker}, job {self.job}",
                out=self._order.spec.out,
                at_submit=self._order.at_submit,
                cell_file=self._order.visible.file,
                line_offset=self._order.visible.line_offset,
            )
        except CodecError as exc:
            self.notes.append(f"no variable came home: {clean_line(str(exc), 200)}")
            if self.error is None:
                refusal = GridXError(
                    "The worker's result cannot be read; no variable was changed.",
                    hint="Run the cell again; tell the worker's owner when it happens again.",
                )
                self._fail(refusal)
            return
        self.applied = applied
        self.values = dict(applied.values)
        known = self._order.expected | namespace.keys()
        in_session = self._order.options.session is not None
        self.notes += notes_on(applied, known, in_session=in_session)
        self._write_files(applied)
        if self._order.at_submit is None and applied.last is not None:
            self._set_last(applied.last)

    def _write_files(self, applied: Applied) -> None:
        if applied.files:
            self.files, notes = self._notebook.fetched.write(
                applied.files,
                patterns=self._order.spec.fetch,
                sent=self._order.sent_files,
                job_id=self.job,
            )
            self.notes += notes

    def _set_last(self, value: Any) -> None:
        """Let ``_`` and ``Out[n]`` be the value itself, where the text of it stood before."""
        from .screen import RemoteValue

        shell = self._notebook.shell
        hook: Any = shell.displayhook
        number = hook.prompt_count
        history = shell.user_ns.get("_oh")
        if not isinstance(history, dict) or not isinstance(history.get(number), RemoteValue):
            return
        history[number] = value
        names = {f"_{number}": value}
        if isinstance(shell.user_ns.get("_"), RemoteValue):
            names["_"] = hook._ = value
        shell.push(names, interactive=False)


def notes_on(applied: Applied, known: Set[str], *, in_session: bool = False) -> list[str]:
    """Return what the user would not expect of how the results came home, one line each.

    Args:
        known: names of which nobody wonders where they come from.
        in_session: the container is still there.
    """
    notes = [clean_line(sentence, 300) for sentence in applied.refused.values()]
    closed = {name: handle for name, handle in applied.opaque.items() if not handle.is_lost}
    if closed:
        notes.append(f"kept closed, usable in later %%gridx cells: {_kinds(closed)}")
    lost = {name: handle for name, handle in applied.opaque.items() if handle.is_lost}
    if lost:
        where = "usable in this session alone" if in_session else "lost with its container"
        notes.append(f"{where}: {_kinds(lost)}")
    others = set(applied.unexpected) - applied.refused.keys() - known
    if others:
        names = ",".join(clean_line(name, 60) for name in sorted(others)[:5])
        notes.append(f"bound there, but not by the cell's own text; bring home with --out {names}")
    notes += [clean_line(warning, 300) for warning in applied.warnings]
    if len(notes) > _MAX_NOTES:
        notes[_MAX_NOTES:] = [f"and {len(notes) - _MAX_NOTES} more of this kind"]
    return notes


def _kinds(handles: Mapping[str, Opaque]) -> str:
    return ", ".join(
        f"{name} ({clean_line(handle.type_name.rpartition('.')[2], 40)})"
        for name, handle in list(handles.items())[:_MAX_NOTES]
    )
