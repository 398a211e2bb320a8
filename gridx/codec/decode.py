"""Nodes to values, on the user's machine. Everything that a worker sends goes through here."""

from __future__ import annotations

import collections
import datetime as dt
import types
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from . import (
    arrow_values,
    code_values,
    column_values,
    estimators,
    library_records,
    numpy_values,
    other_values,
    pandas_values,
    plain_values,
    random_values,
    scalar_values,
    tags,
    user_values,
)
from .failures import CodecError, LibraryMissing
from .framing import split
from .limits import Limits
from .opaque import Opaque

_IN_PLACE: Final = frozenset({list, dict, set, bytearray})
_PENDING: Final = object()
_ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes})
# A smaller part of a message is copied, so that it does not keep all of the message alive.
_ADOPTED_BYTES: Final = 1 << 20

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
        namespace: dict[str, Any] | None = None,
        cell_codes: Callable[[], list[types.CodeType]] = list,
    ) -> None:
        """
        Args:
            blobs: the raw buffers of the message.
            limits: bounds that are held whatever the message says.
            classes: the user's own classes and functions.
            source: which worker and job it comes from.
            inputs: what the user sent, which the message may refer to by name.
            in_place: number in the memo to the user's object that is to be updated.
            namespace: the user's, which functions that are made see as their globals.
            cell_codes: makes the code objects of the cell, from its text.
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
        self.opaque_count = 0
        """How many values of the message stay closed."""
        self.memo: list[Any] = []
        self.namespace: dict[str, Any] = {} if namespace is None else namespace
        self._make_cell_codes = cell_codes
        self._cell_codes: list[types.CodeType] | None = None
        self._nodes = 0
        self._adopted: set[int] = set()
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

    def cell_codes(self) -> list[types.CodeType]:
        """Return the code objects of the user's cell."""
        if self._cell_codes is None:
            self._cell_codes = self._make_cell_codes()
        return self._cell_codes

    def placeholder(self, name: str) -> Opaque:
        """Return what stands for code that this notebook does not have."""
        return Opaque(name, "this notebook has no definition of it", b"", self.source)

    def missing(self, error: LibraryMissing) -> Opaque:
        """Return what stands for a value whose library is not installed."""
        summary = f"needs {error.library}, which is not installed here: pip install {error.library}"
        return Opaque(error.library, summary, b"", self.source)

    def value(self, node: Any, depth: int = 0) -> Any:
        """Return the value of ``node``."""
        cls = type(node)
        if cls is not list:
            if cls in _ATOMS:
                return node
            raise CodecError("The result holds a part of an unknown form.")
        self.count(1)
        if depth > self.limits.depth:
            raise CodecError("The result is nested too deeply.")
        tag = node[0] if node else None
        if type(tag) is not int or not 0 <= tag < tags.COUNT:
            raise CodecError("The result holds an unknown tag.")
        return _RULES[tag](self, node, depth + 1)

    def parts(self, nodes: list[Any], depth: int) -> list[Any]:
        """Return the values of ``nodes``."""
        value = self.value
        return [node if type(node) in _ATOMS else value(node, depth) for node in nodes]

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

    def own(self, node: Any) -> memoryview | bytearray:
        """Return the bytes of ``node`` in memory that nothing else refers to, writable.

        A large blob of a writable message is that memory itself; each only once, or the contents
        of a checked value could be changed through another.
        """
        raw = self.raw(node)
        if len(raw) < _ADOPTED_BYTES or raw.readonly or node[1] in self._adopted:
            return bytearray(raw)
        self._adopted.add(node[1])
        return raw

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
    value = decoder.value
    for part in node[1:]:
        made.append(part if type(part) in _ATOMS else value(part, depth))
    return seen


def _tuple(decoder: Decoder, node: list[Any], depth: int) -> Any:
    return decoder.place(tuple(decoder.parts(node[1:], depth)))


def _fill(decoder: Decoder, made: Any, parts: list[Any], depth: int) -> Any:
    decoder.check(len(parts) % 2 == 0, "a key without its value")
    seen = decoder.place(made)
    values = decoder.parts(parts, depth)
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
    parts = decoder.parts(node[1:], depth)
    decoder.keys(parts)
    made.update(parts)
    return seen


def _frozenset(decoder: Decoder, node: list[Any], depth: int) -> Any:
    parts = decoder.parts(node[1:], depth)
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
    decoder.opaque_count += 1
    type_name, summary = decoder.text(node[1], 1_000), decoder.text(node[2], 1_000)
    made = Opaque(
        printable(type_name), printable(summary), bytes(decoder.raw(node[3])), decoder.source
    )
    return decoder.place(made)


def printable(text: str) -> str:
    """Return ``text`` without characters that a terminal would act on."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _filled(cls: Callable[[], Any]) -> Rule:
    return lambda decoder, node, depth: _fill(decoder, cls(), node[1:], depth)


def _misplaced(decoder: Decoder, node: list[Any], depth: int) -> Any:
    raise CodecError("The result holds a tag in a place where it has no meaning.")


_TABLE: Final[dict[int, Rule]] = {
    tags.LIST: _list,
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
    **scalar_values.DECODERS,
    **column_values.DECODERS,
    **user_values.DECODERS,
    **code_values.DECODERS,
    **numpy_values.DECODERS,
    **pandas_values.DECODERS,
    **arrow_values.DECODERS,
    **other_values.DECODERS,
    **random_values.DECODERS,
    **plain_values.DECODERS,
    **estimators.DECODERS,
    **library_records.DECODERS,
}


def _numbered(rule: Rule) -> Rule:
    return lambda decoder, node, depth: decoder.place(rule(decoder, node, depth))


_RULES: Final[tuple[Rule, ...]] = tuple(
    _numbered(_TABLE[tag]) if tag in tags.NUMBERED_WHEN_MADE and tag in _TABLE
    else _TABLE.get(tag, _misplaced)
    for tag in range(tags.COUNT)
)  # fmt: skip
