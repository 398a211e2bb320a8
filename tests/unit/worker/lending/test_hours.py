"""What a lender writes about hours, and when they begin and end by the clock on the wall."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridx.errors import SettingsError
from worker.lending.hours import DAYS, Hours, parse_hours

BERLIN = ZoneInfo("Europe/Berlin")
NIGHTS = "mon-fri 18:00-08:00, sat, sun"


def hours(text: str) -> Hours:
    parsed = parse_hours(text)
    assert parsed is not None
    return parsed


def berlin(day: int, time: str, month: int = 11) -> datetime:
    hour, minute = time.split(":")
    return datetime(2026, month, day, int(hour), int(minute), tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("text", "day", "time", "is_open"),
    [
        (NIGHTS, 24, "17:59", False),  # a Tuesday
        (NIGHTS, 24, "18:00", True),
        (NIGHTS, 25, "07:59", True),
        (NIGHTS, 25, "08:00", False),
        (NIGHTS, 28, "07:59", True),  # a Saturday
        (NIGHTS, 28, "12:00", True),
        (NIGHTS, 29, "23:59", True),
        (NIGHTS, 23, "00:00", False),  # a Monday: Sunday's window ends with Sunday
        ("9-17", 23, "09:00", True),
        ("9-17", 23, "17:00", False),
        ("mon wed 9:30-10", 25, "09:45", True),
        ("mon wed 9:30-10", 24, "09:45", False),
        ("fri-mon", 26, "12:00", False),
        ("fri-mon", 29, "12:00", True),
        ("weekend", 28, "00:00", True),
        ("weekdays 0:00-24:00", 27, "23:59", True),
        ("daily 22:00-6:00", 24, "05:59", True),
        ("Monday - Friday 18:00 - 8:00", 23, "18:00", True),
        ("sun 22:00-02:00", 23, "01:00", True),  # over the end of the week
    ],
)
def test_a_time_is_inside_or_outside(text: str, day: int, time: str, is_open: bool) -> None:
    assert hours(text).is_open(berlin(day, time), BERLIN) is is_open


def test_always_is_no_hours_at_all() -> None:
    assert parse_hours("always") is None
    assert parse_hours(" Always ") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty window"),
        ("mon,,tue", "empty window"),
        ("mo 9-17", "'mo' is not a day"),
        ("someday", "'someday' is not a day"),
        ("mon-", "'' is not a day"),
        ("mon 9", "not a time from when to when"),
        ("mon 25:00-26:00", "'25:00' is not a time"),
        ("mon 9:60-10", "'9:60' is not a time"),
        ("mon 9-9", "begins when it ends"),
        ("mon 24:00-3", "write 0:00"),
        ("9-17 mon", "'mon' comes after the time"),
        ("mon 9-17 18-20", "'18-20' comes after the time"),
        ("mon always", "'always' is not a day"),
    ],
)
def test_what_cannot_be_read_is_quoted_with_what_to_write(text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as refused:
        parse_hours(text)
    assert NIGHTS in refused.value.hint


@pytest.mark.parametrize(
    ("text", "at", "change"),
    [
        (NIGHTS, berlin(24, "12:00"), berlin(24, "18:00")),
        (NIGHTS, berlin(24, "20:00"), berlin(25, "08:00")),
        (NIGHTS, berlin(28, "09:00"), berlin(30, "00:00")),
        ("sun", berlin(30, "00:00"), berlin(6, "00:00", month=12)),
        # 2026-03-29, 02:00 becomes 03:00: a window that begins between begins then
        ("2:30-5:00", berlin(29, "01:00", month=3), berlin(29, "03:00", month=3)),
        # and one that lies between is not there that night
        ("2:10-2:50", berlin(29, "01:00", month=3), berlin(30, "02:10", month=3)),
        # 2026-10-25, 03:00 becomes 02:00
        ("3-5", berlin(25, "01:00", month=10), berlin(25, "03:00", month=10)),
        ("1:00-2:30", berlin(25, "01:30", month=10), berlin(25, "02:30", month=10)),
    ],
)
def test_the_next_change_is_named(text: str, at: datetime, change: datetime) -> None:
    assert hours(text).next_change(at, BERLIN) == change.astimezone(UTC)


def test_an_hour_that_comes_twice_is_that_hour_both_times() -> None:
    window = hours("2:00-2:30")
    first = datetime(2026, 10, 25, 0, 10, tzinfo=UTC)
    second = first + timedelta(hours=1)
    assert window.is_open(first, BERLIN) and window.is_open(second, BERLIN)
    assert window.next_change(first, BERLIN) == first + timedelta(minutes=20)


def test_a_week_without_a_gap_never_changes() -> None:
    week = hours("mon-sun")
    assert week.is_open(berlin(24, "12:00"), BERLIN)
    assert week.next_change(berlin(24, "12:00"), BERLIN) is None


_CLOCK = st.tuples(st.integers(0, 23), st.sampled_from((0, 15, 30))).map(
    lambda at: f"{at[0]}:{at[1]:02}"
)
_WINDOWS = st.lists(
    st.tuples(st.sampled_from(("", *DAYS, "mon-fri", "fri-mon", "sat-sun")), _CLOCK, _CLOCK)
    .filter(lambda window: window[1] != window[2])
    .map(lambda window: f"{window[0]} {window[1]}-{window[2]}".strip()),
    min_size=1,
    max_size=3,
).map(", ".join)
_ZONES = st.sampled_from(("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"))
_MOMENTS = st.integers(0, 2 * 365 * 24 * 3600).map(
    lambda after_s: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=after_s)
)


@given(text=_WINDOWS, zone=_ZONES, at=_MOMENTS)
@settings(max_examples=60, deadline=None)
def test_until_the_next_change_nothing_changes_and_then_it_does(
    text: str, zone: str, at: datetime
) -> None:
    there, parsed = ZoneInfo(zone), hours(text)
    change = parsed.next_change(at, there)
    is_open = parsed.is_open(at, there)
    end = change or at + timedelta(days=8)
    assert end > at
    moment = at
    while moment < end:
        assert parsed.is_open(moment, there) is is_open
        moment += timedelta(minutes=7.5)
    assert parsed.is_open(end - timedelta(seconds=1), there) is is_open or end - at < timedelta(
        seconds=1
    )
    if change is not None:
        assert parsed.is_open(change, there) is not is_open


@given(text=_WINDOWS, zone=_ZONES, at=_MOMENTS)
@settings(max_examples=60, deadline=None)
def test_hours_are_those_of_the_wall_clock(text: str, zone: str, at: datetime) -> None:
    wall = at.astimezone(ZoneInfo(zone))
    same = wall.replace(tzinfo=UTC)  # a zone without changes that shows the same time
    assert hours(text).is_open(at, ZoneInfo(zone)) is hours(text).is_open(same, UTC)


@given(st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_hours(text)
    except SettingsError as error:
        assert error.hint
