"""Periods of pandas, alone and as columns: ordinals, and a frequency of a closed grammar."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any, Final

from . import tags
from .failures import CodecError, LibraryMissing, Unsupported
from .libraries import load, loaded
from .numpy_values import decode_array, encode_array

if TYPE_CHECKING:
    from .decode import Decoder
    from .encode import Encoder

_FREQUENCY: Final = re.compile(r"(?:[1-9]\d{0,8})?[A-Za-z]{1,4}(?:-[A-Z]{3})?\Z")
_MISSING: Final = -(1 << 63)
_FIRST_YEAR: Final = 1
_LAST_YEAR: Final = 9_999


def encode_period(encoder: Encoder, value: Any) -> list[Any]:
    """Return the node of one period.

    Raises:
        Unsupported: its frequency has no plain name, or it is outside the years 1 to 9999.
    """
    if not _is_known(value.freqstr, value.ordinal, value.ordinal):
        raise Unsupported("a period of another kind")
    return [tags.PERIOD, value.ordinal, value.freqstr]


def encode_periods(encoder: Encoder, array: Any, depth: int) -> list[Any]:
    """Return the node of a column of periods.

    Raises:
        Unsupported: as ``encode_period``.
    """
    ordinals = loaded("numpy").asarray(array.asi8)
    if not _is_known(array.freqstr, *_ends(ordinals)):
        raise Unsupported("periods of another kind")
    return [tags.PERIODS, encode_array(encoder, ordinals, depth), array.freqstr]


def _ends(ordinals: Any) -> tuple[int, int]:
    there = ordinals[ordinals != _MISSING]
    return (int(there.min()), int(there.max())) if len(there) else (0, 0)


def _is_known(frequency: str, low: int, high: int) -> bool:
    if not _FREQUENCY.match(frequency):
        return False
    first, last = _bounds(load("pandas"), _dtype_of(frequency))
    return first <= low and high <= last


def _dtype_of(frequency: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # business days are deprecated as a period
        return load("pandas").PeriodDtype(frequency)


def _bounds(pandas: Any, dtype: Any) -> tuple[int, int]:
    """Return the first and last ordinal that pandas can show: beyond, its years wrap around."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first = pandas.Period(year=_FIRST_YEAR, month=1, day=1, freq=dtype.freq)
            last = pandas.Period(year=_LAST_YEAR, month=12, day=31, freq=dtype.freq)
    except pandas.errors.OutOfBoundsDatetime:
        return _MISSING + 1, -(_MISSING + 1)  # of nanoseconds 64 bits reach less far
    return first.ordinal, last.ordinal


# ---------------------------------------------------------------- decode


def _checked_dtype(decoder: Decoder, frequency: Any, low: int, high: int) -> Any:
    try:
        decoder.check(_is_known(decoder.text(frequency, 24), low, high), "periods")
        return _dtype_of(frequency)
    except (CodecError, LibraryMissing):
        raise
    except Exception as exc:
        raise CodecError(f"The result is malformed (periods: {type(exc).__name__}).") from None


def decode_periods(decoder: Decoder, node: list[Any], depth: int) -> Any:
    """Return the array of periods of ``node``."""
    decoder.check(len(node) == 3 and type(node[1]) is list and node[1], "periods")
    ordinals = decode_array(decoder, node[1], depth)
    decoder.check(ordinals.dtype.str == "<i8" and ordinals.ndim == 1, "periods")
    dtype = _checked_dtype(decoder, node[2], *_ends(ordinals))
    return load("pandas").arrays.PeriodArray(ordinals, dtype=dtype)


def decode_period(decoder: Decoder, node: list[Any], depth: int) -> Any:
    """Return the period of ``node``."""
    decoder.check(len(node) == 3, "period")
    ordinal = decoder.integer(node[1], _MISSING + 1, -(_MISSING + 1))
    dtype = _checked_dtype(decoder, node[2], ordinal, ordinal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load("pandas").Period(ordinal=ordinal, freq=dtype.freq)
