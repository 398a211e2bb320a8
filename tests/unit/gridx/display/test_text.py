"""Terminal text of a worker is inert but for its colours."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridx.display import TextCleaner, clean_line, clean_text

HOSTILE = {
    "title (OSC, BEL)": ("a\x1b]0;owned\x07b", "ab"),
    "link (OSC 8, ST)": ("\x1b]8;;http://x\x1b\\click\x1b]8;;\x1b\\", "click"),
    "clipboard (OSC 52)": ("\x1b]52;c;ZXZpbA==\x07", ""),
    "device control": ("\x1bPq#0;2;0;0;0\x1b\\x", "x"),
    "application command": ("\x1b_Gpayload\x1b\\x", "x"),
    "8-bit OSC": ("\x9d0;owned\x9cx", "x"),
    "8-bit CSI": ("\x9b2Jx", "x"),
    "clear screen": ("\x1b[2J\x1b[Hx", "x"),
    "cursor up over our lines": ("\x1b[5A\x1b[2Kx", "x"),
    "report that answers on stdin": ("\x1b[6n\x1b[cx", "x"),
    "private mode": ("\x1b[?1049hx", "x"),
    "colour with a private mark": ("\x1b[?31mx", "x"),
    "colour with an intermediate": ("\x1b[31 mx", "x"),
    "character set": ("\x1b(0x", "x"),
    "reset": ("\x1bcx", "x"),
    "bell, backspace, delete": ("a\x07\x08\x7fb", "ab"),
    "vertical tab and form feed": ("a\x0b\x0cb", "ab"),
    "string without an end": ("\x1b]0;no end", "0;no end"),
    "string inside a string": ("\x1b]0;\x1b]1;x\x07y", "0;y"),
    "bidi override": ("a\u202eb\u2066c", "a<U+202E>b<U+2066>c"),
}


@pytest.mark.parametrize(("text", "shown"), HOSTILE.values(), ids=HOSTILE)
def test_control_sequences_are_removed(text: str, shown: str) -> None:
    assert clean_text(text) == shown


@pytest.mark.parametrize(
    "text",
    ["plain\n\ttabbed\r50 %\r\n", "\x1b[31mred\x1b[0m", "\x1b[38;2;1;2;3mx\x1b[m", "äß中🙂\u200f"],
)
def test_text_and_colours_stay_as_they_are(text: str) -> None:
    assert clean_text(text) == text


PIECES = st.lists(
    st.sampled_from(
        ["\x1b", "[", "]", "P", "31", "m", ";", "\x07", "\\", "\x9b", "\x9d", "\x9c", "2J", "a\n",
         "\x90", " ", "\x18", "?", "\u202e", "é"]
    ),
    max_size=30,
)  # fmt: skip


@given(PIECES)
def test_what_is_left_holds_no_escape_but_colours(pieces: list[str]) -> None:
    left = re.sub(r"\x1b\[[0-9;:]*m", "", clean_text("".join(pieces)))
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", left)


@given(PIECES, st.integers(0, 30))
def test_a_sequence_cut_between_two_pieces_is_found(pieces: list[str], at: int) -> None:
    text = "".join(pieces)
    cleaner = TextCleaner()
    streamed = cleaner.feed(text[:at]) + cleaner.feed(text[at:])
    whole = TextCleaner()
    assert streamed + cleaner.finish() == whole.feed(text) + whole.finish()


def test_plain_text_is_never_held_back() -> None:
    assert TextCleaner().feed("no newline yet") == "no newline yet"


def test_a_string_that_never_ends_is_held_back_for_a_limited_time_only() -> None:
    cleaner = TextCleaner()
    assert cleaner.feed("\x1b]0;") == ""
    assert "x" * 5000 in cleaner.feed("x" * 5000)


def test_the_end_switches_an_open_colour_off() -> None:
    cleaner = TextCleaner()
    cleaner.feed("\x1b[31mred")
    assert cleaner.finish() == "\x1b[0m"
    cleaner.feed("\x1b[31mred\x1b[0m")
    assert cleaner.finish() == ""


def test_a_line_has_no_breaks_no_colours_and_an_end() -> None:
    assert clean_line("a\nb\x1b[31m c\x1b]0;t\x07") == "a b c"
    assert len(clean_line("x" * 10_000, 80)) == 80
