"""CellResult: what became of one remote cell, during and after."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from gridx.credits import format_credits, to_credits
from gridx.display import clean_line
from gridx.errors import GridXError, JobFailed
from gridx.quantities import format_duration
from gridx.ship.refusal import StaysHere
from gridx.updates import Finished

from .failures import shown_as_sentence, shown_at_its_lines
from .render import worker_of
from .visible_cell import VisibleCell

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from gridx.blocking import BlockingJob
    from gridx.codec.results import Applied
    from gridx.ship.capture import Captured

    from .options import CellOptions


_MAX_NOTES = 10
_RESTORE_MODULE = "gridx.ship.restore"  # raises before the cell begins


@dataclass(frozen=True)
class Order:
    """A cell that was prepared: what it is, what travels, how its results come home."""

    body: str
    options: CellOptions
    captured: Captured
    visible: VisibleCell
    at_submit: dict[str, Any] | None = None  # background cells only

    @property
    def expected(self) -> frozenset[str]:
        """The only names that the result may touch: seen in the cell, or asked for by --out."""
        return self.captured.expected | frozenset(self.options.out or ())

    def without_payload(self) -> Order:
        """Return the order of a cell that was sent: its inputs need no memory here any more."""
        return dataclasses.replace(self, captured=dataclasses.replace(self.captured, payload=b""))


class CellResult:
    """One remote cell. Kept with ``--as NAME``, returned by ``--bg``."""

    def __init__(self, job: BlockingJob, order: Order, shell: InteractiveShell) -> None:
        self._job = job
        self._order = order
        self._shell = shell
        self._landed = False
        self._on_wait: Callable[[float | None], None] | None = None
        self._finished: Finished | None = None
        self.ended = threading.Event()
        self.values: dict[str, Any] = {}
        self.error: BaseException | None = None
        self.notes: list[str] = []

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
        """What the cell has printed so far."""
        return self._job.stdout

    @property
    def stderr(self) -> str:
        """What the cell has written on stderr so far."""
        return self._job.stderr

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

    def cancel(self) -> CellResult:
        """Stop the cell. The time it ran is charged, the rest of the hold comes back."""
        self._job.cancel(0.0 if self._on_wait is not None else 2.0)
        return self

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
        self.ended.set()

    def land(self, error_data: dict[str, Any] | None) -> None:
        """Bring values and error home. For the main thread, once; later calls do nothing."""
        if self._landed or self._finished is None:
            return
        self._landed = True
        failure: BaseException | None = self._finished.error()
        if isinstance(failure, JobFailed) and error_data is not None:
            failure = self._rebuilt(error_data)
        elif isinstance(failure, GridXError):
            failure = shown_as_sentence(failure)
        self.error = failure
        if self._finished.result is not None:
            self._apply(self._finished.result)
        # The namespace of the submit would keep what the notebook has dropped since.
        self._order = dataclasses.replace(self._order, at_submit=None)

    def _rebuilt(self, data: dict[str, Any]) -> BaseException:
        from gridx.remote_error import rebuild, user_exceptions

        visible, captured = self._order.visible, self._order.captured
        if data.get("module") == _RESTORE_MODULE:
            return shown_as_sentence(
                JobFailed(
                    clean_line(str(data.get("message")), 500) + " The cell did not begin.",
                    hint="Make plain data of the variable first, or leave it out with "
                    "--without NAME; installing packages is not in this release.",
                )
            )
        error = rebuild(
            data,
            cell_file=visible.file,
            user_classes=user_exceptions(self._shell.user_ns),
            line_offset=visible.line_offset,
        )
        if isinstance(error, NameError):
            name = next((n for n in _not_sent(captured) if repr(n) in str(error)), None)
            if name is not None:
                error.add_note(f"{name} stayed in the notebook: send it with --needs {name}.")
        if isinstance(error, ModuleNotFoundError):
            error.add_note(
                "The worker's image does not have it; installing packages is not in this release."
            )
        return shown_at_its_lines(error, self._shell)

    def _apply(self, data: bytes) -> None:
        from gridx.codec import CodecError
        from gridx.codec.results import apply_result

        try:
            applied = apply_result(
                data,
                self._shell.user_ns,
                expected=self._order.expected,
                cell_source=self._order.body,
                source=f"worker {self.worker}, job {self.job}",
                out=self._order.options.out,
                at_submit=self._order.at_submit,
            )
        except CodecError as exc:
            self.notes.append(f"no variable came home: {clean_line(str(exc), 200)}")
            if self.error is None:
                refusal = GridXError(
                    "The worker's result cannot be read; no variable was changed.",
                    hint="Run the cell again; tell the worker's owner when it happens again.",
                )
                self.error = shown_as_sentence(refusal)
            return
        self.values = dict(applied.values)
        known = self._order.expected | self._shell.user_ns.keys()
        self.notes += _notes_on(applied, known)


def _not_sent(captured: Captured) -> list[str]:
    return [*captured.withheld, *captured.left_out, *captured.unpicklable]


def _notes_on(applied: Applied, known: Set[str]) -> list[str]:
    """Return what the user would not expect of how the results came home, one line each."""
    notes = [clean_line(sentence, 300) for sentence in applied.refused.values()]
    if applied.opaque:
        kinds = ", ".join(
            f"{name} ({clean_line(handle.type_name.rpartition('.')[2], 40)})"
            for name, handle in list(applied.opaque.items())[:_MAX_NOTES]
        )
        notes.append(f"kept closed, usable in later %%gridx cells: {kinds}")
    others = set(applied.unexpected) - applied.refused.keys() - known
    if others:
        names = ",".join(clean_line(name, 60) for name in sorted(others)[:5])
        notes.append(f"bound there, but not by the cell's own text; bring home with --out {names}")
    notes += [clean_line(warning, 300) for warning in applied.warnings]
    if len(notes) > _MAX_NOTES:
        notes[_MAX_NOTES:] = [f"and {len(notes) - _MAX_NOTES} more of this kind"]
    return notes
