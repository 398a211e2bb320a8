"""Takes pandas objects apart into columns, so that an edited column is sent alone.

A pickle of pandas holds a frame as blocks of many columns, and strings in objects one by one.
Here each column is a buffer of its own, strings too. What has no form of its own (a MultiIndex,
periods, intervals, arrays of other libraries) is pickled the way its library does it, and so is
every subclass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

from . import restore_pandas

_PLAIN_KINDS: Final = "biufcmMO"
Rule = Callable[[Any], Any]


def rules() -> dict[type, Rule]:
    """Return how values of the types of the loaded pandas are reduced."""
    pd: Any = sys.modules["pandas"]
    return {
        pd.DataFrame: _reduce_frame,
        pd.Series: _reduce_series,
        pd.Index: _reduce_index,
        pd.RangeIndex: _reduce_range,
        pd.DatetimeIndex: _reduce_times,
    }


def _reduce_frame(frame: Any) -> Any:
    if not hasattr(frame, "_get_column_array"):
        return NotImplemented
    parts = [_part(frame._get_column_array(place)) for place in range(frame.shape[1])]
    unique = not frame.flags.allows_duplicate_labels
    extras = (dict(frame.attrs), unique)
    return restore_pandas.rebuild_frame, (frame.columns, frame.index, parts, *extras)


def _reduce_series(series: Any) -> Any:
    unique = not series.flags.allows_duplicate_labels
    extras = (dict(series.attrs), unique)
    part = _part(series._values)
    return restore_pandas.rebuild_series, (part, series.index, series.name, *extras)


def _reduce_index(index: Any) -> Any:
    part = _part(index._values)
    if not isinstance(part, tuple) and type(part).__module__ != "numpy":
        return NotImplemented
    return restore_pandas.rebuild_index, (part, index.name)


def _reduce_range(index: Any) -> Any:
    return restore_pandas.rebuild_range, (index.start, index.stop, index.step, index.name)


def _reduce_times(index: Any) -> Any:
    part = _zoned(index.array) if index.tz is not None else _contiguous(index.array._ndarray)
    return restore_pandas.rebuild_times, (part, index.name, index.freqstr)


def _part(array: Any) -> Any:
    """Return ``array`` in a form that ``restore_pandas.rebuild_array`` reads."""
    np: Any = sys.modules["numpy"]
    if type(array) is np.ndarray:
        if array.dtype == object:
            return _of_objects(array)
        return _contiguous(array) if array.dtype.kind in _PLAIN_KINDS else array
    match type(array).__name__, type(array).__module__.partition(".")[0]:
        case "Categorical", "pandas":
            codes = _contiguous(array.codes.view())
            return "category", codes, array.categories, array.ordered
        case "DatetimeArray", "pandas" if array.tz is not None:
            return _zoned(array)
        case "DatetimeArray" | "TimedeltaArray", "pandas":
            return _contiguous(array._ndarray)
        case (("ArrowStringArray" | "StringArray" | "ArrowStringArrayNumpySemantics"), "pandas"):
            return _of_string_array(array)
        case _:
            return array


def _contiguous(array: Any) -> Any:
    np: Any = sys.modules["numpy"]
    return np.ascontiguousarray(array)


def _zoned(array: Any) -> Any:
    zone = array.tz
    # The zones of pytz, which not every pandas brings, by their names.
    zone = getattr(zone, "key", None) or getattr(zone, "zone", None) or zone
    return "zoned", _contiguous(array._ndarray), zone


def _of_string_array(array: Any) -> Any:
    dtype = array.dtype
    # The ``str`` of pandas 3 has NaN for what is missing, ``string`` has pd.NA.
    is_str = isinstance(getattr(dtype, "_na_value", None), float)
    kind, missing = ("str", "nan") if is_str else ("string", "na")
    chunked = getattr(array, "_pa_array", None)
    pa: Any = sys.modules.get("pyarrow")
    if pa is None:
        return array
    if chunked is None:
        kind = "python string" if kind == "string" else kind
        return _from_objects(array._ndarray, kind, missing, pa) or array
    chunk = chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()
    return _from_arrow(chunk, kind, missing, pa) or array


def _of_objects(array: Any) -> Any:
    """Return an object column as strings when it holds nothing else, else as it is."""
    pa: Any = sys.modules.get("pyarrow")
    if pa is None or not len(array):
        return array
    kinds = set(map(type, array.tolist()))
    if kinds in ({str}, {str, type(None)}):
        missing = "none"
    elif kinds == {str, float} and all(x != x for x in array.tolist() if type(x) is float):
        missing = "nan"
    else:
        return array
    return _from_objects(array, "object", missing, pa) or array


def _from_objects(objects: Any, kind: str, missing: str, pa: Any) -> Any:
    try:
        arrow = pa.array(objects, type=pa.large_string(), from_pandas=True)
    except (pa.ArrowException, UnicodeEncodeError):
        return None  # a lone surrogate, for one: not every str is UTF-8
    return _from_arrow(arrow, kind, missing, pa)


def _from_arrow(arrow: Any, kind: str, missing: str, pa: Any) -> Any:
    np: Any = sys.modules["numpy"]
    if isinstance(arrow, pa.ChunkedArray):
        return None
    if arrow.type not in (pa.string(), pa.large_string()):
        return None
    width = np.int64 if arrow.type == pa.large_string() else np.int32
    count, (_, offsets_buffer, data_buffer) = len(arrow), arrow.buffers()
    if not count or offsets_buffer is None:
        offsets = np.zeros(1, dtype=width)
    else:
        offsets = np.frombuffer(offsets_buffer, dtype=width)[arrow.offset :][: count + 1]
    begin, end = int(offsets[0]), int(offsets[-1])
    if begin:
        offsets = offsets - begin
    data = np.frombuffer(data_buffer, np.uint8)[begin:end] if data_buffer else np.zeros(0, np.uint8)
    validity = None
    if arrow.null_count:
        valid = arrow.is_valid().to_numpy(zero_copy_only=False)
        validity = np.packbits(valid, bitorder="little")
    return "strings", kind, missing, count, validity, offsets, data
