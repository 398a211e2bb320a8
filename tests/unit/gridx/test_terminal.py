from __future__ import annotations

from gridx.terminal import plain_text, table


def test_columns_are_aligned_and_wide_characters_take_two() -> None:
    text = table(("NAME", "JOBS"), [("a", "10"), ("日本", "2")], right=(1,))
    assert text.splitlines() == ["NAME  JOBS", "a       10", "日本     2"]


def test_a_cell_stays_on_its_line_and_obeys_nothing() -> None:
    text = table(("NAME",), [("evil\x1b[2J\nrow\x1b]0;title\x07" + "x" * 200,)])
    assert len(text.splitlines()) == 2
    assert "\x1b" not in text
    assert "\x07" not in text
    assert text.endswith("…")


def test_no_line_ends_with_spaces() -> None:
    assert table(("A", "B"), [("x", "")]) == "A  B\nx"


def test_colours_go_too_where_text_must_be_plain() -> None:
    assert plain_text("a\x1b[31mb\x1b[0m\tc\n") == "ab\tc\n"
