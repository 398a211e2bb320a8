"""What a running job says: Jupyter's own output vocabulary, as numbered bytes.

The output of an attempt is one stream of encoded events, each ``u32`` big-endian length and
MessagePack. A position is the byte offset in that stream; every message that carries a piece
of it carries whole events, so that a piece can be read by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from .errors import ProtocolError
from .resources import MIB

MAX_EVENT_BYTES = 8 * MIB


class OutputEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of all events. ``call`` numbers the calls of a session or pool from 0."""

    call: int = 0


class Stream(OutputEvent, frozen=True, kw_only=True, tag="stream"):
    """Text on stdout or stderr."""

    name: Literal["stdout", "stderr"]
    text: str


class DisplayData(OutputEvent, frozen=True, kw_only=True, tag="display_data"):
    """A MIME bundle: text types in ``data``, images as raw bytes in ``binary``."""

    data: dict[str, str] = {}
    binary: dict[str, bytes] = {}
    metadata: dict[str, Any] = {}
    display_id: str | None = None


class UpdateDisplayData(OutputEvent, frozen=True, kw_only=True, tag="update_display_data"):
    """Replaces what was shown under ``display_id``."""

    data: dict[str, str] = {}
    binary: dict[str, bytes] = {}
    metadata: dict[str, Any] = {}
    display_id: str


class ClearOutput(OutputEvent, frozen=True, kw_only=True, tag="clear_output"):
    """Clears the cell's output, at once or when the next comes."""

    wait: bool = False


class ExecuteResult(OutputEvent, frozen=True, kw_only=True, tag="execute_result"):
    """The value of the cell's last expression."""

    data: dict[str, str] = {}
    binary: dict[str, bytes] = {}
    metadata: dict[str, Any] = {}


class ErrorOutput(OutputEvent, frozen=True, kw_only=True, tag="error"):
    """An exception as data, in the form of ``gridx.remote_error.exception_to_data``."""

    error: dict[str, Any]


class OutputDropped(OutputEvent, frozen=True, kw_only=True, tag="output_dropped"):
    """Marks the place where output above the limit was left out."""

    dropped_bytes: int


Event = (
    Stream
    | DisplayData
    | UpdateDisplayData
    | ClearOutput
    | ExecuteResult
    | ErrorOutput
    | OutputDropped
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """Return ``event`` as it stands in the stream."""
    body = _encoder.encode(event)
    return len(body).to_bytes(4, "big") + body


def split_events(data: bytes | memoryview) -> Iterator[memoryview]:
    """Yield each event of ``data`` still encoded, length prefix included.

    Raises:
        ProtocolError: ``data`` does not end with a whole event, or one is over the limit.
    """
    view, at = memoryview(data), 0
    while at < len(view):
        end = at + 4 + int.from_bytes(view[at : at + 4], "big")
        if end - at > MAX_EVENT_BYTES or end > len(view):
            raise ProtocolError("A piece of output does not hold whole events.")
        yield view[at:end]
        at = end


def decode_events(data: bytes | memoryview) -> Iterator[Event]:
    """Yield the events of ``data``, a piece of whole events.

    Raises:
        ProtocolError: an event is cut, too large, or not in the union.
    """
    for piece in split_events(data):
        try:
            yield _decoder.decode(piece[4:])
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
            raise ProtocolError(f"An output event is malformed: {exc}.") from None


def join_text(events: Iterable[Event], name: Literal["stdout", "stderr"]) -> str:
    """Return the text of one stream, as a terminal would show it."""
    return "".join(e.text for e in events if isinstance(e, Stream) and e.name == name)
