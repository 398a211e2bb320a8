"""The one line of a remote cell."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from gridx.schemas import JobView, Limits
from gridx.updates import Finished
from gridx_jupyter.magics.render import StatusLine, footer_text, progress_text

from .test_publish import RecordingScreen

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def view(**fields: Any) -> JobView:
    job = JobView(
        job_id="job_1",
        user_id="u",
        status="queued",
        language="python",
        kind="cell",
        limits=Limits(),
        reserved=6.0,
        cost=0.0,
        attempt=0,
        created_at=NOW,
    )
    return msgspec.structs.replace(job, **fields)


@pytest.mark.parametrize(
    ("fields", "seconds", "text"),
    [
        ({}, 0, "queued"),
        ({"waiting": "3 workers online: 1 busy"}, 0, "queued (3 workers online: 1 busy)"),
        ({"status": "running", "worker_name": "anna"}, 0, "starting on anna"),
        (
            {"status": "running", "worker_name": "anna", "started_at": NOW},
            72.9,
            "running 01:12 on anna",
        ),
        (
            {"status": "running", "worker_name": "an\x1b[2Jna\n", "started_at": NOW},
            0,
            "running 00:00 on anna",
        ),
    ],
)
def test_progress_says_how_the_job_stands(
    fields: dict[str, Any], seconds: float, text: str
) -> None:
    assert progress_text(view(**fields), seconds) == text


def test_a_lost_connection_is_said() -> None:
    assert "reconnecting" in progress_text(view(), 0, connected=False)


def test_the_footer_says_worker_time_cost_and_balance() -> None:
    done = view(status="completed", worker_name="anna", elapsed_s=5.25, attempt=1)
    text = footer_text(Finished(done, 520_000, 99_480_000, 0, None))
    assert text == "completed on anna in 5.2 s · cost 0.52 · balance 99.48 · job_1"


def test_the_footer_says_that_a_worker_was_lost() -> None:
    done = view(status="completed", attempt=2)
    assert "attempt 2, a worker was lost" in footer_text(
        Finished(done, 0, None, None, None), attempts_lost=1
    )


class Line:
    """A status line on a recording screen, with a clock that the test moves."""

    def __init__(self, *, frontend: bool = True, terminal: bool = False, quiet: bool = False):
        self.screen = RecordingScreen()
        self.screen.is_frontend, self.screen.is_terminal = frontend, terminal
        self.now_s = 0.0
        self.line = StatusLine(self.screen, quiet=quiet, clock=lambda: self.now_s)  # type: ignore[arg-type]


def test_the_line_is_one_display_and_changes_at_most_four_times_a_second() -> None:
    it = Line()
    for tick in range(100):
        it.now_s = tick / 100
        it.line.show(f"running {tick}")
    it.line.finish("done", ["a note"])
    kinds = [said[0] for said in it.screen.said]
    assert kinds == ["display", "update", "update", "update", "update"]
    assert len({said[3] for said in it.screen.said}) == 1
    assert it.screen.said[-1][1] == {"text/plain": "Grid-X: done\n  a note"}


def test_quiet_shows_notes_alone() -> None:
    it = Line(quiet=True)
    it.line.show("running")
    it.line.finish("done", ["x was kept"])
    assert it.screen.said == [("stderr", "Grid-X: x was kept\n")]


def test_a_terminal_has_one_line_that_is_written_over() -> None:
    it = Line(frontend=False, terminal=True)
    it.line.show("running 00:10")
    it.now_s = 1
    it.line.finish("done")
    assert it.screen.said == [
        ("stderr", "\rGrid-X: running 00:10"),
        ("stderr", "\rGrid-X: done         \n"),
    ]


def test_without_a_terminal_only_the_last_line_is_written() -> None:
    it = Line(frontend=False)
    it.line.show("running")
    it.line.finish("done")
    assert it.screen.said == [("stderr", "Grid-X: done\n")]
