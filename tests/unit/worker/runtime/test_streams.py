"""Order, gathering and progress bars of the job's output."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from gridx.events import ClearOutput, Stream, decode_events
from worker.runtime.streams import (
    MAX_STREAM_CHARS,
    JobStream,
    OutputCapture,
    collapse_progress,
    encode_stream,
)


class Captured:
    """An OutputCapture without its thread, and what it has sent."""

    def __init__(self) -> None:
        self.out_read, self.out = os.pipe()
        self.err_read, self.err = os.pipe()
        self.sent: list[bytes] = []
        self.capture = OutputCapture((self.out_read, self.err_read), self.sent.append)
        self.stdout = JobStream(self.capture, 0)
        self.stderr = JobStream(self.capture, 1)

    def texts(self) -> list[tuple[str, str]]:
        with self.capture.finished() as last:
            self.sent.append(last)
        events = decode_events(b"".join(self.sent))
        return [
            (e.name, e.text) if isinstance(e, Stream) else ("", e.__class__.__name__)
            for e in events
        ]

    def text(self) -> str:
        return "".join(text for _, text in self.texts())


@pytest.fixture
def captured() -> Iterator[Captured]:
    captured = Captured()
    yield captured
    for fd in (captured.out_read, captured.out, captured.err_read, captured.err):
        os.close(fd)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n", "plain\n"),
        ("\r 1%\r 2%\r100%\n", "\r100%\n"),
        ("a\r\nb\r\n", "a\r\nb\r\n"),
        ("\rlonger\rshort", "\rshortr"),
        ("kept\r1\r2", "kept\r2"),
        ("10%\r20%\r", "10%\r20%\r"),
        ("\r1\r2\r\nnext", "\r2\r\nnext"),
        ("\r\x1b[31m1\r\x1b[31m2", "\r\x1b[31m1\r\x1b[31m2"),
        ("\r1\r2\n\r3\r4\n", "\r2\n\r4\n"),
        ("\r\r\r", "\r\r"),
    ],
)
def test_a_progress_bar_keeps_only_its_last_state(text: str, shown: str) -> None:
    assert collapse_progress(text) == shown


def test_text_in_both_streams_and_in_the_pipes_keeps_its_order(captured: Captured) -> None:
    captured.stdout.write("a\n")
    captured.stderr.write("b\n")
    os.write(captured.out, b"c\n")
    captured.stderr.write("d\n")
    os.write(captured.err, b"e\n")
    captured.stdout.write("f\n")
    assert captured.text() == "a\nb\nc\nd\ne\nf\n"
    assert [name for name, _ in captured.texts()][:2] == ["stdout", "stderr"]


def test_a_display_comes_after_what_was_written_before_it(captured: Captured) -> None:
    captured.stdout.write("no newline")
    os.write(captured.out, b" from C")
    captured.capture.publish(ClearOutput())
    captured.stdout.write("after")
    assert [text for _, text in captured.texts()] == ["no newline from C", "ClearOutput", "after"]


def test_what_is_said_at_the_end_waits_for_company_and_keeps_its_place(captured: Captured) -> None:
    captured.stdout.write("before")
    captured.capture.publish_with_next(ClearOutput())
    assert captured.sent == []
    captured.stdout.write("after")
    captured.capture.sync()
    assert len(captured.sent) == 1
    assert [text for _, text in captured.texts()] == ["before", "ClearOutput", "after"]


def test_a_line_after_quiet_is_sent_at_once(captured: Captured) -> None:
    captured.stdout.write("line\n")
    assert len(captured.sent) == 1


def test_a_burst_is_gathered(captured: Captured) -> None:
    for number in range(1000):
        captured.stdout.write(f"{number}\n")
    assert captured.text() == "".join(f"{number}\n" for number in range(1000))
    assert len(captured.sent) < 200


def test_characters_cut_between_two_writes_arrive_whole(captured: Captured) -> None:
    first, second = "é".encode()[:1], "é".encode()[1:]
    os.write(captured.out, first)
    captured.capture.flush()
    os.write(captured.out, second)
    assert captured.text() == "é"


def test_what_is_not_utf8_is_shown_as_a_replacement(captured: Captured) -> None:
    os.write(captured.out, b"\xff ok")
    captured.stdout.write("\ud800")
    assert captured.text() == "\ufffd ok\\ud800"


def test_half_a_character_at_the_end_is_not_lost(captured: Captured) -> None:
    os.write(captured.out, "é".encode()[:1])
    assert captured.text() == "\ufffd"


def test_a_huge_write_becomes_events_of_bounded_size(captured: Captured) -> None:
    captured.stdout.write("x" * (3 * MAX_STREAM_CHARS + 1))
    assert [len(text) for _, text in captured.texts()] == [MAX_STREAM_CHARS] * 3 + [1]


def test_bytes_written_to_the_buffer_join_the_text(captured: Captured) -> None:
    captured.stdout.write("a")
    captured.stdout.buffer.write("é".encode())
    captured.stdout.write("b")
    assert captured.text() == "aéb"


def test_a_stream_is_what_libraries_expect_of_stdout(captured: Captured) -> None:
    assert captured.stdout.fileno() == 1 and captured.stderr.fileno() == 2
    assert not captured.stdout.isatty()
    assert captured.stdout.writable()
    assert captured.stdout.encoding == "utf-8"
    captured.stdout.reconfigure(line_buffering=True)
    with pytest.raises(TypeError, match="must be str, not bytes"):
        captured.stdout.write(b"x")  # type: ignore[arg-type]
    captured.stdout.close()
    captured.stdout.write("still open")
    assert captured.text() == "still open"


def test_a_job_that_closed_the_pipes_can_still_write(captured: Captured) -> None:
    spare = os.dup(captured.out_read)
    os.close(captured.out_read)
    try:
        captured.stdout.write("a\n")
        assert captured.text() == "a\n"
    finally:
        os.dup2(spare, captured.out_read)
        os.close(spare)


def test_events_carry_the_call() -> None:
    [event] = decode_events(b"".join(encode_stream(7, 1, "x")))
    assert event == Stream(call=7, name="stderr", text="x")


# ---------------------------------------------------------------- calls of a session


def next_pipes(captured: Captured, call: int) -> tuple[int, int]:
    """Begin a call with pipes of its own; return their write ends."""
    (out_read, out), (err_read, err) = os.pipe(), os.pipe()
    captured.capture.begin_call(call, (out_read, err_read))
    return out, err


def calls(captured: Captured) -> list[tuple[int, str]]:
    with captured.capture.finished() as last:
        captured.sent.append(last)
    events = decode_events(b"".join(captured.sent))
    return [(e.call, e.text) for e in events if isinstance(e, Stream)]


def test_a_pipe_of_an_earlier_call_speaks_for_that_call(captured: Captured) -> None:
    captured.capture.begin_call(1, None)
    os.write(captured.out, b"one\n")
    out, err = next_pipes(captured, 2)
    captured.stdout.write("two\n")
    os.write(captured.out, b"late\n")
    os.write(err, b"error\n")
    os.close(out)
    os.close(err)
    assert calls(captured) == [(1, "one\n"), (2, "two\n"), (1, "late\n"), (2, "error\n")]


def test_half_a_character_of_a_call_is_not_completed_by_the_next(captured: Captured) -> None:
    captured.capture.begin_call(1, None)
    os.write(captured.out, "é".encode()[:1])
    out, err = next_pipes(captured, 2)
    os.write(out, "é".encode()[1:])
    os.close(out)
    os.close(err)
    assert calls(captured) == [(1, "\ufffd"), (2, "\ufffd")]


def test_a_pipe_that_nobody_writes_to_any_more_is_let_go() -> None:
    captured = Captured()
    out, err = next_pipes(captured, 2)
    for fd in (captured.out, captured.err, out, err):
        os.close(fd)
    captured.stdout.write("x")
    with captured.capture.finished():
        pass
    assert [pipe.call for pipe in captured.capture._pipes] == [2, 2]
    for fd in (captured.out_read, captured.err_read):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    for pipe in captured.capture._pipes:
        os.close(pipe.fd)


def test_an_interrupt_that_met_a_write_is_raised_when_it_is_whole(captured: Captured) -> None:
    captured.capture.is_interrupted = True
    with pytest.raises(KeyboardInterrupt):
        captured.stdout.write("whole\n")
    captured.stdout.write("on\n")
    assert captured.text() == "whole\non\n"


def test_an_interrupt_is_raised_in_the_main_thread_alone(captured: Captured) -> None:
    captured.capture.is_interrupted = True
    thread = threading.Thread(target=captured.stdout.write, args=("x",))
    thread.start()
    thread.join()
    assert captured.capture.is_interrupted
