"""Frames, series and indexes, column by column, from their public parts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from . import arrow_values, packed_text, period_values, tags
from .failures import CodecError, LibraryMissing, Unsupported
from .libraries import load, loaded
from .numpy_values import (
    are_hashable_objects,
    check_hashable_objects,
    decode_array,
    encode_array,
    encode_numpy,
    is_of_objects,
)

if TYPE_CHECKING:
    from .decode import Decoder
    from .encode import Encoder

_MASKED: Final = frozenset(
    [
        "Int8",
        "Int16",
        "Int32",
        "Int64",
        "UInt8",
        "UInt16",
        "UInt32",
        "UInt64",
        "Float32",
        "Float64",
        "boolean",
    ]
)
_CLOSED: Final = ("left", "right", "both", "neither")
_UNITS: Final = ("s", "ms", "us", "ns")
_FREQUENCY: Final = re.compile(r"-?\d{0,9}[A-Za-z]{1,4}(-[A-Z]{3})?\Z")
# An index is lazy: a longer one would become a memory bomb at its first use.
_MAX_RANGE: Final = 1 << 27
_MAX_LEVELS: Final = 100


def encode_pandas(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of a pandas object."""
    pandas = loaded("pandas")
    cls = type(value)
    if value is pandas.NaT:
        return [tags.PANDAS_NAT]
    if value is pandas.NA:
        return [tags.PANDAS_NA]
    if cls is pandas.Timestamp:
        zone = encoder.time_zone(value.tzinfo)
        return [tags.TIMESTAMP, value.asm8.view("i8").item(), value.unit, zone]
    if cls is pandas.Timedelta:
        return [tags.PANDAS_TIMEDELTA, value.asm8.view("i8").item(), value.unit]
    if cls is pandas.Period:
        return period_values.encode_period(encoder, value)
    if cls is pandas.Interval:
        return _interval(encoder, value, depth)
    if cls is pandas.DataFrame:
        encoder.mark(value)
        columns, index = _index(encoder, value.columns, depth), _index(encoder, value.index, depth)
        data = [_column(encoder, value.iloc[:, i].array, depth) for i in range(value.shape[1])]
        return [tags.FRAME, columns, index, *data]
    if cls is pandas.Series:
        encoder.mark(value)
        name, index = encoder.node(value.name, depth), _index(encoder, value.index, depth)
        return [tags.SERIES, name, index, _column(encoder, value.array, depth)]
    if isinstance(value, pandas.Index):
        return _index(encoder, value, depth)
    if cls is pandas.Categorical:
        return _column(encoder, value, depth)
    if isinstance(value, pandas.api.extensions.ExtensionDtype):
        # An empty column of it says all that there is to say.
        return [tags.PANDAS_DTYPE, _column(encoder, pandas.array([], dtype=value), depth)]
    if isinstance(value, pandas.api.extensions.ExtensionArray):
        return _column(encoder, value, depth)
    raise Unsupported(cls.__qualname__)


def _interval(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    ends = [_end(encoder, end, depth) for end in (value.left, value.right)]
    return [tags.INTERVAL, *ends, value.closed]


def _end(encoder: Encoder, end: Any, depth: int) -> Any:
    # By its own rule: never as a name of the user's, which may stand for something else by then.
    pandas, numpy = loaded("pandas"), loaded("numpy")
    if type(end) in (int, float):
        return encoder.node(end)
    if type(end) in (pandas.Timestamp, pandas.Timedelta):
        return encode_pandas(encoder, end, depth)
    if isinstance(end, (numpy.integer, numpy.floating)):
        return encode_numpy(encoder, end, depth)
    raise Unsupported("an interval of something else")


def _index(encoder: Encoder, index: Any, depth: int) -> list[Any]:
    pandas = loaded("pandas")
    cls = type(index)
    if cls is pandas.RangeIndex:
        if len(index) > _MAX_RANGE:
            raise Unsupported("a very long range")
        name = encoder.node(index.name, depth)
        return [tags.RANGE_INDEX, name, index.start, index.stop, index.step]
    if cls is pandas.MultiIndex:
        names = [encoder.node(name, depth) for name in index.names]
        levels = [_index(encoder, level, depth) for level in index.levels]
        codes = [encode_array(encoder, _plain(code), depth) for code in index.codes]
        return [tags.MULTI_INDEX, names, levels, codes]
    if not are_hashable_objects(index):
        raise Unsupported("an index with a hash of its own")
    has_frequency = cls.__name__ in ("DatetimeIndex", "TimedeltaIndex")
    frequency = index.freqstr if has_frequency else None
    name = encoder.node(index.name, depth)
    return [tags.INDEX, name, _column(encoder, index.array, depth), frequency]


def _plain(array: Any) -> Any:
    return loaded("numpy").asarray(array)


def _column(encoder: Encoder, array: Any, depth: int) -> list[Any]:
    pandas, numpy = loaded("pandas"), loaded("numpy")
    dtype = array.dtype
    if isinstance(dtype, numpy.dtype) or type(dtype).__name__ == "NumpyEADtype":
        return encode_array(encoder, array.to_numpy(), depth)
    if isinstance(dtype, pandas.CategoricalDtype):
        codes = encode_array(encoder, _plain(array.codes), depth)
        categories = _index(encoder, dtype.categories, depth)
        return [tags.CATEGORICAL, codes, categories, bool(dtype.ordered)]
    if isinstance(dtype, pandas.DatetimeTZDtype):
        stamps = encode_array(encoder, _plain(array.asi8), depth)
        return [tags.ZONED, stamps, dtype.unit, encoder.time_zone(dtype.tz)]
    if isinstance(dtype, pandas.PeriodDtype):
        return period_values.encode_periods(encoder, array, depth)
    if isinstance(dtype, pandas.IntervalDtype):
        ends = [_column(encoder, end.array, depth) for end in (array.left, array.right)]
        return [tags.INTERVALS, *ends, array.closed]
    if isinstance(dtype, pandas.StringDtype):
        return _text_column(encoder, array, dtype)
    if str(dtype) in _MASKED:
        data = encode_array(encoder, array._data, depth)
        return [tags.MASKED, str(dtype), data, encode_array(encoder, array._mask, depth)]
    raise Unsupported(str(dtype))


def _text_column(encoder: Encoder, array: Any, dtype: Any) -> list[Any]:
    missing = "NA" if dtype.na_value is loaded("pandas").NA else "nan"
    if dtype.storage == "pyarrow":
        texts = arrow_values.encode_texts(encoder, array)
        return [tags.TEXT_COLUMN, "pyarrow", missing, texts]
    joined, lengths = packed_text.pack(array.to_numpy(dtype=object, na_value=None).tolist())
    blobs = encoder.blob(joined), encoder.blob(lengths)
    return [tags.TEXT_COLUMN, "python", missing, *blobs]


# ---------------------------------------------------------------- decode


def _build(what: str, make: Callable[[], Any]) -> Any:
    """Return ``make()``, whose failure is the message's fault."""
    try:
        return make()
    except (CodecError, LibraryMissing):
        raise
    except Exception as exc:
        raise CodecError(f"The result is malformed ({what}: {type(exc).__name__}).") from None


def _decode_frame(decoder: Decoder, node: list[Any], depth: int) -> Any:
    pandas = load("pandas")
    decoder.check(len(node) >= 3, "frame")
    number = decoder.reserve()
    columns = _decode_index(decoder, node[1], depth)
    index = _decode_index(decoder, node[2], depth)
    decoder.check(len(columns) == len(node) - 3, "frame")
    data = {}
    for position, part in enumerate(node[3:]):
        data[position] = _decode_column(decoder, part, depth)
        decoder.check(len(data[position]) == len(index), "frame")

    def make() -> Any:
        if not data:
            frame = pandas.DataFrame(index=index)
        else:
            frame = pandas.DataFrame(data, index=index, copy=False)
        for position, array in data.items():
            # pandas guesses another dtype for objects that look like text.
            if is_of_objects(array) and not is_of_objects(frame[position]):
                frame[position] = pandas.Series(array, index=index, dtype=object)
        frame.columns = columns
        return frame

    return decoder.settle(number, _build("frame", make))


def _decode_series(decoder: Decoder, node: list[Any], depth: int) -> Any:
    pandas = load("pandas")
    decoder.check(len(node) == 4, "series")
    number = decoder.reserve()
    name = _name(decoder, node[1], depth)
    index = _decode_index(decoder, node[2], depth)
    array = _decode_column(decoder, node[3], depth)
    decoder.check(len(array) == len(index), "series")
    made = _build("series", lambda: pandas.Series(array, index=index, name=name, dtype=array.dtype))
    return decoder.settle(number, made)


def _name(decoder: Decoder, node: Any, depth: int) -> Any:
    name = decoder.value(node, depth)
    decoder.keys([name])
    return name


def _decode_index(decoder: Decoder, node: Any, depth: int) -> Any:
    decoder.check(type(node) is list and node, "index")
    if node[0] == tags.RANGE_INDEX:
        return _decode_range_index(decoder, node, depth)
    if node[0] == tags.MULTI_INDEX:
        return _decode_multi_index(decoder, node, depth)
    decoder.check(node[0] == tags.INDEX and len(node) == 4, "index")
    pandas = load("pandas")
    name, array = _name(decoder, node[1], depth), _decode_column(decoder, node[2], depth)
    check_hashable_objects(decoder, array)

    def make() -> Any:
        if is_of_objects(array):
            index = pandas.Index(array, name=name, dtype=object)
        else:
            index = pandas.Index(array, name=name)
        if node[3] is not None and len(index):
            decoder.check(_FREQUENCY.match(decoder.text(node[3], 24)), "frequency")
            index.freq = node[3]
        return index

    return _build("index", make)


def _decode_range_index(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 5, "index")
    start, stop, step = (decoder.integer(part, -(1 << 62)) for part in node[2:])
    decoder.check(step != 0 and len(range(start, stop, step)) <= _MAX_RANGE, "index")
    return load("pandas").RangeIndex(start, stop, step, name=_name(decoder, node[1], depth))


def _decode_multi_index(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 4 and all(type(part) is list for part in node[1:]), "index")
    decoder.check(len(node[1]) == len(node[2]) == len(node[3]), "index")
    decoder.check(0 < len(node[1]) < _MAX_LEVELS, "index")
    names = [_name(decoder, part, depth) for part in node[1]]
    levels = [_decode_index(decoder, part, depth) for part in node[2]]
    codes = [decode_array(decoder, part, depth) for part in node[3]]
    for code, level in zip(codes, levels, strict=True):
        _check_codes(decoder, code, level)
        decoder.check(len(code) == len(codes[0]), "index")
    multi = load("pandas").MultiIndex
    return _build("index", lambda: multi(levels, codes, names=names, verify_integrity=True))


def _check_codes(decoder: Decoder, codes: Any, values: Any) -> None:
    decoder.check(codes.ndim == 1 and codes.dtype.kind == "i", "codes")
    if len(codes):
        decoder.check(codes.min() >= -1 and codes.max() < len(values), "codes")


def _decode_column(decoder: Decoder, node: Any, depth: int) -> Any:
    decoder.check(type(node) is list and node, "column")
    rule = _COLUMNS.get(node[0]) if type(node[0]) is int else None
    if rule is None:
        raise CodecError("The result is malformed (column).")
    return rule(decoder, node, depth)


def _decode_plain(decoder: Decoder, node: list[Any], depth: int) -> Any:
    array = decode_array(decoder, node, depth)
    decoder.check(array.ndim == 1 and array.dtype.names is None, "column")
    return array


def _decode_categorical(decoder: Decoder, node: list[Any], depth: int) -> Any:
    pandas = load("pandas")
    decoder.check(len(node) == 4 and type(node[3]) is bool, "categories")
    codes = decode_array(decoder, node[1], depth)
    categories = _decode_index(decoder, node[2], depth)
    _check_codes(decoder, codes, categories)

    def make() -> Any:
        decoder.check(categories.is_unique and not categories.hasnans, "categories")
        return pandas.Categorical.from_codes(codes, categories, ordered=node[3])

    return _build("categories", make)


def _decode_zoned(decoder: Decoder, node: list[Any], depth: int) -> Any:
    pandas = load("pandas")
    decoder.check(len(node) == 4 and node[2] in _UNITS, "times")
    stamps = decode_array(decoder, node[1], depth)
    decoder.check(stamps.dtype.str == "<i8" and stamps.ndim == 1, "times")
    zone = decoder.time_zone(node[3])
    decoder.check(zone is not None, "times")

    def make() -> Any:
        times = pandas.DatetimeIndex(stamps.view(f"M8[{node[2]}]"))
        return times.tz_localize("UTC").tz_convert(zone).array

    return _build("times", make)


def _decode_text(decoder: Decoder, node: list[Any], depth: int) -> Any:
    pandas = load("pandas")
    decoder.check(len(node) >= 3 and node[2] in ("nan", "NA"), "text column")
    missing = pandas.NA if node[2] == "NA" else float("nan")
    storage = node[1]
    if storage == "pyarrow":
        decoder.check(len(node) == 4, "text column")
        texts = arrow_values.decode_texts(decoder, node[3], depth)
        if type(texts) is list:  # no pyarrow here: the same strings, stored by Python
            storage = "python"
    else:
        decoder.check(storage == "python" and len(node) == 5, "text column")
        texts = packed_text.unpack(decoder.raw(node[3]), decoder.raw(node[4]), may_miss=True)
    dtype = pandas.StringDtype(storage, na_value=missing)
    return _build("text column", lambda: pandas.array(texts, dtype=dtype))


def _decode_masked(decoder: Decoder, node: list[Any], depth: int) -> Any:
    pandas = load("pandas")
    decoder.check(len(node) == 4 and type(node[1]) is str and node[1] in _MASKED, "masked column")
    data = decode_array(decoder, node[2], depth)
    mask = decode_array(decoder, node[3], depth)
    wanted = "bool" if node[1] == "boolean" else node[1].lower()
    decoder.check(data.ndim == mask.ndim == 1 and len(data) == len(mask), "masked column")
    decoder.check(mask.dtype == bool and data.dtype == load("numpy").dtype(wanted), "masked column")
    kinds = {"b": pandas.arrays.BooleanArray, "f": pandas.arrays.FloatingArray}
    make = kinds.get(data.dtype.kind, pandas.arrays.IntegerArray)
    return _build("masked column", lambda: make(data, mask))


def _decode_intervals(decoder: Decoder, node: list[Any], depth: int) -> Any:
    pandas = load("pandas")
    decoder.check(len(node) == 4 and node[3] in _CLOSED, "intervals")
    left, right = (_ends(decoder, part, depth) for part in node[1:3])
    decoder.check(len(left) == len(right) and left.dtype == right.dtype, "intervals")
    make = pandas.arrays.IntervalArray.from_arrays
    return _build("intervals", lambda: make(pandas.Index(left), pandas.Index(right), node[3]))


def _ends(decoder: Decoder, node: Any, depth: int) -> Any:
    is_known = type(node) is list and node and node[0] in (tags.ARRAY, tags.ZONED)
    decoder.check(is_known, "intervals")
    ends = _decode_column(decoder, node, depth)
    decoder.check(node[0] == tags.ZONED or ends.dtype.kind in "iufmM", "intervals")
    return ends


def _decode_interval(decoder: Decoder, node: list[Any], depth: int) -> Any:
    pandas, numpy = load("pandas"), load("numpy")
    decoder.check(len(node) == 4 and node[3] in _CLOSED, "interval")
    ends = decoder.parts(node[1:3], depth)
    known = (pandas.Timestamp, pandas.Timedelta, numpy.integer, numpy.floating)
    for end in ends:
        decoder.check(type(end) in (int, float) or isinstance(end, known), "interval")
    return _build("interval", lambda: pandas.Interval(*ends, closed=node[3]))


def _decode_timestamp(decoder: Decoder, node: list[Any], depth: int) -> Any:
    pandas, numpy = load("pandas"), load("numpy")
    decoder.check(len(node) == 4 and node[2] in _UNITS, "timestamp")
    number, zone = decoder.integer(node[1], -(1 << 63) + 1, 1 << 63), decoder.time_zone(node[3])

    def make() -> Any:
        stamp = pandas.Timestamp(numpy.datetime64(number, node[2]))
        return stamp if zone is None else stamp.tz_localize("UTC").tz_convert(zone)

    return _build("timestamp", make)


def _decode_timedelta(decoder: Decoder, node: list[Any], depth: int) -> Any:
    pandas, numpy = load("pandas"), load("numpy")
    decoder.check(len(node) == 3 and node[2] in _UNITS, "timedelta")
    number = decoder.integer(node[1], -(1 << 63) + 1, 1 << 63)
    return _build("timedelta", lambda: pandas.Timedelta(numpy.timedelta64(number, node[2])))


def _decode_dtype(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 2, "dtype")
    return _decode_column(decoder, node[1], depth).dtype


_COLUMNS: Final[dict[int, Callable[[Decoder, list[Any], int], Any]]] = {
    tags.ARRAY: _decode_plain,
    tags.CATEGORICAL: _decode_categorical,
    tags.ZONED: _decode_zoned,
    tags.TEXT_COLUMN: _decode_text,
    tags.MASKED: _decode_masked,
    tags.PERIODS: period_values.decode_periods,
    tags.INTERVALS: _decode_intervals,
}

DECODERS: Final[dict[int, Callable[[Decoder, list[Any], int], Any]]] = {
    tags.FRAME: _decode_frame,
    tags.SERIES: _decode_series,
    tags.INDEX: _decode_index,
    tags.RANGE_INDEX: _decode_index,
    tags.MULTI_INDEX: _decode_index,
    tags.CATEGORICAL: _decode_column,
    tags.ZONED: _decode_column,
    tags.MASKED: _decode_column,
    tags.TEXT_COLUMN: _decode_column,
    tags.PERIODS: _decode_column,
    tags.INTERVALS: _decode_column,
    tags.PERIOD: period_values.decode_period,
    tags.INTERVAL: _decode_interval,
    tags.PANDAS_DTYPE: _decode_dtype,
    tags.TIMESTAMP: _decode_timestamp,
    tags.PANDAS_TIMEDELTA: _decode_timedelta,
    tags.PANDAS_NA: lambda decoder, node, depth: load("pandas").NA,
    tags.PANDAS_NAT: lambda decoder, node, depth: load("pandas").NaT,
}
