"""The supervisor's reading of bytes from a stranger."""

from __future__ import annotations

import os
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridx.errors import ProtocolError
from worker.runtime.records import (
    DONE,
    EVENTS,
    MAX_RESULT_RECORD_BYTES,
    RESULT,
    RESULT_RECORD_BYTES,
    WARM,
    Done,
    RecordReader,
    RecordWriter,
    decode_done,
)


def written(*calls: tuple[int, bytes], end: tuple[bytes, list[bytes], Done] | None = None) -> bytes:
    """Return what a writer puts into its pipe."""
    reading, writing = os.pipe()
    writer = RecordWriter(writing)
    for kind, body in calls:
        writer.send(kind, body)
    if end is not None:
        writer.end(*end)
    writer.close()
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read()


@given(cuts=st.lists(st.integers(0, 80), max_size=8))
def test_records_arrive_whole_however_the_pipe_cuts_them(cuts: list[int]) -> None:
    done = Done(completed=False, exit_code=3, message="why")
    data = written((WARM, b""), end=(b"abc", [b"result"], done))
    reader = RecordReader(max_result_bytes=100)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    records = [
        record for start, stop in pairwise(edges) for record in reader.feed(data[start:stop])
    ]
    assert records[:3] == [(WARM, b""), (EVENTS, b"abc"), (RESULT, b"result")]
    kind, body = records[3]
    assert kind == DONE
    assert decode_done(body) == done


def test_the_pieces_of_a_result_come_in_order_between_the_last_events_and_the_end() -> None:
    pieces = [bytes([n]) * RESULT_RECORD_BYTES for n in range(3)] + [b"rest"]
    reading, writing = os.pipe()
    writer = RecordWriter(writing)
    done = Done(completed=True, exit_code=0)
    thread = threading.Thread(target=lambda: (writer.end(b"abc", pieces, done), writer.close()))
    thread.start()  # the pipe holds less than the pieces
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    thread.join()
    reader = RecordReader(max_result_bytes=len(b"".join(pieces)))
    records = list(reader.feed(data))
    assert [kind for kind, _ in records] == [EVENTS, *[RESULT] * 4, DONE]
    assert [body for kind, body in records if kind == RESULT] == pieces


def test_the_pieces_of_a_result_are_counted_together_and_anew_for_each_call() -> None:
    reader = RecordReader(max_result_bytes=0)
    for _ in range(2):
        reader.limit_result(5)
        assert len(list(reader.feed(written((RESULT, b"abc"), (RESULT, b"de"))))) == 2
    with pytest.raises(ProtocolError):
        list(reader.feed(written((RESULT, b"f"))))


def test_one_piece_may_not_be_larger_than_a_blob() -> None:
    reader = RecordReader(max_result_bytes=1 << 40)
    header = bytes([RESULT]) + (MAX_RESULT_RECORD_BYTES + 1).to_bytes(4, "big")
    with pytest.raises(ProtocolError):
        list(reader.feed(header))


def test_a_result_above_the_jobs_own_limit_is_refused() -> None:
    reader = RecordReader(max_result_bytes=100)
    reader.limit_result(3)
    with pytest.raises(ProtocolError):
        list(reader.feed(written((RESULT, b"four"))))


@pytest.mark.parametrize(
    "garbage",
    [b"\x00\x00\x00\x00\x00", b"\x63\0\0\0\0", b"\x02\xff\xff\xff\xf0", b"\x01\0\0\0\x01x"],
)
def test_garbage_is_refused_at_its_first_header(garbage: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(RecordReader(max_result_bytes=100).feed(garbage))


@given(garbage=st.binary(max_size=200))
def test_no_bytes_break_the_reader(garbage: bytes) -> None:
    try:
        list(RecordReader(max_result_bytes=100).feed(garbage))
    except ProtocolError:
        pass


@given(garbage=st.binary(max_size=100))
def test_no_bytes_break_the_last_record(garbage: bytes) -> None:
    try:
        decode_done(garbage)
    except ProtocolError:
        pass
