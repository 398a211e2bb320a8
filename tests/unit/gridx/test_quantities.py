from __future__ import annotations

import pytest

from gridx.errors import InvalidRequest
from gridx.quantities import format_duration, parse_duration, parse_size
from gridx.resources import GIB, MIB


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1048576", MIB),
        ("512M", 512 * MIB),
        ("512m", 512 * MIB),
        ("2G", 2 * GIB),
        ("2GB", 2 * GIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("1T", 1024 * GIB),
        ("64KiB", 65_536),
    ],
)
def test_a_size_is_read(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "0", "-1G", "1X", "1 G B", "1e9", "nan", "0.1"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"is not a size.*512M"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("0.5", 0.5),
        ("10m", 600),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1h 30m 5s", 5405),
        ("1.5H", 5400),
    ],
)
def test_a_time_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "m", "30m1h", "1d", "1:30", "1e3", "inf"])
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"is not a time.*10m"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0421, "42 ms"),
        (1, "1.0 s"),
        (59.94, "59.9 s"),
        (75, "1m15s"),
        (3599.6, "1h00m"),
        (5400, "1h30m"),
    ],
)
def test_a_time_is_shown(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
