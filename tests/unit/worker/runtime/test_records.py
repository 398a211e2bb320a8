"""The supervisor's reading of bytes from a stranger."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridx.errors import ProtocolError
from worker.runtime.records import (
    DONE,
    EVENTS,
    RESULT,
    WARM,
    Done,
    RecordReader,
    RecordWriter,
    decode_done,
)


def written(
    *calls: tuple[int, bytes], end: tuple[bytes, bytes | None, Done] | None = None
) -> bytes:
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
    data = written((WARM, b""), end=(b"abc", b"result", done))
    reader = RecordReader(max_result_bytes=100)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    records = [
        record for start, stop in pairwise(edges) for record in reader.feed(data[start:stop])
    ]
    assert records[:3] == [(WARM, b""), (EVENTS, b"abc"), (RESULT, b"result")]
    kind, body = records[3]
    assert kind == DONE
    assert decode_done(body) == done


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
