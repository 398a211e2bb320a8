"""Nodes to values, on the user's machine. Everything that a worker sends goes through here."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import fractions
import pathlib
import re
import sys
import uuid
import zoneinfo
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from . import (
    arrow_values,
    numpy_values,
    other_values,
    packed_text,
    pandas_values,
    random_values,
    tags,
    user_values,
)
from .failures import CodecError, LibraryMissing
from .framing import split
from .limits import Limits
from .opaque import Opaque

_DECIMAL: Final = re.compile(
    r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:E[+-]?\d{1,18})?\Z|-?(?:Infinity|s?NaN\d{0,20})\Z"
)
_MAX_BIG_INT_BYTES: Final = 1 << 20
_IN_PLACE: Final = frozenset({list, dict, set, bytearray})
_PENDING: Final = object()

Rule = Callable[["Decoder", list[Any], int], Any]


def decode(
    data: bytes | bytearray | memoryview,
    *,
    classes: Mapping[tuple[str, str], object] | None = None,
    source: str = "",
    limits: Limits | None = None,
) -> Any:
    """Return the value of the message ``data``.

    Args:
        data: what ``encode`` made, or what somebody hostile made.
        classes: the user's own classes and functions by (module, qualified name).
        source: which worker and job it comes from; stands in every Opaque.
        limits: bounds, the defaults of ``Limits`` unless given.

    Raises:
        CodecError: the message is malformed; nothing of it is to be used.
    """
    limits = limits or Limits()
    root, blobs = split(tags.VALUE_MAGIC, data, limits)
    decoder = Decoder(blobs, limits=limits, classes=classes or {}, source=source)
    try:
        return decoder.guarded(root)
    except LibraryMissing as exc:
        return decoder.missing(exc)


class Decoder:
    """Builds the values of one message; one memo for all of them."""

    def __init__(
        self,
        blobs: Sequence[memoryview],
        *,
        limits: Limits,
        classes: Mapping[tuple[str, str], object],
        source: str,
        inputs: Mapping[str, Any] | None = None,
        in_place: Mapping[int, Any] | None = None,
    ) -> None:
        """
        Args:
            blobs: the raw buffers of the message.
            limits: bounds that are held whatever the message says.
            classes: the user's own classes and functions.
            source: which worker and job it comes from.
            inputs: what the user sent, which the message may refer to by name.
            in_place: number in the memo to the user's object that is to be updated.
        """
        self.blobs = blobs
        self.limits = limits
        self.classes = classes
        self.source = source
        self.inputs = inputs or {}
        self.in_place = in_place or {}
        self.updates: list[tuple[Any, Any]] = []
        """The user's object and the new contents, for every update in place."""
        self.unresolved: set[tuple[str, str]] = set()
        self.memo: list[Any] = []
        self._nodes = 0
        self.plans: dict[tuple[Any, ...], user_values.Plan] = {}
        """How to make instances of a class, by its key and the names of its fields."""
        self._user_types = frozenset(cls for cls in classes.values() if isinstance(cls, type))

    def guarded(self, node: Any) -> Any:
        """Return the value of ``node``, with every failure turned into a CodecError.

        Raises:
            LibraryMissing: a value needs a library that is not installed here.
        """
        try:
            return self.value(node)
        except (CodecError, LibraryMissing):
            raise
        except Exception as exc:
            text = f"{type(exc).__name__}: {exc}"[:200]
            raise CodecError(f"The result is malformed ({text}).") from None

    def missing(self, error: LibraryMissing) -> Opaque:
        """Return what stands for a value whose library is not installed."""
        summary = f"needs {error.library}, which is not installed here: pip install {error.library}"
        return Opaque(error.library, summary, b"", self.source)

    def value(self, node: Any, depth: int = 0) -> Any:
        """Return the value of ``node``."""
        cls = type(node)
        if cls is not list:
            if node is None or cls in (bool, int, float, str, bytes):
                return node
            raise CodecError("The result holds a part of an unknown form.")
        self.count(1)
        if depth > self.limits.depth:
            raise CodecError("The result is nested too deeply.")
        tag = node[0] if node else None
        if type(tag) is not int or not 0 <= tag < tags.COUNT:
            raise CodecError("The result holds an unknown tag.")
        return _RULES[tag](self, node, depth + 1)

    def count(self, parts: int) -> None:
        """Count ``parts`` towards the limit."""
        self._nodes += parts
        if self._nodes > self.limits.nodes:
            raise CodecError("The result has too many parts.")

    def place(self, made: Any) -> Any:
        """Number ``made``; return what references shall see: the user's own object if updated."""
        old = self.in_place.get(len(self.memo), _PENDING) if self.in_place else _PENDING
        if old is not _PENDING and self._can_update(old, made):
            self.updates.append((old, made))
            made = old
        self.memo.append(made)
        return made

    def begin_at(self, number: int, *, after_loss: bool) -> None:
        """Check that the next container gets ``number``; fill the gap of a value that was lost."""
        gap = number - len(self.memo)
        self.check(gap == 0 or (after_loss and 0 < gap <= self.limits.nodes), "numbering")
        self.memo += [_PENDING] * gap

    def reserve(self) -> int:
        """Number a value that does not exist yet, for ``settle``."""
        self.memo.append(_PENDING)
        return len(self.memo) - 1

    def settle(self, index: int, made: Any) -> Any:
        """Put ``made`` under the number that ``reserve`` returned."""
        self.memo[index] = made
        return made

    @staticmethod
    def _can_update(old: Any, made: Any) -> bool:
        if type(old) is not type(made):
            return False
        return type(made) in _IN_PLACE or numpy_values.has_same_form(old, made)

    # What leaves check their parts with.

    def check(self, is_right: Any, what: str) -> None:
        """Raise CodecError that names ``what`` unless ``is_right``."""
        if not is_right:
            raise CodecError(f"The result is malformed ({what}).")

    def integer(self, node: Any, low: int = 0, high: int = 1 << 62) -> int:
        """Return ``node``, an int between ``low`` and ``high``."""
        if type(node) is not int or not low <= node <= high:
            raise CodecError("The result is malformed (integer out of range).")
        return node

    def text(self, node: Any, longest: int = 100_000) -> str:
        """Return ``node``, a str of at most ``longest`` characters."""
        if type(node) is not str or len(node) > longest:
            raise CodecError("The result is malformed (text expected).")
        return node

    def raw(self, node: Any) -> memoryview:
        """Return the bytes of ``node``: a blob, or bytes in the head."""
        if type(node) is bytes:
            return memoryview(node)
        self.check(type(node) is list and len(node) == 2 and node[0] == tags.BLOB, "blob")
        return self.blobs[self.integer(node[1], 0, len(self.blobs) - 1)]

    def time_zone(self, node: Any) -> dt.tzinfo | None:
        """Return the tzinfo of ``node``."""
        if node is None:
            return None
        if type(node) in (int, float):
            self.check(abs(node) < 86_400, "time zone")
            return dt.UTC if node == 0 else dt.timezone(dt.timedelta(seconds=node))
        self.check(type(node) is str and tags.TIME_ZONE_KEY.match(node), "time zone")
        try:
            return zoneinfo.ZoneInfo(node)
        except Exception:
            raise CodecError(f"The time zone {node!r} is not known here.") from None

    def keys(self, keys: Sequence[Any]) -> None:
        """Check that ``keys`` may be hashed: no code of the user, no flood of one hash."""
        if not user_values.has_inert_keys(keys, self._user_types):
            raise CodecError("The result has keys with a hash of their own.")
        # The hash of text is seeded in each process: nobody can choose it from outside.
        if len(keys) > self.limits.same_hash and not set(map(type, keys)) <= {str, bytes}:
            ((_, most),) = collections.Counter(map(hash, keys)).most_common(1)
            self.check(most <= self.limits.same_hash, "too many keys with one hash")


# ---------------------------------------------------------------- containers


def _list(decoder: Decoder, node: list[Any], depth: int) -> Any:
    made: list[Any] = []
    seen = decoder.place(made)
    for part in node[1:]:
        made.append(decoder.value(part, depth))
    return seen


def _numbers(code: str) -> Rule:
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


_PACKED: Final[dict[int, Rule]] = {
    tags.FLOATS: _numbers("d"),
    tags.INTS: _numbers("q"),
    tags.BOOLS: _bools,
    tags.STRINGS: _strings,
}


def _packed(decoder: Decoder, node: list[Any], depth: int) -> Any:
    return decoder.place(_PACKED[node[0]](decoder, node, depth))


def _column(decoder: Decoder, node: Any, depth: int, count: int) -> list[Any]:
    """Return ``count`` values that are no list of the user: it gets no number."""
    decoder.check(type(node) is list and node and type(node[0]) is int, "column")
    if node[0] == tags.LIST:
        decoder.check(len(node) == count + 1, "column")
        return [decoder.value(part, depth) for part in node[1:]]
    decoder.check(node[0] in _PACKED, "column")
    values: list[Any] = _PACKED[node[0]](decoder, node, depth)
    decoder.check(len(values) == count, "column")
    return values


def _columns(
    decoder: Decoder, names: Any, nodes: list[Any], depth: int, count: int
) -> Iterator[tuple[str, list[Any]]]:
    decoder.check(type(names) is list and len(names) == len(nodes) == len(set(names)), "columns")
    for name, node in zip(names, nodes, strict=True):
        yield decoder.text(name, 1_000), _column(decoder, node, depth, count)


def _rows(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) > 3, "rows")
    count = decoder.integer(node[1], 1)
    decoder.count(count)
    made: list[Any] = []
    seen = decoder.place(made)
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    made += [decoder.place(row) for row in rows]
    for name, column in _columns(decoder, node[2], node[3:], depth + 1, count):
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
    for name, column in _columns(decoder, node[4], node[5:], depth + 1, count):
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


def _tuple(decoder: Decoder, node: list[Any], depth: int) -> Any:
    return decoder.place(tuple([decoder.value(part, depth) for part in node[1:]]))


def _fill(decoder: Decoder, made: Any, parts: list[Any], depth: int) -> Any:
    decoder.check(len(parts) % 2 == 0, "a key without its value")
    seen = decoder.place(made)
    values = [decoder.value(part, depth) for part in parts]
    decoder.keys(values[::2])
    for key, value in zip(values[::2], values[1::2], strict=True):
        made[key] = value
    return seen


def _default_dict(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) >= 2 and type(node[1]) is str, "defaultdict")
    decoder.check(node[1] in tags.FACTORIES, "what a defaultdict makes")
    made: Any = collections.defaultdict(tags.FACTORIES[node[1]])
    return _fill(decoder, made, node[2:], depth)


def _set(decoder: Decoder, node: list[Any], depth: int) -> Any:
    made: set[Any] = set()
    seen = decoder.place(made)
    parts = [decoder.value(part, depth) for part in node[1:]]
    decoder.keys(parts)
    made.update(parts)
    return seen


def _frozenset(decoder: Decoder, node: list[Any], depth: int) -> Any:
    parts = [decoder.value(part, depth) for part in node[1:]]
    decoder.keys(parts)
    return decoder.place(frozenset(parts))


def _deque(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) >= 2, "deque")
    longest = None if node[1] is None else decoder.integer(node[1])
    made: collections.deque[Any] = collections.deque(maxlen=longest)
    decoder.place(made)
    for part in node[2:]:
        made.append(decoder.value(part, depth))
    return made


def _bytearray(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 2, "bytearray")
    return decoder.place(bytearray(decoder.raw(node[1])))


# ---------------------------------------------------------------- structure


def _ref(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 2, "reference")
    found = decoder.memo[decoder.integer(node[1], 0, len(decoder.memo) - 1)]
    decoder.check(found is not _PENDING, "a reference to what does not exist yet")
    return found


def _input(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) >= 2, "input")
    name = decoder.text(node[1], 1_000)
    found = decoder.inputs.get(name, _PENDING)
    for step in node[2:]:
        found = _step(found, step)
    if found is not _PENDING:
        return found
    return Opaque(name, f"was in the variable {name}, which has changed", b"", decoder.source)


def _step(value: Any, step: Any) -> Any:
    """Return what ``value``, the user's own, holds at ``step``; exact builtin containers only."""
    if type(value) in (list, tuple) and type(step) is int and 0 <= step < len(value):
        return value[step]
    if type(value) is dict and type(step) in (str, int):
        # Looked for by type first: a key of the user may have an equality of its own.
        keys = {key for key in value if type(key) is type(step)}
        return value[step] if step in keys else _PENDING
    return _PENDING


def _opaque(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 4, "opaque")
    type_name, summary = decoder.text(node[1], 1_000), decoder.text(node[2], 1_000)
    made = Opaque(
        printable(type_name), printable(summary), bytes(decoder.raw(node[3])), decoder.source
    )
    return decoder.place(made)


def printable(text: str) -> str:
    """Return ``text`` without characters that a terminal would act on."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


# ---------------------------------------------------------------- scalars


def _big_int(decoder: Decoder, node: list[Any], depth: int) -> int:
    decoder.check(len(node) == 2 and type(node[1]) is bytes, "integer")
    decoder.check(0 < len(node[1]) <= _MAX_BIG_INT_BYTES, "integer")
    return int.from_bytes(node[1], "little", signed=True)


def _complex(decoder: Decoder, node: list[Any], depth: int) -> complex:
    decoder.check(len(node) == 3 and type(node[1]) is type(node[2]) is float, "complex")
    return complex(node[1], node[2])


def _surrogates(decoder: Decoder, node: list[Any], depth: int) -> str:
    decoder.check(len(node) == 2 and type(node[1]) is bytes, "text")
    return str(node[1], "utf-8", "surrogatepass")


def _range(decoder: Decoder, node: list[Any], depth: int) -> range:
    decoder.check(len(node) == 4, "range")
    return range(*[_whole(decoder, part, depth) for part in node[1:]])


def _whole(decoder: Decoder, node: Any, depth: int) -> int:
    number = decoder.value(node, depth)
    decoder.check(type(number) is int, "integer")
    return int(number)


def _slice(decoder: Decoder, node: list[Any], depth: int) -> slice:
    decoder.check(len(node) == 4, "slice")
    return slice(*[decoder.value(part, depth) for part in node[1:]])


def _datetime(decoder: Decoder, node: list[Any], depth: int) -> dt.datetime:
    decoder.check(len(node) == 10, "datetime")
    year, month, day, hour, minute, second, micro, fold = (
        decoder.integer(part, 0, 10_000_000) for part in node[1:9]
    )
    zone = decoder.time_zone(node[9])
    return dt.datetime(year, month, day, hour, minute, second, micro, zone, fold=fold)


def _date(decoder: Decoder, node: list[Any], depth: int) -> dt.date:
    decoder.check(len(node) == 2, "date")
    return dt.date.fromordinal(decoder.integer(node[1], 1, dt.date.max.toordinal()))


def _time(decoder: Decoder, node: list[Any], depth: int) -> dt.time:
    decoder.check(len(node) == 7, "time")
    hour, minute, second, micro, fold = (decoder.integer(part, 0, 10_000_000) for part in node[1:6])
    return dt.time(hour, minute, second, micro, decoder.time_zone(node[6]), fold=fold)


def _timedelta(decoder: Decoder, node: list[Any], depth: int) -> dt.timedelta:
    decoder.check(len(node) == 4, "timedelta")
    return dt.timedelta(
        decoder.integer(node[1], -999_999_999, 999_999_999),
        decoder.integer(node[2], 0, 86_399),
        decoder.integer(node[3], 0, 999_999),
    )


def _timezone(decoder: Decoder, node: list[Any], depth: int) -> dt.tzinfo:
    decoder.check(len(node) == 2 and node[1] is not None, "time zone")
    zone = decoder.time_zone(node[1])
    assert zone is not None
    return zone


def _decimal(decoder: Decoder, node: list[Any], depth: int) -> decimal.Decimal:
    decoder.check(len(node) == 2, "decimal")
    text = decoder.text(node[1])
    decoder.check(_DECIMAL.match(text), "decimal")
    return decimal.Decimal(text)


def _fraction(decoder: Decoder, node: list[Any], depth: int) -> fractions.Fraction:
    decoder.check(len(node) == 3, "fraction")
    return fractions.Fraction(_whole(decoder, node[1], depth), _whole(decoder, node[2], depth))


def _uuid(decoder: Decoder, node: list[Any], depth: int) -> uuid.UUID:
    decoder.check(len(node) == 2 and type(node[1]) is bytes and len(node[1]) == 16, "uuid")
    return uuid.UUID(bytes=node[1])


def _path(decoder: Decoder, node: list[Any], depth: int) -> pathlib.Path:
    decoder.check(len(node) == 2, "path")
    return pathlib.Path(decoder.text(decoder.value(node[1], depth), 5_000))


def _constant(value: Any) -> Rule:
    def rule(decoder: Decoder, node: list[Any], depth: int) -> Any:
        decoder.check(len(node) == 1, "constant")
        return value

    return rule


def _filled(cls: Callable[[], Any]) -> Rule:
    return lambda decoder, node, depth: _fill(decoder, cls(), node[1:], depth)


def _misplaced(decoder: Decoder, node: list[Any], depth: int) -> Any:
    raise CodecError("The result holds a tag in a place where it has no meaning.")


_TABLE: Final[dict[int, Rule]] = {
    tags.LIST: _list,
    **dict.fromkeys(_PACKED, _packed),
    tags.MAPPING: _mapping,
    tags.ROWS: _rows,
    tags.OBJECTS: _objects,
    tags.TUPLE: _tuple,
    tags.DICT: _filled(dict),
    tags.ORDERED_DICT: _filled(collections.OrderedDict),
    tags.COUNTER: _filled(collections.Counter),
    tags.DEFAULT_DICT: _default_dict,
    tags.SET: _set,
    tags.FROZENSET: _frozenset,
    tags.DEQUE: _deque,
    tags.BYTEARRAY: _bytearray,
    tags.REF: _ref,
    tags.BLOB: lambda decoder, node, depth: bytes(decoder.raw(node)),
    tags.INPUT: _input,
    tags.OPAQUE: _opaque,
    tags.BIG_INT: _big_int,
    tags.COMPLEX: _complex,
    tags.SURROGATES: _surrogates,
    tags.RANGE: _range,
    tags.SLICE: _slice,
    tags.ELLIPSIS: _constant(...),
    tags.NOT_IMPLEMENTED: _constant(NotImplemented),
    tags.DATETIME: _datetime,
    tags.DATE: _date,
    tags.TIME: _time,
    tags.TIMEDELTA: _timedelta,
    tags.TIMEZONE: _timezone,
    tags.DECIMAL: _decimal,
    tags.FRACTION: _fraction,
    tags.UUID: _uuid,
    tags.PATH: _path,
    **user_values.DECODERS,
    **numpy_values.DECODERS,
    **pandas_values.DECODERS,
    **arrow_values.DECODERS,
    **other_values.DECODERS,
    **random_values.DECODERS,
}
_RULES: Final[tuple[Rule, ...]] = tuple(_TABLE.get(tag, _misplaced) for tag in range(tags.COUNT))
