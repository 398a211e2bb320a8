from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridx.errors import NotFound, ProtocolError
from gridx.events import Stream, encode_event
from gridx.feed import Ask, Feed
from gridx.protocol import JobChanged, Output, Position
from gridx.schemas import JobView, Limits
from gridx.updates import EventArrived, Finished, LinkChanged, Restarted, StateChanged, Update

JOB = "job_" + "0" * 32


def view(status: str = "running", attempt: int = 1) -> JobView:
    return JobView(
        job_id=JOB,
        user_id="ada",
        status=status,
        language="python",
        kind="script",
        limits=Limits(),
        reserved=6.0,
        cost=0.0,
        attempt=attempt,
        created_at=dt.datetime(2026, 11, 24, tzinfo=dt.UTC),
    )


def piece(offset: int, *texts: str, attempt: int = 1) -> Output:
    return Output(job_id=JOB, attempt=attempt, offset=offset, data=encoded(*texts))


def encoded(*texts: str) -> bytes:
    return b"".join(encode_event(Stream(name="stdout", text=text)) for text in texts)


def taken(feed: Feed) -> list[Update]:
    updates = []
    while (update := feed.take()) is not None:
        updates.append(update)
    return updates


def text_of(updates: list[Update]) -> str:
    return "".join(
        u.event.text for u in updates if isinstance(u, EventArrived) and isinstance(u.event, Stream)
    )


def size(*texts: str) -> int:
    return len(encoded(*texts))


def test_what_the_client_has_is_dropped_and_an_overlap_is_cut() -> None:
    feed = Feed()
    feed.on_output(piece(0, "a", "b"))
    assert feed.on_output(piece(0, "a", "b")) is Ask.NOTHING
    assert feed.on_output(piece(size("a"), "b", "c")) is Ask.NOTHING
    assert text_of(taken(feed)) == "abc"
    assert feed.position == Position(attempt=1, offset=size("a", "b", "c"))


def test_a_gap_is_asked_for_once() -> None:
    feed = Feed()
    assert feed.on_output(piece(50, "late")) is Ask.WATCH
    assert feed.on_output(piece(90, "later")) is Ask.NOTHING
    assert feed.on_output(piece(0, "a")) is Ask.NOTHING
    assert text_of(taken(feed)) == "a"


def test_the_end_is_told_only_when_everything_is_there() -> None:
    feed = Feed()
    end = Position(attempt=1, offset=size("a", "b"))
    final = JobChanged(job=view("completed"), end=end)
    feed.on_output(piece(0, "a"))
    assert feed.on_changed(final) is Ask.WATCH
    assert not any(isinstance(update, Finished) for update in taken(feed))
    feed.on_output(piece(0, "a", "b"))
    assert feed.on_changed(final) is Ask.NOTHING
    updates = taken(feed)
    assert text_of(updates) == "b"
    assert isinstance(updates[-1], Finished)
    assert feed.is_over
    assert feed.on_changed(final) is Ask.NOTHING
    assert taken(feed) == []


def test_an_end_that_is_never_reached_is_an_error_and_not_a_loop() -> None:
    feed = Feed()
    final = JobChanged(job=view("completed"), end=Position(attempt=1, offset=9))
    asks = [feed.on_changed(final) for _ in range(5)]
    assert asks == [Ask.WATCH] * 3 + [Ask.NOTHING] * 2
    for _ in range(2):
        with pytest.raises(ProtocolError, match="did not come"):
            taken(feed)


def test_a_later_attempt_begins_again_and_an_earlier_one_is_not_heard() -> None:
    feed = Feed()
    feed.on_output(piece(0, "old"))
    feed.on_changed(JobChanged(job=view(attempt=2)))
    assert feed.on_output(piece(size("old"), "older")) is Ask.NOTHING
    assert feed.on_changed(JobChanged(job=view(attempt=1))) is Ask.NOTHING
    feed.on_output(piece(0, "new", attempt=2))
    kinds = [type(update) for update in taken(feed)]
    assert kinds == [EventArrived, Restarted, StateChanged, EventArrived]


def test_the_first_attempt_is_no_restart() -> None:
    feed = Feed()
    feed.on_changed(JobChanged(job=view("queued", attempt=0)))
    feed.on_changed(JobChanged(job=view(attempt=1)))
    assert [type(update) for update in taken(feed)] == [StateChanged, StateChanged]


def test_a_resumed_feed_knows_that_its_attempt_is_gone() -> None:
    feed = Feed(after=Position(attempt=1, offset=50))
    feed.on_output(piece(0, "new", attempt=2))
    assert [type(update) for update in taken(feed)] == [Restarted, EventArrived]


def test_the_same_state_is_told_once() -> None:
    feed = Feed()
    feed.on_changed(JobChanged(job=view()))
    feed.on_changed(JobChanged(job=view()))
    assert len(taken(feed)) == 1


def test_a_slow_reader_pauses_the_job_until_it_has_made_room() -> None:
    feed = Feed(limit_bytes=150)
    feed.on_changed(JobChanged(job=view()))
    feed.on_output(piece(0, "x" * 60))
    assert feed.on_output(piece(size("x" * 60), "y" * 60)) is Ask.UNWATCH
    here = feed.position
    assert feed.on_output(piece(here.offset, "lost")) is Ask.NOTHING
    assert feed.on_changed(JobChanged(job=view("completed"))) is Ask.NOTHING
    assert feed.view is not None
    assert feed.view.status == "completed"  # what is known is known, the end comes in order
    assert not feed.wants_resume
    assert feed.resume() is Ask.NOTHING
    assert text_of(taken(feed)) == "x" * 60 + "y" * 60
    assert feed.wants_resume
    assert feed.resume() is Ask.WATCH
    assert feed.position == here
    assert feed.resume() is Ask.NOTHING
    feed.on_output(piece(here.offset, "found"))
    feed.on_changed(JobChanged(job=view("completed")))
    updates = taken(feed)
    assert text_of(updates) == "found"
    assert isinstance(updates[-1], Finished)


def test_the_output_of_a_job_that_ended_long_ago_comes_before_its_state_and_is_not_paused() -> None:
    feed = Feed(limit_bytes=10)
    assert feed.on_output(piece(0, "x" * 60)) is Ask.NOTHING
    feed.on_changed(JobChanged(job=view("completed")))
    updates = taken(feed)
    assert text_of(updates) == "x" * 60
    assert isinstance(updates[-1], Finished)


def test_a_returned_link_asks_for_what_follows_but_not_for_a_paused_job() -> None:
    feed = Feed(limit_bytes=10)
    feed.on_changed(JobChanged(job=view()))
    assert feed.on_link(connected=False) is Ask.NOTHING
    assert feed.on_link(connected=True) is Ask.WATCH
    feed.on_output(piece(0, "x" * 60))
    assert feed.is_paused
    assert feed.on_link(connected=True) is Ask.NOTHING
    links = [update.connected for update in taken(feed) if isinstance(update, LinkChanged)]
    assert links == [False, True, True]


def test_an_error_reaches_every_reader_that_asks() -> None:
    feed = Feed()
    feed.fail(NotFound("Gone."))
    feed.fail(NotFound("Gone twice."))
    for _ in range(2):
        with pytest.raises(NotFound, match=r"Gone\."):
            feed.take()
    assert feed.on_link(connected=True) is Ask.NOTHING


def test_a_malformed_piece_is_an_error_of_the_reader() -> None:
    feed = Feed()
    feed.on_output(Output(job_id=JOB, attempt=1, offset=0, data=b"\0\0\0\5ab"))
    with pytest.raises(ProtocolError):
        feed.take()


def test_a_reader_may_wait_in_its_own_thread() -> None:
    feed = Feed()
    assert feed.take(0.001) is None
    feed.on_output(piece(0, "a"))
    assert isinstance(feed.take(5), EventArrived)


@settings(max_examples=200)
@given(st.data())
def test_pieces_in_any_order_with_repeats_and_pauses_give_the_stream(data: Any) -> None:
    texts = data.draw(st.lists(st.text("ab", min_size=1, max_size=8), min_size=1, max_size=12))
    borders = [0]
    for text in texts:
        borders.append(borders[-1] + size(text))
    feed = Feed(limit_bytes=data.draw(st.sampled_from([20, 60, 10_000])))
    feed.on_changed(JobChanged(job=view()))
    stream, updates = encoded(*texts), []
    final = JobChanged(
        job=view("completed"), end=Position(attempt=1, offset=len(stream)), cost_ucr=1
    )

    def deliver(begin: int, end: int) -> None:
        a, b = borders[begin], borders[end]
        feed.on_output(Output(job_id=JOB, attempt=1, offset=a, data=stream[a:b]))

    for _ in range(data.draw(st.integers(0, 10))):
        begin = data.draw(st.integers(0, len(texts) - 1))
        deliver(begin, data.draw(st.integers(begin + 1, len(texts))))
        if data.draw(st.booleans()):
            updates += taken(feed)
            feed.resume()
        if data.draw(st.integers(0, 4)) == 0 and not feed.is_over and feed.position != final.end:
            feed._asks = 0  # an answer came in between
            feed.on_changed(final)
    while not feed.is_over:  # what a coordinator does when it is asked
        updates += taken(feed)
        feed.resume()
        at = borders.index(feed.position.offset)
        if at < len(texts):
            deliver(at, at + 1)
        else:
            feed.on_changed(final)
    updates += taken(feed)
    assert text_of(updates) == "".join(texts)
    assert sum(isinstance(update, Finished) for update in updates) == 1
