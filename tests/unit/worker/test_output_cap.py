"""The output limit: the head goes through, the tail is kept, the rest is counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridx.errors import ProtocolError
from gridx.events import OutputDropped, Stream, decode_events, encode_event
from worker.output_cap import OutputCap, checked_events


def line(number: int, size: int = 0) -> bytes:
    return encode_event(Stream(name="stdout", text=f"{number} " + "x" * size))


def numbers(data: bytes) -> list[int]:
    return [int(e.text.split()[0]) for e in decode_events(data) if isinstance(e, Stream)]


def test_output_below_the_limit_is_untouched() -> None:
    cap = OutputCap(head_bytes=1000, tail_bytes=100)
    data = line(1) + line(2)
    assert cap.accept(data) == data
    assert cap.finish() == b""
    assert cap.dropped_bytes == 0


def test_above_the_limit_head_and_tail_are_kept_with_one_marker_between() -> None:
    size = len(line(1000))
    cap = OutputCap(head_bytes=10 * size, tail_bytes=5 * size)
    head = b"".join(cap.accept(line(1000 + i)) for i in range(100))
    tail = cap.finish()
    assert numbers(head) == list(range(1000, 1010))
    assert numbers(tail) == list(range(1095, 1100))
    markers = [event for event in decode_events(tail) if isinstance(event, OutputDropped)]
    assert markers == [OutputDropped(dropped_bytes=85 * size)]
    assert next(decode_events(tail)) == markers[0]
    assert cap.dropped_bytes == 85 * size


def test_a_tail_that_fits_has_no_marker() -> None:
    size = len(line(1000))
    cap = OutputCap(head_bytes=2 * size, tail_bytes=5 * size)
    head = b"".join(cap.accept(line(1000 + i)) for i in range(4))
    assert numbers(head + cap.finish()) == [1000, 1001, 1002, 1003]
    assert cap.dropped_bytes == 0


def test_after_the_limit_a_smaller_event_does_not_slip_into_the_head() -> None:
    cap = OutputCap(head_bytes=100, tail_bytes=1000)
    assert cap.accept(line(1, 200)) == b""
    assert cap.accept(line(2)) == b""
    assert numbers(cap.finish()) == [1, 2]


@given(st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=5), max_size=40))
def test_nothing_is_lost_uncounted_or_reordered(pieces: list[list[int]]) -> None:
    cap = OutputCap(head_bytes=400, tail_bytes=150)
    number, sizes, head = 0, {}, b""
    for piece in pieces:
        data = b""
        for size in piece:
            data += (event := line(number, size))
            sizes[number] = len(event)
            number += 1
        head += cap.accept(data)
    tail = cap.finish()
    kept = numbers(head) + numbers(tail)
    assert kept == sorted(set(kept))
    assert cap.dropped_bytes == sum(sizes.values()) - sum(sizes[n] for n in kept)
    assert len(head) <= 400


@pytest.mark.parametrize(
    "data",
    [
        encode_event(OutputDropped(dropped_bytes=1)),
        encode_event(Stream(name="stdout", text="x", call=1)),
        b"\0\0\0\1\xc1",
        b"\0\0\0\5abc",
        b"\xff\xff\xff\xff",
    ],
)
def test_a_job_cannot_say_what_is_not_its_own(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        checked_events(data, call=0, first=0)


def test_events_of_the_call_are_accepted() -> None:
    assert checked_events(line(1) + line(2), call=0, first=0)
