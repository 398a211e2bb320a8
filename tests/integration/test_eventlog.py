"""Segment files: no gap, no byte twice, and a valid prefix of whatever was damaged."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.eventlog import records
from coordinator.eventlog.base import EventLog
from coordinator.eventlog.segments import SegmentLog
from gridx.errors import InvalidRequest, PayloadTooLarge, ProtocolError, TransportError
from gridx.events import Stream, encode_event, split_events
from gridx.resources import MIB

JOB = "job_0001"


def event(text: str) -> bytes:
    return encode_event(Stream(name="stdout", text=text))


def stream(count: int, size: int = 20) -> list[bytes]:
    chance = random.Random(count)
    return [event(f"{n} " + "x" * chance.randrange(size)) for n in range(count)]


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SegmentLog]:
    made = SegmentLog(tmp_path / "streams")
    yield made
    await made.close()


async def read(log: EventLog, offset: int = 0, attempt: int = 1) -> bytes:
    """Return the stream from ``offset``, having seen that the pieces are contiguous and whole."""
    found, at = b"", offset
    async for piece in log.read(JOB, attempt, offset):
        assert piece.offset == at
        assert b"".join(bytes(e) for e in split_events(piece.data)) == piece.data
        at += len(piece.data)
        found += piece.data
    return found


async def test_what_was_appended_is_read_from_any_event_on(log: SegmentLog) -> None:
    events = stream(200)
    whole = b"".join(events)
    at = 0
    for first in range(0, 200, 7):
        at = await log.append(JOB, 1, at, b"".join(events[first : first + 7]))
    assert at == await log.end(JOB, 1) == len(whole)
    for count in (0, 1, 6, 7, 8, 100, 199, 200):
        offset = sum(map(len, events[:count]))
        assert await read(log, offset) == whole[offset:]
        log.close_attempt(JOB, 1)  # then from the file alone
        assert await read(log, offset) == whole[offset:]
        assert await log.end(JOB, 1) == len(whole)


async def test_a_gap_is_refused_and_what_is_known_is_dropped(log: SegmentLog) -> None:
    a, b, c = event("a"), event("b"), event("c")
    assert await log.append(JOB, 1, len(a), b) == 0
    assert await log.append(JOB, 1, 0, a) == len(a)
    assert await log.append(JOB, 1, 0, a) == len(a)
    assert await log.append(JOB, 1, 0, a + b) == len(a + b)
    assert await log.append(JOB, 1, len(a), b + c) == len(a + b + c)
    assert await read(log) == a + b + c


async def test_attempts_do_not_share_a_stream(log: SegmentLog) -> None:
    await log.append(JOB, 1, 0, event("one"))
    await log.append(JOB, 2, 0, event("second"))
    assert await read(log, attempt=1) == event("one")
    assert await read(log, attempt=2) == event("second")
    assert await log.end(JOB, 3) == 0
    assert await read(log, attempt=3) == b""


async def test_a_position_inside_an_event_or_past_the_end_is_refused(log: SegmentLog) -> None:
    whole = event("a") + event("b")
    await log.append(JOB, 1, 0, whole)
    for is_open in (True, False):
        if not is_open:
            log.close_attempt(JOB, 1)
        for offset in (1, len(whole) - 1, len(whole) + 1):
            with pytest.raises(InvalidRequest):
                await read(log, offset)
    with pytest.raises(InvalidRequest):
        await read(log, 5, attempt=9)


async def test_only_whole_events_are_taken(log: SegmentLog) -> None:
    whole = event("a") + event("b")
    for wrong in (whole[:-1], whole + b"\x00", b"\xff\xff\xff\xff" + b"x" * 50):
        with pytest.raises(ProtocolError):
            await log.append(JOB, 1, 0, wrong)
    await log.append(JOB, 1, 0, event("a"))
    with pytest.raises(ProtocolError):  # it overlaps, but does not go on where an event ends
        await log.append(JOB, 1, 3, whole)
    assert await read(log) == event("a")


async def test_an_attempt_has_a_limit(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, max_bytes=150)
    at = await log.append(JOB, 1, 0, event("x" * 60))
    with pytest.raises(PayloadTooLarge):
        await log.append(JOB, 1, at, event("x" * 60))
    assert await log.end(JOB, 1) == at
    await log.append(JOB, 2, 0, event("x" * 60))
    await log.close()


async def test_a_long_stream_is_read_from_its_file_in_pieces(log: SegmentLog) -> None:
    events = [event(str(n) + "y" * 50_000) for n in range(80)]
    at = 0
    for each in events:
        at = await log.append(JOB, 1, at, each)
    whole = b"".join(events)
    assert len(whole) > 3 * MIB
    for count in (0, 30, 79):
        offset = sum(map(len, events[:count]))
        assert await read(log, offset) == whole[offset:]


async def test_a_reader_gets_what_was_there_when_it_began_while_the_stream_grows(
    log: SegmentLog,
) -> None:
    events = [event(str(n) + "z" * 1000) for n in range(2000)]
    whole = b"".join(events)

    async def write() -> None:
        at = 0
        for first in range(0, 2000, 10):
            at = await log.append(JOB, 1, at, b"".join(events[first : first + 10]))

    async def follow() -> bytes:
        found = b""
        while len(found) < len(whole):
            found += await read(log, len(found))
            await asyncio.sleep(0)
        return found

    _, first, second = await asyncio.gather(write(), follow(), follow())
    assert first == second == whole


async def test_a_restart_goes_on_where_the_file_ends_and_cuts_a_torn_tail(
    tmp_path: Path,
) -> None:
    a, b, c = event("a"), event("b"), event("c")
    log = SegmentLog(tmp_path)
    await log.append(JOB, 1, 0, a)
    await log.append(JOB, 1, len(a), b)
    await log.sync(JOB, 1)
    await log.close()
    path = tmp_path / f"{JOB}.1"
    path.write_bytes(path.read_bytes()[:-1])
    log = SegmentLog(tmp_path)
    assert await read(log) == a
    assert await log.end(JOB, 1) == len(a)
    assert await log.append(JOB, 1, len(a + b), c) == len(a)  # the worker resends from there
    assert path.stat().st_size == records.HEADER_BYTES + len(a)
    assert await log.append(JOB, 1, len(a), b + c) == len(a + b + c)
    assert await read(log) == a + b + c
    await log.close()


async def test_a_disk_that_is_full_leaves_the_file_as_it_was(
    log: SegmentLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = await log.append(JOB, 1, 0, event("a"))
    path = tmp_path / "streams" / f"{JOB}.1"
    before = path.read_bytes()

    def full(fd: int, data: memoryview, position: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("coordinator.eventlog.segments.os.pwrite", full)
        with pytest.raises(TransportError, match="No space left"):
            await log.append(JOB, 1, at, event("b"))
    assert path.read_bytes() == before
    assert await log.append(JOB, 1, at, event("b")) > at


async def test_looking_at_streams_that_have_ended_keeps_nothing_in_memory(
    log: SegmentLog,
) -> None:
    for attempt in range(1, 50):
        end = await log.append(JOB, attempt, 0, event("a"))
        log.close_attempt(JOB, attempt)
        assert await log.end(JOB, attempt) == end
        assert await read(log, attempt=attempt) == event("a")
    assert log.open_attempts == 0


async def test_a_deleted_stream_is_gone(log: SegmentLog, tmp_path: Path) -> None:
    await log.append(JOB, 1, 0, event("a"))
    await log.delete(JOB, 1)
    await log.delete(JOB, 1)
    assert not (tmp_path / "streams" / f"{JOB}.1").exists()
    assert await log.end(JOB, 1) == 0
    await log.sync(JOB, 1)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(st.text(max_size=20), min_size=1, max_size=12),
    cut=st.none() | st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=3),
)
def test_of_a_damaged_file_a_valid_prefix_is_read(
    tmp_path: Path,
    texts: list[str],
    cut: float | None,
    flips: list[tuple[float, int]],
) -> None:
    async def write_damage_read() -> None:
        log = SegmentLog(tmp_path)
        path = tmp_path / f"{JOB}.1"
        path.unlink(missing_ok=True)
        at = 0
        ends = [0]
        for text in texts:
            at = await log.append(JOB, 1, at, event(text))
            ends.append(at)
        whole = await read(log)
        log.close_attempt(JOB, 1)
        raw = bytearray(path.read_bytes())
        if cut is not None:
            del raw[int(cut * len(raw)) :]
        for where, change in flips:
            if raw:
                raw[int(where * len(raw))] ^= change
        path.write_bytes(raw)
        found = await read(log)
        assert whole.startswith(found)
        assert len(found) in ends
        assert await log.end(JOB, 1) == len(found)
        at = await log.append(JOB, 1, len(found), event("more"))
        assert await read(log) == found + event("more")
        await log.close()

    asyncio.run(write_damage_read())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_order_of_cuts_repeats_and_losses_gives_the_workers_bytes(data: st.DataObject) -> None:
    """The worker's side of the protocol: resend from the answer, whatever arrives."""
    events = stream(data.draw(st.integers(1, 30)))
    whole = b"".join(events)
    starts = [sum(map(len, events[:n])) for n in range(len(events) + 1)]

    async def talk(folder: Path) -> None:
        log = SegmentLog(folder)
        stored = 0
        for _ in range(200):
            if stored == len(whole):
                break
            first = data.draw(st.sampled_from(starts[:-1])) if data.draw(st.booleans()) else stored
            last = data.draw(st.sampled_from([s for s in starts if s > first]))
            if data.draw(st.integers(0, 9)) == 0:  # the coordinator was killed and came back
                await log.close()
                log = SegmentLog(folder)
            stored = await log.append(JOB, 1, first, whole[first:last])
        else:
            stored = await log.append(JOB, 1, stored, whole[stored:])
        assert stored == len(whole)
        assert await read(log) == whole
        await log.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(talk(Path(folder)))
