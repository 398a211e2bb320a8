"""A cell that waits, on a job that does what the test tells it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from IPython.utils.capture import capture_output

from gridx.errors import JobFailed, TransportError
from gridx.events import Stream
from gridx.protocol import Position
from gridx.schemas import BlobRef, CellSpec
from gridx.ship.capture import capture
from gridx.updates import EventArrived, Finished, LinkChanged, StateChanged, Update
from gridx_jupyter.magics.background import Background
from gridx_jupyter.magics.failures import shown_as_sentence
from gridx_jupyter.magics.foreground import Foreground
from gridx_jupyter.magics.notebook import Notebook
from gridx_jupyter.magics.options import CellOptions
from gridx_jupyter.magics.order import Order
from gridx_jupyter.magics.progress import Progress
from gridx_jupyter.magics.visible_cell import VisibleCell

from .test_render import NOW, view


class FakeJob:
    """Says what it was given; an exception in the list is raised at its place."""

    id = "job_1"
    stdout = stderr = ""
    finished = None

    def __init__(self, *says: Update | BaseException | None, end: Finished | None = None) -> None:
        self.view = view()
        self._says = says
        self._end = end
        self.cancelled_within_s: list[float] = []

    def updates(self, *, idle_s: float | None = None) -> Iterator[Update | None]:
        for said in self._says:
            if isinstance(said, BaseException):
                raise said
            yield said

    def download(self, refs: Sequence[BlobRef], on_progress: object = None) -> bytearray:
        raise AssertionError("small results come with the last update")

    def cancel(self, timeout_s: float = 2.0) -> Finished | None:
        self.cancelled_within_s.append(timeout_s)
        return self._end


def order(body: str = "x = 1", at_submit: dict[str, Any] | None = None) -> Order:
    captured = capture(body, {})
    spec = CellSpec(python=captured.python, expected=tuple(captured.expected))
    visible = VisibleCell("<cell>", 1, "")
    return Order("", body, CellOptions(), visible, spec, captured, at_submit=at_submit)


def ends(status: str = "completed") -> Finished:
    return Finished(view(status=status, elapsed_s=2.0), 200_000, 99_800_000, 0, None)


SAYS_HI = EventArrived(Stream(name="stdout", text="hi\n"), Position())


def test_output_before_an_interrupt_stays_and_the_footer_says_the_cost(
    notebook: Notebook,
) -> None:
    job = FakeJob(SAYS_HI, KeyboardInterrupt(), end=ends("cancelled"))
    with capture_output() as said, pytest.raises(KeyboardInterrupt):
        Foreground(order(), job, notebook).run()
    assert said.stdout == "hi\n"
    assert said.stderr.startswith("Grid-X: cancelled in 2.0 s · cost 0.20 · balance 99.80")
    assert job.cancelled_within_s == [2.0]


def test_a_cancel_that_is_not_confirmed_names_the_job(notebook: Notebook) -> None:
    with capture_output() as said, pytest.raises(KeyboardInterrupt):
        Foreground(order(), FakeJob(KeyboardInterrupt()), notebook).run()
    assert "%gridx cancel job_1" in said.stderr


def test_a_coordinator_that_stays_away_is_said_with_the_way_back(notebook: Notebook) -> None:
    job = FakeJob(LinkChanged(connected=False), TransportError("It stayed away."))
    with capture_output() as said, pytest.raises(TransportError):
        Foreground(order(), job, notebook).run()
    assert "%gridx attach job_1" in said.stderr


def test_progress_counts_from_the_start_of_the_newest_attempt() -> None:
    progress = Progress(view())
    assert progress.text() == "queued"
    progress.note(StateChanged(view(status="running", worker_name="anna")))
    assert progress.text() == "starting on anna"
    progress.note(StateChanged(view(status="running", worker_name="anna", started_at=NOW)))
    assert progress.text() == "running 00:00 on anna"
    progress.note(LinkChanged(connected=False))
    assert "reconnecting" in progress.text()


def test_the_clock_stands_still_while_the_job_does(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("gridx_jupyter.magics.progress.time.monotonic", lambda: now_s)
    running = view(status="running", worker_name="anna", started_at=NOW)
    still = view(status="running", worker_name="anna", started_at=NOW, waiting="Paused")
    progress = Progress(running)
    progress.note(StateChanged(running))
    now_s += 65
    progress.note(StateChanged(still))
    now_s += 3600
    progress.note(None)
    assert progress.text() == "standing still at 01:05 on anna (Paused)"
    progress.note(StateChanged(running))
    now_s += 5
    assert progress.text() == "running 01:10 on anna"


def test_the_namespace_of_the_submit_is_let_go_after_landing(notebook: Notebook) -> None:
    class Large:
        pass

    large = Large()
    seen = weakref.ref(large)
    background = Background(
        order(at_submit={"large": large}),
        FakeJob(ends()),
        notebook,
    )
    del large
    background.start()
    assert background.result.ended.wait(10)
    background.land()
    gc.collect()
    assert seen() is None


def test_an_error_of_a_stranger_is_shown_without_escapes() -> None:
    error: Any = shown_as_sentence(JobFailed("It \x1b]0;x\x07ended.", hint="Do \x1b[2Jthat."))
    assert error._render_traceback_() == ["JobFailed: It ended.", "Do that."]
    assert str(error) == "It ended. Do that."
