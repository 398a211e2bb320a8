"""Many values of one form at once: scalars as one blob, like dicts and objects as columns."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from . import packed_text, tags, user_values
from .failures import CodecError

if TYPE_CHECKING:
    from .decode import Decoder
    from .encode import Encoder

_Rule = Callable[["Decoder", list[Any], int], Any]
# Below this length a plain list is as small and as fast.
_PACKED_LENGTH: Final = 32
_MAX_COLUMNS: Final = 256
_MAX_NESTING: Final = 4
_ATOMS: Final = frozenset({int, float, bool, str, type(None)})
_SEQUENCES: Final[dict[type, int]] = {tuple: tags.TUPLE, list: tags.LIST}
_MADE_OF_PACKED: Final[dict[int, type]] = {
    tags.TUPLE: tuple,
    tags.SET: set,
    tags.FROZENSET: frozenset,
}


def encode_list(encoder: Encoder, value: list[Any], depth: int) -> list[Any] | None:
    """Return the node of a list of one type, which is numbered already; None for others."""
    if len(value) < _PACKED_LENGTH:
        return None
    # One scan at the speed of C tells whether all are of one type.
    kinds = set(map(type, value))
    if len(kinds) > 1:
        return None
    kind = kinds.pop()
    return (
        _packed(encoder, value, kind)
        or _sequences(encoder, value, kind)
        or _columns(encoder, value, kind, depth)
    )


def encode_packed(encoder: Encoder, value: Any, tag: int) -> list[Any] | None:
    """Return the node of a tuple or set of one scalar type, and number it; None for others."""
    if len(value) < _PACKED_LENGTH:
        return None
    kinds = set(map(type, value))
    packed = _packed(encoder, list(value), kinds.pop()) if len(kinds) == 1 else None
    if packed is None:
        return None
    encoder.mark(value)
    return [tags.PACKED, tag, packed]


def encode_dict(encoder: Encoder, value: dict[Any, Any], depth: int) -> list[Any] | None:
    """Return the node of a dict with keys of one form, and number it; None for others."""
    if len(value) < _PACKED_LENGTH:
        return None
    kinds = set(map(type, value))
    if len(kinds) > 1:
        return None
    kind, keys = kinds.pop(), list(value)
    if kind in (str, int):
        packed = _packed(encoder, keys, kind)
    else:
        packed = _sequences(encoder, keys, kind) if kind is tuple else None
    if packed is None:
        return None
    encoder.mark(value)
    return [tags.MAPPING, packed, _column(encoder, list(value.values()), depth)]


def _column(encoder: Encoder, value: list[Any], depth: int) -> list[Any]:
    """Return a list that is no value of the user: it gets no number."""
    kinds = set(map(type, value))
    if len(kinds) == 1:
        kind = kinds.pop()
        known = _packed(encoder, value, kind) or _sequences(encoder, value, kind)
        if known is not None:
            return known
    return [tags.LIST, *encoder.nodes(value, depth)]


def _sequences(
    encoder: Encoder, value: list[Any], kind: type, nesting: int = 0
) -> list[Any] | None:
    """Return tuples or lists of one length as columns, and number them; None for others.

    Scalars and tuples of such alone: nothing in them can refer to what is not there yet.
    """
    if kind not in _SEQUENCES or nesting > _MAX_NESTING:
        return None
    widths = set(map(len, value))
    width = widths.pop()
    if widths or not 0 < width <= _MAX_COLUMNS:
        return None
    marked, blobs = encoder.memo_length, len(encoder.blobs)
    columns = [_plain_column(encoder, list(column), nesting) for column in zip(*value, strict=True)]
    if None in columns or not encoder.mark_all(value):
        encoder.forget(marked, blobs)
        return None
    return [tags.SEQUENCES, _SEQUENCES[kind], len(value), columns]


def _plain_column(encoder: Encoder, value: list[Any], nesting: int) -> list[Any] | None:
    kinds = set(map(type, value))
    if len(kinds) == 1:
        kind = kinds.pop()
        if kind is tuple:
            return _sequences(encoder, value, kind, nesting + 1)
        packed = _packed(encoder, value, kind)
        if packed is not None:
            return packed
        kinds = {kind}
    if kinds <= _ATOMS:
        return [tags.LIST, *encoder.nodes(value, 0)]
    return None


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
        numbers.frombytes(raw)
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers.tolist()

    return rule


def _bools(decoder: Decoder, node: list[Any], depth: int) -> list[Any]:
    decoder.check(len(node) == 2, "packed bools")
    raw = bytes(decoder.raw(node[1]))
    decoder.check(not raw.strip(b"\0\1"), "packed bools")
    return [byte == 1 for byte in raw]


def _strings(decoder: Decoder, node: list[Any], depth: int) -> list[Any]:
    decoder.check(len(node) == 3, "packed strings")
    texts = packed_text.unpack(decoder.raw(node[1]), decoder.raw(node[2]), may_miss=False)
    return list(texts)


_PACKED: Final[dict[int, _Rule]] = {
    tags.FLOATS: _numbers("d"),
    tags.INTS: _numbers("q"),
    tags.BOOLS: _bools,
    tags.STRINGS: _strings,
}


_ITEM_BYTES: Final = {tags.FLOATS: 8, tags.INTS: 8, tags.BOOLS: 1, tags.STRINGS: 4}
"""Bytes of an element in the last blob of a packed list."""


def _decode_packed(decoder: Decoder, node: list[Any], depth: int) -> Any:
    return decoder.place(_PACKED[node[0]](decoder, node, depth))


def _made_of_packed(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 3 and type(node[2]) is list and node[2], "packed")
    decoder.check(type(node[1]) is int and node[1] in _MADE_OF_PACKED, "packed")
    rule = _PACKED.get(node[2][0]) if type(node[2][0]) is int else None
    if rule is None:
        raise CodecError("The result is malformed (packed).")
    values = rule(decoder, node[2], depth)
    if node[1] != tags.TUPLE:
        decoder.keys(values)
    return decoder.place(_MADE_OF_PACKED[node[1]](values))


def _decode_sequences(decoder: Decoder, node: list[Any], depth: int, nesting: int = 0) -> list[Any]:
    """Return the sequences of ``node``, each numbered, in a list that gets no number."""
    decoder.check(len(node) == 4 and nesting <= _MAX_NESTING, "sequences")
    is_list = type(node[1]) is int and node[1] == tags.LIST
    decoder.check(is_list or node[1] == tags.TUPLE, "sequences")
    count = decoder.integer(node[2], 1)
    decoder.check(type(node[3]) is list and 0 < len(node[3]) <= _MAX_COLUMNS, "sequences")
    decoder.count(count)
    columns = []
    for part in node[3]:
        decoder.check(type(part) is list and part, "column")
        if part[0] == tags.SEQUENCES and type(part[0]) is int:
            columns.append(_decode_sequences(decoder, part, depth, nesting + 1))
        else:
            columns.append(_decode_column(decoder, part, depth, count))
        decoder.check(len(columns[-1]) == count, "column")
    made = zip(*columns, strict=True)
    return [decoder.place(list(row) if is_list else row) for row in made]


def _decode_column(decoder: Decoder, node: Any, depth: int, count: int) -> list[Any]:
    """Return ``count`` values that are no list of the user: it gets no number."""
    decoder.check(type(node) is list and node and type(node[0]) is int, "column")
    if node[0] == tags.LIST:
        decoder.check(len(node) == count + 1, "column")
        return [decoder.value(part, depth) for part in node[1:]]
    if node[0] == tags.SEQUENCES:
        values = _decode_sequences(decoder, node, depth)
    else:
        decoder.check(node[0] in _PACKED, "column")
        values = _PACKED[node[0]](decoder, node, depth)
    decoder.check(len(values) == count, "column")
    return values


def _sequence_list(decoder: Decoder, node: list[Any], depth: int) -> Any:
    made: list[Any] = []
    seen = decoder.place(made)
    made += _decode_sequences(decoder, node, depth)
    return seen


def _decode_columns(
    decoder: Decoder, names: Any, nodes: list[Any], depth: int, count: int
) -> Iterator[tuple[str, list[Any]]]:
    decoder.check(type(names) is list and len(names) == len(nodes) == len(set(names)), "columns")
    for name, node in zip(names, nodes, strict=True):
        yield decoder.text(name, 1_000), _decode_column(decoder, node, depth, count)


def _counted(decoder: Decoder, count: Any, columns: list[Any]) -> int:
    """Return ``count``, once every column says that it is as long: nothing is made before."""
    decoder.integer(count, 1)
    for node in columns:
        decoder.check(type(node) is list and len(node) > 1 and type(node[0]) is int, "column")
        if node[0] == tags.LIST:
            length = len(node) - 1
        elif node[0] == tags.SEQUENCES:
            length = node[2] if len(node) == 4 else 0
        else:
            decoder.check(node[0] in _ITEM_BYTES, "column")
            length = len(decoder.raw(node[-1])) // _ITEM_BYTES[node[0]]
        decoder.check(length == count, "column")
    decoder.count(count)
    return int(count)


def _rows(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) > 3, "rows")
    count = _counted(decoder, node[1], node[3:])
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
    count = _counted(decoder, node[1], node[5:])
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
    tag = node[1][0]
    decoder.check(type(tag) is int and tag in (tags.INTS, tags.STRINGS, tags.SEQUENCES), "dict")
    if tag == tags.SEQUENCES:
        keys = _decode_sequences(decoder, node[1], depth)
    else:
        keys = _PACKED[tag](decoder, node[1], depth)
    decoder.keys(keys)
    made: dict[Any, Any] = {}
    seen = decoder.place(made)
    values = _decode_column(decoder, node[2], depth + 1, len(keys))
    made.update(zip(keys, values, strict=True))
    return seen


DECODERS: Final[dict[int, _Rule]] = {
    **dict.fromkeys(_PACKED, _decode_packed),
    tags.PACKED: _made_of_packed,
    tags.SEQUENCES: _sequence_list,
    tags.MAPPING: _mapping,
    tags.ROWS: _rows,
    tags.OBJECTS: _objects,
}
