"""The one line of a remote cell."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from gridx.schemas import JobView, Limits
from gridx.updates import Finished
from gridx_jupyter.magics.render import StatusLine, footer_text, progress_text, should_notify

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
            {
                "status": "running",
                "worker_name": "anna",
                "waiting": "Installing 3 packages: downloading",
            },
            0,
            "starting on anna (Installing 3 packages: downloading)",
        ),
        (
            {
                "status": "running",
                "worker_name": "anna",
                "started_at": NOW,
                "waiting": "Paused by its lender; time and cost stand still",
            },
            72.9,
            "standing still at 01:12 on anna (Paused by its lender; time and cost stand still)",
        ),
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

    def __init__(
        self,
        *,
        frontend: bool = True,
        terminal: bool = False,
        quiet: bool = False,
        progress: str = "auto",
    ) -> None:
        self.screen = RecordingScreen()
        self.screen.is_frontend, self.screen.is_terminal = frontend, terminal
        self.now_s = 0.0
        self.line = StatusLine(
            self.screen,  # type: ignore[arg-type]
            quiet=quiet,
            progress=progress,
            clock=lambda: self.now_s,
        )


def test_the_line_is_one_display_and_changes_at_most_four_times_a_second() -> None:
    it = Line()
    for tick in range(100):
        it.now_s = tick / 100
        it.line.show(f"running {tick}")
    it.line.finish("done", ["a note"])
    kinds = [said[0] for said in it.screen.said]
    assert kinds == ["display", "update", "update", "update", "update"]
    assert len({said[3] for said in it.screen.said}) == 1
    last = it.screen.said[-1][1]
    assert last["text/plain"] == "Grid-X: done\n  a note"
    assert last["text/html"].count("a note") == 1


def test_the_line_is_html_that_shows_names_as_they_are() -> None:
    it = Line()
    it.line.finish("completed on <img src=x onerror=x()>", ["`%gridx logs job_1` shows <b>"])
    html = it.screen.said[-1][1]["text/html"]
    assert "✓ completed on &lt;img src=x onerror=x()&gt;" in html
    assert "<code>%gridx logs job_1</code> shows &lt;b&gt;" in html
    assert "<img" not in html


def test_what_is_sent_has_a_bar() -> None:
    text = progress_text(view(), 0, sent=(120 << 20, 400 << 20))
    assert text == "sending 120/400 MiB"
    assert progress_text(view(), 0, received=(1, 2048)) == "receiving 0.0/2.0 KiB"
    it = Line()
    it.line.show(text)
    assert '<progress max="100" value="30">' in it.screen.said[0][1]["text/html"]


def test_text_has_no_html_and_off_has_the_last_line_alone() -> None:
    it = Line(progress="text")
    it.line.show("running")
    assert it.screen.said[0][1] == {"text/plain": "Grid-X: running"}
    it = Line(progress="off")
    it.line.show("running")
    it.line.finish("done")
    assert [said[0] for said in it.screen.said] == ["display"]


def test_a_widget_is_a_label_and_the_last_line_needs_none() -> None:
    it = Line(progress="widget")
    it.line.show("running 1")
    first = it.screen.said[0][1]
    assert "application/vnd.jupyter.widget-view+json" in first
    assert first["text/plain"] == "Grid-X: running 1"
    it.now_s = 1
    it.line.show("running 2")
    assert len(it.screen.said) == 1
    it.line.finish("done")
    assert it.screen.said[-1][0] == "update"
    assert it.screen.said[-1][1].keys() == {"text/plain", "text/html"}


def test_a_long_cell_ends_with_a_bell_or_with_a_chime() -> None:
    assert should_notify(61, 60)
    assert not should_notify(59, 60)
    assert not should_notify(61, None)
    it = Line(frontend=False, terminal=True)
    it.line.finish("done")
    it.line.notify()
    assert it.screen.said[-1] == ("stderr", "\a\x1b]9;Grid-X: done\a")
    it = Line()
    it.line.finish("done")
    it.line.notify()
    kind, data, _, display_id = it.screen.said[-1]
    assert (kind, display_id) == ("update", it.line.display_id)
    assert '<audio autoplay src="data:audio/wav;base64,' in data["text/html"]


def test_a_line_that_is_wider_than_the_terminal_is_cut_while_it_is_written_over() -> None:
    it = Line(frontend=False, terminal=True)
    it.line.show("x" * 1_000)
    assert len(it.screen.said[0][1]) < 1_000
    it.now_s = 1
    it.line.finish("y" * 1_000)
    assert it.screen.said[-1][1].endswith("y" * 100 + "\n")


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
