from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridx.errors import ProtocolError
from gridx.events import (
    MAX_EVENT_BYTES,
    ClearOutput,
    DisplayData,
    ErrorOutput,
    Event,
    ExecuteResult,
    OutputDropped,
    Stream,
    UpdateDisplayData,
    decode_events,
    encode_event,
    join_text,
    split_events,
)

texts = st.dictionaries(st.text(max_size=10), st.text(max_size=20), max_size=3)
blobs = st.dictionaries(st.text(max_size=10), st.binary(max_size=20), max_size=3)
names = st.sampled_from(["stdout", "stderr"])
calls = st.integers(0, 5)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Stream, name=names, text=st.text(max_size=50), call=calls),
    st.builds(DisplayData, data=texts, binary=blobs, display_id=st.none() | st.text(max_size=5)),
    st.builds(UpdateDisplayData, data=texts, binary=blobs, display_id=st.text(max_size=5)),
    st.builds(ClearOutput, wait=st.booleans()),
    st.builds(ExecuteResult, data=texts, binary=blobs),
    st.builds(ErrorOutput, error=texts),
    st.builds(OutputDropped, dropped_bytes=st.integers(0, 2**40)),
)


@given(st.lists(events, max_size=6))
def test_events_come_back_as_they_went(sent: list[Event]) -> None:
    stream = b"".join(map(encode_event, sent))
    assert list(decode_events(stream)) == sent
    assert b"".join(split_events(stream)) == stream


@given(st.lists(events, min_size=1, max_size=4), st.data())
def test_a_stream_can_be_read_from_every_event_border(sent: list[Event], data: Any) -> None:
    encoded = list(map(encode_event, sent))
    cut = data.draw(st.integers(0, len(sent)))
    assert list(decode_events(b"".join(encoded[cut:]))) == sent[cut:]


@given(events, st.data())
def test_a_cut_event_is_refused(event: Event, data: Any) -> None:
    encoded = encode_event(event)
    cut = data.draw(st.integers(1, len(encoded) - 1))
    with pytest.raises(ProtocolError, match="whole events"):
        list(decode_events(encoded[:cut]))


@given(st.binary(max_size=200))
def test_any_bytes_give_events_or_a_protocol_error(data: bytes) -> None:
    try:
        list(decode_events(data))
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    "body",
    [
        msgspec.msgpack.encode({"type": "run_javascript", "text": "x"}),
        msgspec.msgpack.encode({"type": "stream", "name": "stdin", "text": "x"}),
        msgspec.msgpack.encode({"type": "stream", "name": "stdout"}),
        msgspec.msgpack.encode(["stream"]),
        b"\x91" * 100_000 + b"\x01",
        b"",
    ],
)
def test_what_is_not_in_the_union_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="malformed"):
        list(decode_events(len(body).to_bytes(4, "big") + body))


def test_an_event_over_the_limit_is_refused_before_it_is_decoded() -> None:
    data = (MAX_EVENT_BYTES + 1).to_bytes(4, "big") + bytes(MAX_EVENT_BYTES + 1)
    with pytest.raises(ProtocolError):
        list(split_events(data))


def test_an_unknown_field_of_a_newer_side_is_ignored() -> None:
    body = msgspec.msgpack.encode({"type": "clear_output", "wait": True, "since": "2.0"})
    assert list(decode_events(len(body).to_bytes(4, "big") + body)) == [ClearOutput(wait=True)]


def test_the_text_of_one_stream_is_joined_in_order() -> None:
    said = [
        Stream(name="stdout", text="a"),
        Stream(name="stderr", text="!"),
        ClearOutput(),
        Stream(name="stdout", text="b"),
    ]
    assert (join_text(said, "stdout"), join_text(said, "stderr")) == ("ab", "!")
