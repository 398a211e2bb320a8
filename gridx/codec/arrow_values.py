"""Arrow arrays, tables and polars frames: a closed grammar of types, and raw buffers.

No Arrow IPC: its metadata could name extension types and compressed buffers.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

from . import tags
from .failures import CodecError, LibraryMissing, Unsupported
from .libraries import load, loaded

if TYPE_CHECKING:
    from .decode import Decoder
    from .encode import Encoder

_PRIMITIVE: Final = {
    **{name: name for name in ("int8", "int16", "int32", "int64")},
    **{name: name for name in ("uint8", "uint16", "uint32", "uint64")},
    **{name: name for name in ("string", "large_string", "binary", "large_binary", "null")},
    "halffloat": "float16",
    "float": "float32",
    "double": "float64",
    "bool": "bool_",
    "date32[day]": "date32",
    "date64[ms]": "date64",
}
"""What Arrow calls a type, and how pyarrow makes it."""
_UNITS: Final = ("s", "ms", "us", "ns")
_PER_SECOND: Final = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_MAX_NESTING: Final = 16
_MAX_FIELDS: Final = 1_000
# Days from 1970 to year 1, and to the end of year 9999: polars panics beyond.
_FIRST_DAY: Final = -719_162
_LAST_DAY: Final = 2_932_896


def encode_arrow(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of an Arrow table or array."""
    pyarrow = loaded("pyarrow")
    if isinstance(value, pyarrow.Table):
        columns = [_array(encoder, _in_one_piece(column)) for column in value.columns]
        return [tags.ARROW_TABLE, [encoder.node(name) for name in value.column_names], *columns]
    if isinstance(value, pyarrow.Array):
        return _array(encoder, value)
    raise Unsupported(type(value).__qualname__)


def encode_polars(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of a polars frame; needs pyarrow beside polars."""
    if type(value).__name__ != "DataFrame":
        raise Unsupported(type(value).__qualname__)
    return [tags.POLARS_FRAME, encode_arrow(encoder, value.to_arrow(), depth)]


def _in_one_piece(column: Any) -> Any:
    pyarrow = loaded("pyarrow")
    array = column.combine_chunks()
    if isinstance(array, pyarrow.ChunkedArray):
        return array.chunk(0) if array.num_chunks else pyarrow.array([], array.type)
    return array


def _array(encoder: Encoder, array: Any) -> list[Any]:
    pyarrow = loaded("pyarrow")
    if pyarrow.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if str(array.type) in ("string_view", "binary_view"):
        is_text = str(array.type) == "string_view"
        array = array.cast(pyarrow.large_string() if is_text else pyarrow.large_binary())
    node = _type_node(array.type)
    if array.offset or array.nbytes < array.get_total_buffer_size() // 2:
        array = _own_copy(array)
    return [tags.ARROW_ARRAY, node, len(array), _buffers(encoder, array)]


def _own_copy(array: Any) -> Any:
    """Return ``array`` without the rest of the larger array that it is a slice of."""
    return loaded("pyarrow").concat_arrays([array.slice(0, 0), array])


def encode_texts(encoder: Encoder, array: Any) -> list[Any]:
    """Return the node of a pandas column of strings that are stored by Arrow."""
    pyarrow = loaded("pyarrow")
    stored = array.__arrow_array__(pyarrow.large_string())
    if isinstance(stored, pyarrow.ChunkedArray):
        stored = _in_one_piece(stored)
    return _array(encoder, stored)


def _type_node(kind: Any) -> Any:
    types = loaded("pyarrow").types
    if str(kind) in _PRIMITIVE:
        return str(kind)
    if types.is_timestamp(kind) and (kind.tz is None or tags.TIME_ZONE_KEY.match(kind.tz)):
        return ["ts", kind.unit, kind.tz]
    if types.is_duration(kind):
        return ["dur", kind.unit]
    if types.is_decimal128(kind):
        return ["dec", kind.precision, kind.scale]
    if types.is_list(kind) or types.is_large_list(kind):
        return ["ll" if types.is_large_list(kind) else "l", _type_node(kind.value_type)]
    if types.is_struct(kind):
        return ["st", [[field.name, _type_node(field.type)] for field in kind]]
    raise Unsupported(f"arrow {kind}")


def _buffers(encoder: Encoder, array: Any) -> list[Any]:
    types = loaded("pyarrow").types
    own = array.buffers()[: array.type.num_buffers]
    children: list[Any] = []
    if types.is_struct(array.type):
        children = [array.field(i) for i in range(array.type.num_fields)]
    elif types.is_nested(array.type):
        children = [array.values]
    blobs = [None if buffer is None else encoder.blob(buffer) for buffer in own]
    return [len(array), blobs, [_buffers(encoder, child) for child in children]]


# ---------------------------------------------------------------- decode


def _decode_array(decoder: Decoder, node: Any, depth: int) -> Any:
    load("pyarrow")
    is_array = type(node) is list and len(node) == 4 and node[0] == tags.ARROW_ARRAY
    decoder.check(is_array and type(node[3]) is list and node[3], "arrow array")
    decoder.check(node[3][0] == node[2], "arrow array")
    try:
        array = _rebuild(decoder, _type(decoder, node[1]), node[3])
        array.validate(full=True)
        _check_dates(decoder, array)
    except (CodecError, LibraryMissing):
        raise
    except Exception as exc:
        raise CodecError(f"The result is malformed (arrow: {type(exc).__name__}).") from None
    return array


def decode_texts(decoder: Decoder, node: Any, depth: int) -> Any:
    """Return an Arrow array of strings; a list of them where pyarrow is not installed."""
    is_array = type(node) is list and len(node) == 4 and node[0] == tags.ARROW_ARRAY
    decoder.check(is_array and node[1] == "large_string", "text column")
    try:
        return _decode_array(decoder, node, depth)
    except LibraryMissing:
        return _texts_without_arrow(decoder, node)


def _texts_without_arrow(decoder: Decoder, node: list[Any]) -> list[str | None]:
    parts = node[3][1] if type(node[3]) is list and len(node[3]) == 3 else None
    if type(parts) is not list or len(parts) != 3:
        raise CodecError("The result is malformed (text column).")
    valid, offsets, text = (None if part is None else decoder.raw(part) for part in parts)
    if offsets is None or text is None:
        raise CodecError("The result is malformed (text column).")
    count = decoder.integer(node[2], 0, len(offsets) // 8 - 1)
    decoder.check(valid is None or len(valid) * 8 >= count, "text column")
    ends = [int.from_bytes(offsets[at : at + 8], "little") for at in range(0, count * 8 + 8, 8)]
    is_rising = all(low <= high for low, high in itertools.pairwise(ends))
    decoder.check(is_rising and ends[-1] <= len(text), "text column")
    return [
        None
        if valid is not None and not valid[i >> 3] >> (i & 7) & 1
        else str(text[ends[i] : ends[i + 1]], "utf-8")
        for i in range(count)
    ]


def _type(decoder: Decoder, node: Any, nesting: int = 0) -> Any:
    pyarrow = load("pyarrow")
    decoder.check(nesting < _MAX_NESTING, "arrow type")
    if type(node) is str:
        decoder.check(node in _PRIMITIVE, "arrow type")
        return getattr(pyarrow, _PRIMITIVE[node])()
    decoder.check(type(node) is list, "arrow type")
    match node:
        case ["ts", str() as unit, (str() | None) as zone] if unit in _UNITS:
            decoder.check(zone is None or tags.TIME_ZONE_KEY.match(zone), "arrow type")
            return pyarrow.timestamp(unit, zone)
        case ["dur", str() as unit] if unit in _UNITS:
            return pyarrow.duration(unit)
        case ["dec", precision, scale]:
            digits = decoder.integer(precision, 1, 38)
            return pyarrow.decimal128(digits, decoder.integer(scale, -38, 38))
        case ["l", inner]:
            return pyarrow.list_(_type(decoder, inner, nesting + 1))
        case ["ll", inner]:
            return pyarrow.large_list(_type(decoder, inner, nesting + 1))
        case ["st", list() as fields] if len(fields) < _MAX_FIELDS:
            return pyarrow.struct([_field(decoder, field, nesting + 1) for field in fields])
        case _:
            raise CodecError("The result is malformed (arrow type).")


def _field(decoder: Decoder, node: Any, nesting: int) -> Any:
    decoder.check(type(node) is list and len(node) == 2, "arrow type")
    return load("pyarrow").field(decoder.text(node[0]), _type(decoder, node[1], nesting))


def _rebuild(decoder: Decoder, kind: Any, node: Any) -> Any:
    pyarrow = load("pyarrow")
    types = pyarrow.types
    is_array = type(node) is list and len(node) == 3
    decoder.check(is_array and type(node[1]) is list and type(node[2]) is list, "arrow buffers")
    decoder.check(len(node[1]) == kind.num_buffers, "arrow buffers")
    length = decoder.integer(node[0], 0, 1 << 40)
    inner: list[Any] = []
    if types.is_struct(kind):
        inner = [field.type for field in kind]
    elif types.is_nested(kind):
        inner = [kind.value_type]
    decoder.check(len(inner) == len(node[2]), "arrow buffers")
    if types.is_null(kind) or (types.is_struct(kind) and not inner):
        # No byte stands for an element, so nothing else bounds their number.
        decoder.check(length <= decoder.limits.nodes, "arrow buffers")
    children = [_rebuild(decoder, k, n) for k, n in zip(inner, node[2], strict=True)]
    # Of its own: aligned, and nobody else writes to it.
    buffers = [None if blob is None else pyarrow.py_buffer(decoder.own(blob)) for blob in node[1]]
    needs_all = length > 0 and not types.is_null(kind)
    decoder.check(not needs_all or all(b is not None for b in buffers[1:]), "arrow buffers")
    return pyarrow.Array.from_buffers(kind, length, buffers, children=children or None)


def _check_dates(decoder: Decoder, array: Any) -> None:
    pyarrow = load("pyarrow")
    types, kind = pyarrow.types, array.type
    if types.is_struct(kind):
        for position in range(kind.num_fields):
            _check_dates(decoder, array.field(position))
        return
    if types.is_nested(kind):
        _check_dates(decoder, array.values)
        return
    if types.is_date32(kind):
        per_day, numbers = 1, array.view(pyarrow.int32()).cast(pyarrow.int64())
    elif types.is_date64(kind) or types.is_timestamp(kind):
        per_day = 86_400 * _PER_SECOND[getattr(kind, "unit", "ms")]
        numbers = array.view(pyarrow.int64())
    else:
        return
    ends = load("pyarrow.compute").min_max(numbers)
    low, high = ends["min"].as_py(), ends["max"].as_py()
    is_known = low is None or (low >= _FIRST_DAY * per_day and high < (_LAST_DAY + 1) * per_day)
    decoder.check(is_known, "a date outside the years 1 to 9999")


def _decode_table(decoder: Decoder, node: Any, depth: int) -> Any:
    pyarrow = load("pyarrow")
    is_table = type(node) is list and len(node) >= 2 and type(node[1]) is list
    decoder.check(is_table and len(node[1]) == len(node) - 2, "arrow table")
    columns = [_decode_array(decoder, part, depth) for part in node[2:]]
    decoder.check(all(len(column) == len(columns[0]) for column in columns), "arrow table")
    return pyarrow.table(columns, names=[decoder.text(name) for name in node[1]])


def _decode_polars(decoder: Decoder, node: list[Any], depth: int) -> Any:
    polars = load("polars")
    is_frame = len(node) == 2 and type(node[1]) is list and node[1]
    decoder.check(is_frame and node[1][0] == tags.ARROW_TABLE, "polars frame")
    table = _decode_table(decoder, node[1], depth)
    try:
        return polars.from_arrow(table)
    except Exception as exc:
        raise CodecError(f"The result is malformed (polars: {type(exc).__name__}).") from None


DECODERS: Final = {
    tags.ARROW_ARRAY: _decode_array,
    tags.ARROW_TABLE: _decode_table,
    tags.POLARS_FRAME: _decode_polars,
}
