"""The host's parser of what comes out of a sandbox: every cut, and every lie."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridx.errors import SandboxError
from gridx.resources import Usage
from gridx.states import Cause
from worker.runtime.frames import (
    MAX_EVENTS_BYTES,
    CallExited,
    Events,
    Exited,
    FromSupervisor,
    Ready,
    Result,
    encode_frame,
)
from worker.runtime.records import MAX_RESULT_RECORD_BYTES
from worker.sandbox.frames import (
    FRAMES_BURST,
    FRAMES_PER_S,
    MAX_FRAME_BYTES,
    MAX_SMALL_BYTES,
    MAX_STDERR_BYTES,
    MAX_STDERR_SAID_BYTES,
    AttachDemultiplexer,
    FrameAllowance,
    FrameParser,
)

FRAMES: list[FromSupervisor] = [
    Ready(python="3.11.2", filtered=True),
    Events(data=b"\0\0\0\1a"),
    Result(data=b"r" * 1000),
    Exited(cause=Cause.COMPLETED, exit_code=0, usage=Usage(wall_s=0.5)),
]


def attach(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


@given(st.lists(st.integers(1, 400), max_size=40), st.lists(st.integers(1, 300), max_size=40))
def test_frames_survive_any_cut_of_the_pieces_and_of_the_reads(
    pieces: list[int], reads: list[int]
) -> None:
    data = b"".join(encode_frame(frame) for frame in FRAMES)
    attached, at = b"", 0
    for size in [*pieces, len(data)]:
        attached += attach(1, data[at : at + size]) + attach(2, b"log")
        at += size
    streams, parser, got = AttachDemultiplexer(), FrameParser(), []
    at = 0
    for size in [*reads, len(attached)]:
        for piece in streams.feed(attached[at : at + size]):
            got += [frame for frame, _ in parser.feed(piece)]
        at += size
    assert got == FRAMES
    assert parser.buffered_bytes == 0
    assert streams.stderr == b"log" * (len(pieces) + 1)


def test_only_the_last_of_stderr_is_kept() -> None:
    streams = AttachDemultiplexer()
    assert list(streams.feed(attach(2, b"a" * MAX_STDERR_BYTES) + attach(2, b"end"))) == []
    assert len(streams.stderr) == MAX_STDERR_BYTES
    assert streams.stderr.endswith(b"end")


@pytest.mark.parametrize(
    "header", [b"\3\0\0\0\0\0\0\1", b"\1\0\1\0\0\0\0\1", b"\1\0\0\0\xff\xff\xff\xff", b"HTTP/1.1"]
)
def test_what_is_no_attach_stream_is_refused(header: bytes) -> None:
    with pytest.raises(SandboxError):
        list(AttachDemultiplexer().feed(header))


def test_stderr_without_an_end_is_refused() -> None:
    streams = AttachDemultiplexer()
    with pytest.raises(SandboxError, match="error bytes"):
        for _ in range(MAX_STDERR_SAID_BYTES // MAX_STDERR_BYTES + 1):
            list(streams.feed(attach(2, bytes(MAX_STDERR_BYTES))))
    assert len(streams.stderr) == MAX_STDERR_BYTES


@pytest.mark.parametrize(
    "frame",
    [
        Events(data=bytes(MAX_EVENTS_BYTES + 1)),
        Result(data=bytes(MAX_RESULT_RECORD_BYTES + 1)),
        Ready(python="3" * MAX_SMALL_BYTES, filtered=True),
        Exited(cause=Cause.ERROR, message="x" * MAX_SMALL_BYTES, usage=Usage()),
        CallExited(call=0, cause=Cause.ERROR, message="x" * MAX_SMALL_BYTES, usage=Usage()),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_each_kind_of_frame_has_a_size_of_its_own(frame: FromSupervisor) -> None:
    with pytest.raises(SandboxError, match=f"A {type(frame).__name__} frame of"):
        FrameParser().feed(encode_frame(frame))


@pytest.mark.parametrize(
    "lie",
    [
        {"usage": Usage(wall_s=math.nan)},
        {"usage": Usage(cpu_s=math.inf)},
        {"usage": Usage(wall_s=-5.0)},
        {"usage": Usage(peak_memory_bytes=-1)},
        {"usage": Usage(output_bytes=1 << 63)},
        {"exit_code": -9},
        {"exit_code": 1 << 63},
    ],
    ids=str,
)
def test_an_end_that_cannot_be_is_refused(lie: dict[str, Any]) -> None:
    said = {"cause": Cause.COMPLETED, "exit_code": 0, "usage": Usage()} | lie
    for frame in (Exited(**said), CallExited(call=0, **said)):
        with pytest.raises(SandboxError, match="none that there is"):
            FrameParser().feed(encode_frame(frame))


def test_frames_are_counted_against_the_clock() -> None:
    allowance = FrameAllowance()
    allowance.take(int(FRAMES_BURST), 5.0)
    allowance.take(int(FRAMES_PER_S), 6.0)
    with pytest.raises(SandboxError, match="More frames"):
        allowance.take(1, 6.0)
    allowance = FrameAllowance()
    for second in range(10_000):  # what a supervisor sends, all day long
        allowance.take(1000, float(second))


@pytest.mark.parametrize("size", [MAX_FRAME_BYTES + 1, 4294967280])
def test_an_oversize_length_is_refused_before_anything_is_kept(size: int) -> None:
    with pytest.raises(SandboxError, match="bytes came out"):
        FrameParser().feed(size.to_bytes(4, "big"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"{}",
        b"\x81\xa4type\xa3run",
        b"\x81\xa4type\xa6exited",
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_what_is_no_frame_of_a_supervisor_is_refused(body: bytes) -> None:
    with pytest.raises(SandboxError, match="malformed"):
        FrameParser().feed(len(body).to_bytes(4, "big") + body)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_end_the_sandbox(data: bytes) -> None:
    try:
        FrameParser().feed(data)
    except SandboxError:
        pass
