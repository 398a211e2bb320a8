"""Numbers, times, text and other values without parts."""

from __future__ import annotations

import datetime as dt
import decimal
import fractions
import pathlib
import re
import uuid
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from . import tags
from .failures import CodecError, Unsupported

if TYPE_CHECKING:
    from .decode import Decoder
    from .encode import Encoder

_DECIMAL: Final = re.compile(
    r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:E[+-]?\d{1,18})?\Z|-?(?:Infinity|s?NaN\d{0,20})\Z"
)
_MAX_BIG_INT_BYTES: Final = 1 << 20
_MAX_PATTERN: Final = 4_000
_MAX_RANGES: Final = 64
_PATTERN_FLAGS: Final = int(
    re.ASCII | re.IGNORECASE | re.LOCALE | re.MULTILINE | re.DOTALL | re.VERBOSE | re.UNICODE
)


def encode_big(value: int) -> list[Any]:
    """Return the node of an int above 64 bits."""
    return [tags.BIG_INT, value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)]


def encode_text(value: str) -> Any:
    """Return the node of a str, which may hold lone surrogates."""
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return [tags.SURROGATES, value.encode("utf-8", "surrogatepass")]
    return value


def _datetime(encoder: Encoder, value: dt.datetime, depth: int) -> list[Any]:
    return [
        tags.DATETIME, value.year, value.month, value.day, value.hour, value.minute,
        value.second, value.microsecond, value.fold, encoder.time_zone(value.tzinfo),
    ]  # fmt: skip


def _time(encoder: Encoder, value: dt.time, depth: int) -> list[Any]:
    return [
        tags.TIME, value.hour, value.minute, value.second, value.microsecond, value.fold,
        encoder.time_zone(value.tzinfo),
    ]  # fmt: skip


def _range(encoder: Encoder, value: range, depth: int) -> list[Any]:
    return [tags.RANGE, *[encoder.node(part) for part in (value.start, value.stop, value.step)]]


def _slice(encoder: Encoder, value: slice, depth: int) -> list[Any]:
    parts = (value.start, value.stop, value.step)
    return [tags.SLICE, *[encoder.node(part, depth) for part in parts]]


def _fraction(encoder: Encoder, value: fractions.Fraction, depth: int) -> list[Any]:
    return [tags.FRACTION, encoder.node(value.numerator), encoder.node(value.denominator)]


def _path(encoder: Encoder, value: pathlib.PurePath, depth: int) -> list[Any]:
    return [tags.PATH, encoder.node(str(value))]


def _pattern(encoder: Encoder, value: re.Pattern[Any], depth: int) -> list[Any]:
    if not _is_quick_pattern(value.pattern, value.flags):
        raise Unsupported("a very long pattern")
    return [tags.PATTERN, encoder.node(value.pattern), value.flags]


def _is_quick_pattern(pattern: str | bytes, flags: int) -> bool:
    """Return whether compiling it takes no time: long patterns and many ranges would."""
    dash: Any = "-" if isinstance(pattern, str) else b"-"
    ranges = pattern.count(dash) if flags & re.IGNORECASE else 0
    return len(pattern) <= _MAX_PATTERN and ranges <= _MAX_RANGES and not flags & ~_PATTERN_FLAGS


ENCODERS: Final[dict[type, Callable[[Encoder, Any, int], Any]]] = {
    complex: lambda encoder, value, depth: [tags.COMPLEX, value.real, value.imag],
    range: _range,
    slice: _slice,
    type(...): lambda encoder, value, depth: [tags.ELLIPSIS],
    type(NotImplemented): lambda encoder, value, depth: [tags.NOT_IMPLEMENTED],
    dt.datetime: _datetime,
    dt.date: lambda encoder, value, depth: [tags.DATE, value.toordinal()],
    dt.time: _time,
    dt.timedelta: lambda encoder, value, depth: [
        tags.TIMEDELTA, value.days, value.seconds, value.microseconds,
    ],
    dt.timezone: lambda encoder, value, depth: [tags.TIMEZONE, encoder.time_zone(value)],
    decimal.Decimal: lambda encoder, value, depth: [tags.DECIMAL, str(value)],
    fractions.Fraction: _fraction,
    uuid.UUID: lambda encoder, value, depth: [tags.UUID, value.bytes],
    re.Pattern: _pattern,
    pathlib.PosixPath: _path,
    pathlib.PurePosixPath: _path,
}  # fmt: skip


# ---------------------------------------------------------------- decode


def _decode_big_int(decoder: Decoder, node: list[Any], depth: int) -> int:
    decoder.check(len(node) == 2 and type(node[1]) is bytes, "integer")
    decoder.check(0 < len(node[1]) <= _MAX_BIG_INT_BYTES, "integer")
    return int.from_bytes(node[1], "little", signed=True)


def _decode_complex(decoder: Decoder, node: list[Any], depth: int) -> complex:
    decoder.check(len(node) == 3 and type(node[1]) is type(node[2]) is float, "complex")
    return complex(node[1], node[2])


def _decode_surrogates(decoder: Decoder, node: list[Any], depth: int) -> str:
    decoder.check(len(node) == 2 and type(node[1]) is bytes, "text")
    return str(node[1], "utf-8", "surrogatepass")


def _decode_range(decoder: Decoder, node: list[Any], depth: int) -> range:
    decoder.check(len(node) == 4, "range")
    return range(*[_whole(decoder, part, depth) for part in node[1:]])


def _whole(decoder: Decoder, node: Any, depth: int) -> int:
    number = decoder.value(node, depth)
    decoder.check(type(number) is int, "integer")
    return int(number)


def _decode_slice(decoder: Decoder, node: list[Any], depth: int) -> slice:
    decoder.check(len(node) == 4, "slice")
    return slice(*[decoder.value(part, depth) for part in node[1:]])


def _decode_datetime(decoder: Decoder, node: list[Any], depth: int) -> dt.datetime:
    decoder.check(len(node) == 10, "datetime")
    year, month, day, hour, minute, second, micro, fold = (
        decoder.integer(part, 0, 10_000_000) for part in node[1:9]
    )
    zone = decoder.time_zone(node[9])
    return dt.datetime(year, month, day, hour, minute, second, micro, zone, fold=fold)


def _decode_date(decoder: Decoder, node: list[Any], depth: int) -> dt.date:
    decoder.check(len(node) == 2, "date")
    return dt.date.fromordinal(decoder.integer(node[1], 1, dt.date.max.toordinal()))


def _decode_time(decoder: Decoder, node: list[Any], depth: int) -> dt.time:
    decoder.check(len(node) == 7, "time")
    hour, minute, second, micro, fold = (decoder.integer(part, 0, 10_000_000) for part in node[1:6])
    return dt.time(hour, minute, second, micro, decoder.time_zone(node[6]), fold=fold)


def _decode_timedelta(decoder: Decoder, node: list[Any], depth: int) -> dt.timedelta:
    decoder.check(len(node) == 4, "timedelta")
    return dt.timedelta(
        decoder.integer(node[1], -999_999_999, 999_999_999),
        decoder.integer(node[2], 0, 86_399),
        decoder.integer(node[3], 0, 999_999),
    )


def _decode_timezone(decoder: Decoder, node: list[Any], depth: int) -> dt.tzinfo:
    decoder.check(len(node) == 2 and node[1] is not None, "time zone")
    zone = decoder.time_zone(node[1])
    assert zone is not None
    return zone


def _decode_decimal(decoder: Decoder, node: list[Any], depth: int) -> decimal.Decimal:
    decoder.check(len(node) == 2, "decimal")
    text = decoder.text(node[1])
    decoder.check(_DECIMAL.match(text), "decimal")
    return decimal.Decimal(text)


def _decode_fraction(decoder: Decoder, node: list[Any], depth: int) -> fractions.Fraction:
    decoder.check(len(node) == 3, "fraction")
    return fractions.Fraction(_whole(decoder, node[1], depth), _whole(decoder, node[2], depth))


def _decode_uuid(decoder: Decoder, node: list[Any], depth: int) -> uuid.UUID:
    decoder.check(len(node) == 2 and type(node[1]) is bytes and len(node[1]) == 16, "uuid")
    return uuid.UUID(bytes=node[1])


def _decode_path(decoder: Decoder, node: list[Any], depth: int) -> pathlib.Path:
    decoder.check(len(node) == 2, "path")
    return pathlib.Path(decoder.text(decoder.value(node[1], depth), 5_000))


def _decode_pattern(decoder: Decoder, node: list[Any], depth: int) -> re.Pattern[Any]:
    decoder.check(len(node) == 3, "pattern")
    pattern, flags = decoder.value(node[1], depth), decoder.integer(node[2], 0, _PATTERN_FLAGS)
    decoder.check(type(pattern) in (str, bytes), "pattern")
    decoder.check(_is_quick_pattern(pattern, flags), "pattern")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return re.compile(pattern, flags)
    except (re.error, ValueError, OverflowError, RecursionError):
        raise CodecError("The result is malformed (pattern).") from None


def _constant(value: Any) -> Callable[[Decoder, list[Any], int], Any]:
    def rule(decoder: Decoder, node: list[Any], depth: int) -> Any:
        decoder.check(len(node) == 1, "constant")
        return value

    return rule


DECODERS: Final[dict[int, Callable[[Decoder, list[Any], int], Any]]] = {
    tags.BIG_INT: _decode_big_int,
    tags.COMPLEX: _decode_complex,
    tags.SURROGATES: _decode_surrogates,
    tags.RANGE: _decode_range,
    tags.SLICE: _decode_slice,
    tags.ELLIPSIS: _constant(...),
    tags.NOT_IMPLEMENTED: _constant(NotImplemented),
    tags.DATETIME: _decode_datetime,
    tags.DATE: _decode_date,
    tags.TIME: _decode_time,
    tags.TIMEDELTA: _decode_timedelta,
    tags.TIMEZONE: _decode_timezone,
    tags.DECIMAL: _decode_decimal,
    tags.FRACTION: _decode_fraction,
    tags.UUID: _decode_uuid,
    tags.PATH: _decode_path,
    tags.PATTERN: _decode_pattern,
}
