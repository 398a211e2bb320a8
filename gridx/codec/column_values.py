"""Many values of one form at once: scalars as one blob, like dicts and objects as columns."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from . import packed_text, tags, user_values

if TYPE_CHECKING:
    from .decode import Decoder
    from .encode import Encoder

_Rule = Callable[["Decoder", list[Any], int], Any]
# Below this length a plain list is as small and as fast.
_PACKED_LENGTH: Final = 32
_MAX_COLUMNS: Final = 256


def encode_list(encoder: Encoder, value: list[Any], depth: int) -> list[Any] | None:
    """Return the node of a list of one type, which is numbered already; None for others."""
    if len(value) < _PACKED_LENGTH:
        return None
    # One scan at the speed of C tells whether all are of one type.
    kinds = set(map(type, value))
    if len(kinds) > 1:
        return None
    kind = kinds.pop()
    return _packed(encoder, value, kind) or _columns(encoder, value, kind, depth)


def encode_dict(encoder: Encoder, value: dict[Any, Any]) -> list[Any] | None:
    """Return the node of a dict of one type of key and one of value, and number it; else None."""
    if len(value) < _PACKED_LENGTH:
        return None
    key_kinds, kinds = set(map(type, value)), set(map(type, value.values()))
    if len(key_kinds) > 1 or len(kinds) > 1 or not key_kinds <= {str, int}:
        return None
    keys = _packed(encoder, list(value), key_kinds.pop())
    values = _packed(encoder, list(value.values()), kinds.pop()) if keys else None
    if values is None:
        return None
    encoder.mark(value)
    return [tags.MAPPING, keys, values]


def _column(encoder: Encoder, value: list[Any], depth: int) -> list[Any]:
    """Return a list that is no value of the user: it gets no number."""
    kinds = set(map(type, value))
    packed = _packed(encoder, value, kinds.pop()) if len(kinds) == 1 else None
    return packed or [tags.LIST, *[encoder.node(part, depth) for part in value]]


def _columns(encoder: Encoder, value: list[Any], kind: type, depth: int) -> list[Any] | None:
    """Return dicts of the same keys, or objects of one class, as columns; None for others."""
    if kind is dict:
        names = list(value[0])
        if not _are_columns(names) or any(list(row) != names for row in value):
            return None
        head: list[Any] = [tags.ROWS, len(value)]
        columns = [[row[name] for row in value] for name in names]
    elif kind.__module__ == user_values.USER_MODULE:
        fields = user_values.fields_of_plain(value)
        if fields is None:
            return None
        names = list(fields[0])
        if not _are_columns(names) or any(list(part) != names for part in fields):
            return None
        head = [tags.OBJECTS, len(value), kind.__module__, kind.__qualname__]
        columns = [[part[name] for part in fields] for name in names]
    else:
        return None
    if not encoder.mark_all(value):
        return None
    return [*head, names, *[_column(encoder, column, depth + 1) for column in columns]]


def _are_columns(names: list[Any]) -> bool:
    if not 0 < len(names) <= _MAX_COLUMNS:
        return False
    return all(type(name) is str and name.isascii() for name in names)


def _packed(encoder: Encoder, value: list[Any], kind: type) -> list[Any] | None:
    """Return a list of one scalar type as a blob; None for other types."""
    if kind is float:
        return [tags.FLOATS, encoder.blob(_little(array("d", value)))]
    if kind is bool:
        return [tags.BOOLS, encoder.blob(bytes(value))]
    if kind is str:
        text, lengths = packed_text.pack(value)
        return [tags.STRINGS, encoder.blob(text), encoder.blob(lengths)]
    if kind is int:
        try:
            return [tags.INTS, encoder.blob(_little(array("q", value)))]
        except OverflowError:
            return None
    return None


def _little(numbers: array[Any]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


# ---------------------------------------------------------------- decode


def _numbers(code: str) -> _Rule:
    def rule(decoder: Decoder, node: list[Any], depth: int) -> list[Any]:
        decoder.check(len(node) == 2, "packed numbers")
        raw = decoder.raw(node[1])
        numbers = array(code)
        decoder.check(len(raw) % numbers.itemsize == 0, "packed numbers")
        decoder.count(len(raw) // numbers.itemsize)
        numbers.frombytes(raw)
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers.tolist()

    return rule


def _bools(decoder: Decoder, node: list[Any], depth: int) -> list[Any]:
    decoder.check(len(node) == 2, "packed bools")
    raw = bytes(decoder.raw(node[1]))
    decoder.count(len(raw))
    decoder.check(not raw.strip(b"\0\1"), "packed bools")
    return [byte == 1 for byte in raw]


def _strings(decoder: Decoder, node: list[Any], depth: int) -> list[Any]:
    decoder.check(len(node) == 3, "packed strings")
    lengths = decoder.raw(node[2])
    decoder.count(len(lengths) // 4)
    return list(packed_text.unpack(decoder.raw(node[1]), lengths, may_miss=False))


_PACKED: Final[dict[int, _Rule]] = {
    tags.FLOATS: _numbers("d"),
    tags.INTS: _numbers("q"),
    tags.BOOLS: _bools,
    tags.STRINGS: _strings,
}


def _decode_packed(decoder: Decoder, node: list[Any], depth: int) -> Any:
    return decoder.place(_PACKED[node[0]](decoder, node, depth))


def _decode_column(decoder: Decoder, node: Any, depth: int, count: int) -> list[Any]:
    """Return ``count`` values that are no list of the user: it gets no number."""
    decoder.check(type(node) is list and node and type(node[0]) is int, "column")
    if node[0] == tags.LIST:
        decoder.check(len(node) == count + 1, "column")
        return [decoder.value(part, depth) for part in node[1:]]
    decoder.check(node[0] in _PACKED, "column")
    values: list[Any] = _PACKED[node[0]](decoder, node, depth)
    decoder.check(len(values) == count, "column")
    return values


def _decode_columns(
    decoder: Decoder, names: Any, nodes: list[Any], depth: int, count: int
) -> Iterator[tuple[str, list[Any]]]:
    decoder.check(type(names) is list and len(names) == len(nodes) == len(set(names)), "columns")
    for name, node in zip(names, nodes, strict=True):
        yield decoder.text(name, 1_000), _decode_column(decoder, node, depth, count)


def _rows(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) > 3, "rows")
    count = decoder.integer(node[1], 1)
    decoder.count(count)
    made: list[Any] = []
    seen = decoder.place(made)
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    made += [decoder.place(row) for row in rows]
    for name, column in _decode_columns(decoder, node[2], node[3:], depth + 1, count):
        for row, value in zip(rows, column, strict=True):
            row[name] = value
    return seen


def _objects(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) > 5, "objects")
    count = decoder.integer(node[1], 1)
    decoder.count(count)
    made: list[Any] = []
    seen = decoder.place(made)
    plan = user_values.plan_of(decoder, node[2], node[3], node[4])
    objects = [plan.make() for _ in range(count)]
    made += [decoder.place(one) for one in objects]
    for name, column in _decode_columns(decoder, node[4], node[5:], depth + 1, count):
        for one, value in zip(objects, column, strict=True):
            plan.fill(one, name, value)
    return seen


def _mapping(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 3 and all(type(part) is list and part for part in node[1:]), "dict")
    tag, other = node[1][0], node[2][0]
    decoder.check(type(tag) is int and tag in (tags.INTS, tags.STRINGS), "dict")
    decoder.check(type(other) is int and other in _PACKED, "dict")
    keys: list[Any] = _PACKED[tag](decoder, node[1], depth)
    values: list[Any] = _PACKED[other](decoder, node[2], depth)
    decoder.check(len(keys) == len(values), "dict")
    decoder.keys(keys)
    return decoder.place(dict(zip(keys, values, strict=True)))


DECODERS: Final[dict[int, _Rule]] = {
    **dict.fromkeys(_PACKED, _decode_packed),
    tags.MAPPING: _mapping,
    tags.ROWS: _rows,
    tags.OBJECTS: _objects,
}
