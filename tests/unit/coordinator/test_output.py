from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.eventlog.base import Piece
from coordinator.web.output import GATHER_BYTES, AttemptOutput, OutputGap, check_whole_events
from gridx.errors import InvalidRequest, ProtocolError
from gridx.events import Stream, encode_event


def event(text: str) -> bytes:
    return encode_event(Stream(name="stdout", text=text))


class LogInMemory:
    """An event log that keeps its bytes in a list of calls; it may fail, or know better."""

    def __init__(self) -> None:
        self.data = b""
        self.appended = asyncio.Event()
        self.synced = 0
        self.failures = 0

    async def append(self, job_id: str, attempt: int, offset: int, data: bytes) -> int:
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise OSError("disk full")
        if offset <= len(self.data):
            self.data += data[len(self.data) - offset :]
            self.appended.set()
        return len(self.data)

    async def end(self, job_id: str, attempt: int) -> int:
        return len(self.data)

    async def read(self, job_id: str, attempt: int, offset: int = 0) -> AsyncIterator[Piece]:
        yield Piece(offset=offset, data=self.data[offset:])

    async def sync(self, job_id: str, attempt: int) -> None:
        self.synced += 1

    def close_attempt(self, job_id: str, attempt: int) -> None:
        """Nothing is kept."""

    async def delete(self, job_id: str, attempt: int) -> None:
        self.data = b""

    async def close(self) -> None:
        """Nothing is open."""


class Seen:
    """An attempt's stream with what it said: stored up to, send again from."""

    def __init__(self, stored_end: int = 0) -> None:
        self.log = LogInMemory()
        self.acknowledged: list[int] = []
        self.resends: list[int] = []
        self.output = AttemptOutput(
            self.log,
            job_id="job_1",
            attempt=1,
            worker_id="wrk_1",
            stored_end=stored_end,
            on_stored=lambda output: self.acknowledged.append(output.stored_end),
            on_resend=lambda output: self.resends.append(output.stored_end),
        )


async def test_a_piece_that_follows_on_is_new_and_a_known_one_is_not() -> None:
    output = Seen().output
    first, second = event("a"), event("b")
    assert output.accept(0, first) == first
    assert output.accept(0, first) == b""
    assert output.accept(0, first + second) == second
    assert output.end == len(first + second)
    output.close()


async def test_a_piece_behind_a_gap_is_refused_and_changes_nothing() -> None:
    output = Seen().output
    with pytest.raises(OutputGap):
        output.accept(5, event("a"))
    assert output.end == 0


@pytest.mark.parametrize("data", [b"\0\0\0\x05abc", b"\0", b"\xff\xff\xff\xff", event("a")[:-1]])
async def test_a_piece_that_is_not_whole_events_is_refused(data: bytes) -> None:
    output = Seen().output
    with pytest.raises(ProtocolError):
        output.accept(0, data)
    assert output.end == 0


def test_whole_events_pass() -> None:
    check_whole_events(b"")
    check_whole_events(event("a") + event("b" * 100_000))


async def test_a_short_output_travels_with_the_report_and_needs_no_log() -> None:
    seen = Seen()
    seen.output.accept(0, event("short"))
    assert await seen.output.complete(65_536) == event("short")
    assert (seen.log.data, seen.log.synced) == (b"", 0)


async def test_a_long_output_is_in_the_log_and_synced_before_the_report() -> None:
    seen = Seen()
    long = event("x" * 100)
    seen.output.accept(0, long)
    assert await seen.output.complete(50) is None
    assert (seen.log.data, seen.log.synced) == (long, 1)
    assert seen.acknowledged == [len(long)]


async def test_what_was_appended_once_never_travels_with_the_report() -> None:
    seen = Seen()
    seen.output.accept(0, event("a"))
    await seen.output.store()
    seen.output.accept(seen.output.end, event("b"))
    assert await seen.output.complete(65_536) is None
    assert seen.log.data == event("a") + event("b")


async def test_a_full_buffer_is_stored_at_once() -> None:
    seen = Seen()
    seen.output.accept(0, event("x" * GATHER_BYTES))
    await seen.log.appended.wait()
    seen.output.close()


async def test_a_log_that_holds_less_than_thought_makes_the_worker_send_again() -> None:
    seen = Seen(stored_end=100)  # the log is empty: what was there is gone
    seen.output.accept(100, event("a"))
    await seen.output.store()
    assert seen.resends == [0]
    assert (seen.output.stored_end, seen.output.end) == (0, 0)


async def test_a_failed_write_acknowledges_nothing_and_keeps_the_bytes() -> None:
    seen = Seen()
    seen.log.failures = 1
    seen.output.accept(0, event("a"))
    with pytest.raises(OSError, match="disk full"):
        await seen.output.store()
    assert seen.acknowledged == []
    await seen.output.store()
    assert (seen.log.data, seen.acknowledged) == (event("a"), [len(event("a"))])


async def test_the_tail_begins_at_events_only() -> None:
    output = Seen().output
    output.accept(0, event("a") + event("b"))
    assert output.tail(len(event("a"))) == event("b")
    assert output.tail(output.end) == b""
    assert output.tail(output.end + 7) == b""
    with pytest.raises(InvalidRequest):
        output.tail(3)
    output.close()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.booleans()), max_size=40))
def test_any_cut_doubled_or_reordered_pieces_end_up_as_the_stream(
    pieces: list[tuple[int, int, bool]],
) -> None:
    events = [event(str(number) * (number + 1)) for number in range(12)]
    begins = [sum(map(len, events[:number])) for number in range(13)]
    whole = b"".join(events)

    async def play() -> None:
        seen = Seen()
        published = b""
        for first, last, is_stored in pieces:
            low, high = min(first, last), max(first, last)
            try:
                published += seen.output.accept(begins[low], whole[begins[low] : begins[high]])
            except OutputGap:
                # What a worker does then: everything from the stored end on.
                published += seen.output.accept(
                    seen.output.stored_end, whole[seen.output.stored_end :]
                )
            if is_stored:
                await seen.output.store()
            assert published == whole[: len(published)]
            assert seen.output.end == len(published)
            assert seen.log.data == published[: seen.output.stored_end]
        published += seen.output.accept(seen.output.end, whole[seen.output.end :])
        await seen.output.store()
        assert published == seen.log.data == whole

    asyncio.run(play())
