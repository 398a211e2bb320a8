"""Builds pandas objects from their columns. Runs in the container.

The parts are arrays and plain values, so that the two ends need not have the same pandas: what
a pickle of pandas itself holds changes between its releases.
"""

from __future__ import annotations

import itertools
from typing import Any, Final

# pandas keeps columns of one dtype in one block; a frame of more loose columns than this is
# called fragmented, and is slow.
_MAX_LOOSE_COLUMNS: Final = 100


def rebuild_frame(
    columns: Any, index: Any, parts: list[Any], attrs: dict[Any, Any], unique: bool
) -> Any:
    """Return the frame whose columns are ``parts``, in order, without copying them."""
    import numpy as np
    import pandas as pd

    data: dict[int, Any] = {}
    for place, part in enumerate(parts):
        array = rebuild_array(part)
        if isinstance(array, np.ndarray) and array.dtype == object:
            # Not inferred again: pandas would make strings of it.
            array = pd.Series(array, index=index, dtype=object, copy=False)
        data[place] = array
    frame = pd.DataFrame(data, index=index, copy=len(parts) > _MAX_LOOSE_COLUMNS)
    frame.index, frame.columns = index, columns
    return _with_extras(frame, attrs, unique)


def rebuild_series(part: Any, index: Any, name: Any, attrs: dict[Any, Any], unique: bool) -> Any:
    """Return the series of ``part``, without copying it."""
    import numpy as np
    import pandas as pd

    array = rebuild_array(part)
    is_object = isinstance(array, np.ndarray) and array.dtype == object
    series = pd.Series(array, index=index, dtype=object if is_object else None, copy=False)
    series.index, series.name = index, name
    return _with_extras(series, attrs, unique)


def _with_extras(value: Any, attrs: dict[Any, Any], unique: bool) -> Any:
    value.attrs.update(attrs)
    if unique:
        value.flags.allows_duplicate_labels = False
    return value


def rebuild_index(part: Any, name: Any) -> Any:
    """Return the index of ``part``, of an object dtype where it was of one."""
    import numpy as np
    import pandas as pd

    array = rebuild_array(part)
    is_object = isinstance(array, np.ndarray) and array.dtype == object
    return pd.Index(array, name=name, dtype=object if is_object else None, copy=False)


def rebuild_range(start: int, stop: int, step: int, name: Any) -> Any:
    """Return a RangeIndex."""
    import pandas as pd

    return pd.RangeIndex(start, stop, step, name=name)


def rebuild_times(part: Any, name: Any, frequency: str | None) -> Any:
    """Return a DatetimeIndex, with its frequency where this pandas knows it."""
    import pandas as pd

    index = pd.DatetimeIndex(rebuild_array(part), name=name, copy=False)
    if frequency is not None:
        try:
            index.freq = pd.tseries.frequencies.to_offset(frequency)
        except (ValueError, AttributeError):
            pass  # a name of another release: the times are the same without it
    return index


def rebuild_array(part: Any) -> Any:
    """Return the array of one column: ``part`` itself unless it is a tuple that describes it."""
    if not isinstance(part, tuple):
        return part
    match part:
        case ("strings", kind, missing, count, validity, offsets, data):
            return _strings(kind, missing, count, validity, offsets, data)
        case ("category", codes, categories, ordered):
            import pandas as pd

            return pd.Categorical.from_codes(codes, categories=categories, ordered=ordered)
        case ("zoned", utc, zone):
            import pandas as pd

            return pd.Series(utc, copy=False).dt.tz_localize("UTC").dt.tz_convert(zone).array
        case _:
            raise ValueError("The frame was sent from another release of Grid-X.")


def _strings(kind: str, missing: str, count: int, validity: Any, offsets: Any, data: Any) -> Any:
    """Return strings as the dtype ``kind`` of this pandas.

    ``kind``: "object", "str" (of pandas 3), "string" or "python string"; ``missing``: "none",
    "nan" or "na".
    """
    import numpy as np
    import pandas as pd

    arrow = _arrow_strings(count, validity, offsets, data)
    if kind == "string":
        storage = "python" if isinstance(arrow, np.ndarray) else "pyarrow"
        return pd.array(arrow, dtype=pd.StringDtype(storage))
    if kind == "str" and int(pd.__version__.partition(".")[0]) >= 3:
        return pd.array(arrow, dtype="str")
    objects = arrow
    if not isinstance(arrow, np.ndarray):
        objects = arrow.to_numpy(zero_copy_only=False)
        if objects.dtype != object:  # of nothing but missing values
            objects = np.full(count, None, dtype=object)
    if validity is not None and missing == "nan":
        objects[~_unpacked(validity, count)] = np.nan
    return pd.array(objects, dtype=pd.StringDtype("python")) if kind == "python string" else objects


def _arrow_strings(count: int, validity: Any, offsets: Any, data: Any) -> Any:
    """Return an Arrow array, or an array of objects where there is no Arrow."""
    import numpy as np

    try:
        import pyarrow as pa
    except ImportError:
        text = bytes(data)
        cuts = offsets.tolist()
        objects = np.empty(count, dtype=object)
        objects[:] = [text[a:b].decode() for a, b in itertools.pairwise(cuts)]
        if validity is not None:
            objects[~_unpacked(validity, count)] = None
        return objects
    kind = pa.large_string() if offsets.dtype.itemsize == 8 else pa.string()
    buffers = [None if part is None else pa.py_buffer(part) for part in (validity, offsets, data)]
    return pa.Array.from_buffers(kind, count, buffers)


def _unpacked(validity: Any, count: int) -> Any:
    import numpy as np

    return np.unpackbits(validity, count=count, bitorder="little").astype(bool)
