"""What a job may put into the cell that asked, and what it may not."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from gridx.events import (
    ClearOutput,
    DisplayData,
    ErrorOutput,
    Event,
    ExecuteResult,
    OutputDropped,
    Stream,
    UpdateDisplayData,
)
from gridx_jupyter.magics import publish
from gridx_jupyter.magics.publish import Publisher
from gridx_jupyter.magics.render import StatusLine


class RecordingScreen:
    """Stands for a front end; keeps what it was told."""

    is_frontend = True
    is_terminal = False

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def write(self, name: str, text: str) -> None:
        self.said.append((name, text))

    def flush(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def display(
        self, data: dict[str, str], metadata: dict[str, Any], display_id: str | None = None
    ) -> None:
        self.said.append(("display", data, metadata, display_id))

    def update(self, data: dict[str, str], metadata: dict[str, Any], display_id: str) -> None:
        self.said.append(("update", data, metadata, display_id))

    def result(self, data: dict[str, str], metadata: dict[str, Any]) -> None:
        self.said.append(("result", data, metadata))

    def clear(self, *, wait: bool) -> None:
        self.said.append(("clear", wait))


def show(*events: Event) -> tuple[list[tuple[Any, ...]], Publisher]:
    screen = RecordingScreen()
    publisher = Publisher(screen, StatusLine(screen, quiet=True), "job_1")  # type: ignore[arg-type]
    for event in events:
        publisher.publish(event)
    publisher.finish()
    return screen.said, publisher


def picture() -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (2, 2)).save(target, "png")
    return target.getvalue()


def test_everything_comes_in_its_order() -> None:
    said, _ = show(
        Stream(name="stdout", text="a\n"),
        Stream(name="stderr", text="b\n"),
        DisplayData(data={"text/plain": "c"}),
        Stream(name="stdout", text="d\n"),
        ExecuteResult(data={"text/plain": "e"}),
    )
    assert said == [
        ("stdout", "a\n"),
        ("stderr", "b\n"),
        ("display", {"text/plain": "c"}, {}, None),
        ("stdout", "d\n"),
        ("result", {"text/plain": "e"}, {}),
    ]


def test_rich_output_is_shown_with_its_treatment_and_a_note_says_what_was_left_out() -> None:
    said, publisher = show(
        DisplayData(
            data={"text/plain": "<Figure>", "text/html": "<b>x</b><img src=x onerror=x()>"},
            binary={"image/png": picture()},
        )
    )
    assert set(said[0][1]) == {"text/plain", "text/html", "image/png"}
    assert said[0][1]["text/html"] == "<b>x</b>[picture]"
    assert publisher.notes() == [
        "onerror in text/html left out; --show interactive shows it in a sandboxed frame"
    ]


@pytest.mark.parametrize(
    "mime",
    [
        "text/html",
        "application/javascript",
        "image/svg+xml",
        "application/vnd.jupyter.widget-view+json",
    ],
)
@pytest.mark.parametrize("kind", [DisplayData, ExecuteResult])
def test_a_hostile_bundle_leaves_one_harmless_line(mime: str, kind: Any) -> None:
    said, publisher = show(kind(data={mime: "<script>x</script>"}, metadata={"isolated": True}))
    (note,) = publisher.notes()
    assert said[0][1:3] == ({"text/plain": f"[not shown: {note}]"}, {})
    assert "left out" in note
    assert mime in note


def test_many_kinds_make_few_notes() -> None:
    events = [DisplayData(data={f"application/x-{n}": "x", "text/plain": "t"}) for n in range(500)]
    _, publisher = show(*events)
    notes = publisher.notes()
    assert len(notes) == 9
    assert notes[-1] == "more of what it showed was left out"


def test_on_the_users_word_html_stands_in_a_frame_below_the_workers_name() -> None:
    screen = RecordingScreen()
    publisher = Publisher(screen, StatusLine(screen, quiet=True), "job_1")  # type: ignore[arg-type]
    publisher.show, publisher.worker = "interactive", "an\x1b[2Jna <b>"
    publisher.publish(DisplayData(data={"text/html": "<script>draw()</script>"}))
    html = screen.said[0][1]["text/html"]
    assert "Shown by worker anna &lt;b&gt; in a frame of its own" in html
    assert 'sandbox="allow-scripts"' in html


def test_updates_come_no_faster_than_a_page_follows_and_the_last_one_counts() -> None:
    screen, now = RecordingScreen(), [0.0]
    publisher = Publisher(
        screen,  # type: ignore[arg-type]
        StatusLine(screen, quiet=True),  # type: ignore[arg-type]
        "job_1",
        clock=lambda: now[0],
    )
    publisher.publish(DisplayData(data={"text/plain": "0"}, display_id="x"))
    for n in range(1, 101):
        now[0] += 0.01
        publisher.publish(UpdateDisplayData(data={"text/plain": str(n)}, display_id="x"))
    updates = [said[1]["text/plain"] for said in screen.said if said[0] == "update"]
    assert len(updates) <= 11
    publisher.publish(Stream(name="stdout", text="end"))
    assert [said[0] for said in screen.said[-2:]] == ["update", "stdout"]
    assert screen.said[-2][1] == {"text/plain": "100"}


def test_a_bar_that_is_written_over_counts_once() -> None:
    bar = [Stream(name="stdout", text="\r" + "#" * 1_000) for _ in range(5_000)]
    said, _ = show(Stream(name="stdout", text="x" * 998_000), *bar)
    assert len(said) == 5_001
    assert not any(name == "stderr" for name, _ in said)


def test_a_bar_that_never_ends_is_cut_all_the_same() -> None:
    bar = [Stream(name="stdout", text="\r" + "#" * 500_000) for _ in range(60)]
    said, _ = show(*bar)
    assert said[-1][0] == "stderr"
    assert len(said) < 50


def test_an_animation_that_clears_what_it_drew_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "MAX_DISPLAYS", 3)
    frames = [ClearOutput(wait=True), DisplayData(data={"text/plain": "x"})] * 20
    said, _ = show(*frames)
    assert [kind for kind, *_ in said] == ["clear", "display"] * 20
    said, _ = show(*frames * 10)
    assert said[-1][0] == "stderr"


def test_a_display_id_of_a_worker_is_never_ours() -> None:
    said, _ = show(
        DisplayData(data={"text/plain": "1"}, display_id="users-own-plot"),
        UpdateDisplayData(data={"text/plain": "2"}, display_id="users-own-plot"),
    )
    assert said[0][3] == said[1][3]
    assert said[0][3] not in (None, "users-own-plot")


def test_an_update_of_what_this_cell_did_not_show_does_nothing() -> None:
    said, _ = show(UpdateDisplayData(data={"text/plain": "mine now"}, display_id="users-own-plot"))
    assert said == []


def test_ids_do_not_carry_over_from_an_attempt_that_was_lost() -> None:
    screen = RecordingScreen()
    publisher = Publisher(screen, StatusLine(screen, quiet=True), "job_1")  # type: ignore[arg-type]
    publisher.publish(DisplayData(data={"text/plain": "1"}, display_id="x"))
    publisher.restart()
    publisher.publish(UpdateDisplayData(data={"text/plain": "2"}, display_id="x"))
    assert [said[0] for said in screen.said] == ["display", "clear"]


def test_escapes_are_removed_and_colours_end_with_the_cell() -> None:
    said, _ = show(
        Stream(name="stdout", text="\x1b[31mred\x1b]0;ow"),
        Stream(name="stdout", text="ned\x07\x1b[2J."),
    )
    assert said == [("stdout", "\x1b[31mred"), ("stdout", "."), ("stdout", "\x1b[0m")]


def test_only_the_first_result_is_the_cells_value() -> None:
    said, _ = show(*[ExecuteResult(data={"text/plain": str(n)}) for n in range(3)])
    assert said == [("result", {"text/plain": "0"}, {})]


def test_text_above_the_limit_is_cut_once_with_the_command_that_shows_the_rest() -> None:
    said, _ = show(*[Stream(name="stdout", text="x" * 400_000) for _ in range(5)])
    shown = sum(len(text) for name, text in said if name == "stdout")
    assert shown == publish.MAX_TEXT_CHARS
    notices = [text for name, text in said if name == "stderr"]
    assert len(notices) == 1
    assert "%gridx logs job_1" in notices[0]


def test_too_many_displays_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "MAX_DISPLAYS", 3)
    said, _ = show(*[DisplayData(data={"text/plain": "x"}) for _ in range(10)])
    assert [kind for kind, *_ in said] == ["display"] * 3 + ["stderr"]


def test_clear_with_wait_clears_when_the_next_output_comes() -> None:
    said, _ = show(
        Stream(name="stdout", text="1"), ClearOutput(wait=True), Stream(name="stdout", text="2")
    )
    assert said == [("stdout", "1"), ("clear", True), ("stdout", "2")]


def test_clear_clears_at_once() -> None:
    said, _ = show(Stream(name="stdout", text="1"), ClearOutput())
    assert said == [("stdout", "1"), ("clear", False)]


def test_dropped_output_and_errors_are_marked_and_kept() -> None:
    said, publisher = show(OutputDropped(dropped_bytes=2048), ErrorOutput(error={"type": "E"}))
    assert "2 KiB of output left out" in said[0][1]
    assert publisher.error == {"type": "E"}
