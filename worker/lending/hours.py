"""The hours in which a machine is lent, as its owner writes them: "mon-fri 18:00-08:00, sat, sun".

They are read off the clock on the wall: in the night in which an hour comes twice both are that
hour, and one that is left out is never there. Windows are separated by commas; each is days, or
a time, or both:

    mon, fri          whole days
    sat-sun           a row of them, over the end of the week too
    mon wed 9-17      several days with the same time
    22:00-06:30       every day; what is over midnight belongs to the day on which it begins
    always            all the time
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final

import msgspec

from gridx.errors import SettingsError

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES: Final = 24 * 60
AHEAD_DAYS: Final = 9  # a change is looked for: a week, its first day again, and the one before
EXAMPLE: Final = "mon-fri 18:00-08:00, sat, sun"
_HINT: Final = (
    f'Write it as "{EXAMPLE}": windows with commas between them, days as mon, mon-fri or'
    ' "mon wed", times as 18:00-08:00. "always" is all the time.'
)
_ROWS: Final = {
    "daily": tuple(range(7)),
    "weekdays": tuple(range(5)),
    "weekend": (5, 6),
    "weekends": (5, 6),
}
_TIME: Final = re.compile(r"(\d{1,2})(?::(\d{2}))?")


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A time of the day on some days of the week. Minutes count from the day's midnight."""

    days: tuple[int, ...]  # 0 is Monday
    begin_minute: int = 0
    end_minute: int = DAY_MINUTES  # up to twice a day's minutes: the rest is on the day after

    def holds(self, weekday: int, minute: float) -> bool:
        """Return whether the clock shows a time in it."""
        today = weekday in self.days and self.begin_minute <= minute < self.end_minute
        yesterday = (weekday - 1) % 7 in self.days and minute + DAY_MINUTES < self.end_minute
        return today or yesterday


class Hours(msgspec.Struct, frozen=True, kw_only=True):
    """A week's windows."""

    windows: tuple[Window, ...]
    text: str  # as it was written

    def is_open(self, now: datetime, zone: tzinfo) -> bool:
        """Return whether the machine is lent at ``now`` (aware), by the clocks of ``zone``."""
        wall = now.astimezone(zone)
        minute = wall.hour * 60 + wall.minute + wall.second / 60 + wall.microsecond / 60e6
        return any(window.holds(wall.weekday(), minute) for window in self.windows)

    def next_change(self, now: datetime, zone: tzinfo) -> datetime | None:
        """Return when ``is_open`` changes next, in UTC; None when it never does."""
        is_open = self.is_open(now, zone)
        for moment in self._moments(now, zone):
            if moment > now and self.is_open(moment, zone) != is_open:
                return moment
        return None

    def _moments(self, now: datetime, zone: tzinfo) -> list[datetime]:
        """Return every moment at which it may change, in order."""
        marks = {0}
        for window in self.windows:
            marks |= {window.begin_minute % DAY_MINUTES, window.end_minute % DAY_MINUTES}
        first = now.astimezone(zone).date() - timedelta(days=1)
        days = [first + timedelta(days=ahead) for ahead in range(AHEAD_DAYS + 1)]
        moments = {
            _at(day, minute, zone, fold=fold) for day in days for minute in marks for fold in (0, 1)
        }
        for day in days:
            moments.update(_clock_change(day, zone))
        return sorted(moments)


def _at(day: date, minute: int, zone: tzinfo, *, fold: int) -> datetime:
    wall = datetime(day.year, day.month, day.day, minute // 60, minute % 60, tzinfo=zone, fold=fold)
    return wall.astimezone(UTC)


def _clock_change(day: date, zone: tzinfo) -> list[datetime]:
    """Return the moment of ``day`` at which its clocks are put forward or back, if they are."""
    low = _at(day, 0, zone, fold=0)
    high = low + timedelta(hours=26)
    before = low.astimezone(zone).utcoffset()
    if high.astimezone(zone).utcoffset() == before:
        return []
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=(high - low) // timedelta(seconds=2))
        if middle.astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return [high]


def parse_hours(text: str) -> Hours | None:
    """Return the hours that ``text`` describes; None for "always".

    Raises:
        SettingsError: it cannot be read; the sentence quotes the part, the hint shows how.
    """
    parts = [part.strip() for part in text.lower().split(",")]
    if parts == ["always"]:
        return None
    return Hours(windows=tuple(_window(part, text) for part in parts), text=text.strip())


def _window(part: str, text: str) -> Window:
    days: list[int] = []
    times: tuple[int, int] | None = None
    # "mon - fri" and "18:00 - 08:00" are one word each
    words = re.sub(r"\s*[-\u2013]\s*", "-", part).split()
    if not words:
        raise SettingsError(f"{text!r} has an empty window.", hint=_HINT)
    for word in words:
        if times is not None:
            raise SettingsError(
                f"{part!r}: {word!r} comes after the time; one window has one time, and it is last.",
                hint=_HINT,
            )
        if word[0].isdigit():
            times = _times(word, part)
        else:
            days += _days(word, part)
    begin, end = times or (0, DAY_MINUTES)
    return Window(
        days=tuple(sorted(set(days))) or tuple(range(7)), begin_minute=begin, end_minute=end
    )


def _days(word: str, part: str) -> tuple[int, ...]:
    if word in _ROWS:
        return _ROWS[word]
    first, dash, last = word.partition("-")
    begin, end = _day(first, part), _day(last if dash else first, part)
    return tuple((begin + step) % 7 for step in range((end - begin) % 7 + 1))


def _day(word: str, part: str) -> int:
    for number, name in enumerate(
        ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
    ):
        if len(word) >= 3 and name.startswith(word):
            return number
    raise SettingsError(f"{part!r}: {word!r} is not a day.", hint=_HINT)


def _times(word: str, part: str) -> tuple[int, int]:
    first, dash, last = word.partition("-")
    if not dash:
        raise SettingsError(f"{part!r}: {word!r} is not a time from when to when.", hint=_HINT)
    begin, end = _minute(first, part), _minute(last, part)
    if begin == end:
        raise SettingsError(f"{part!r}: {word!r} begins when it ends.", hint=_HINT)
    if begin == DAY_MINUTES:
        raise SettingsError(f"{part!r}: a window cannot begin at 24:00; write 0:00.", hint=_HINT)
    return begin, end if end > begin else end + DAY_MINUTES


def _minute(word: str, part: str) -> int:
    found = _TIME.fullmatch(word)
    if found is not None:
        minute = int(found[1]) * 60 + int(found[2] or 0)
        if int(found[2] or 0) < 60 and minute <= DAY_MINUTES:
            return minute
    raise SettingsError(f"{part!r}: {word!r} is not a time of the day.", hint=_HINT)
