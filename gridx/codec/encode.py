"""Values to nodes. Runs in the container, beside the user's code; it never fails for a value.

What has no safe form becomes an Opaque: a type name, a summary and a pickle that nobody opens.
"""

from __future__ import annotations

import collections
import datetime as dt
import random
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from ..ship.deep_stack import is_too_deep, with_deep_stack
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
from .failures import Unsupported
from .framing import join

# Below the decoder's 120, so that what is encoded is never too deep there.
_MAX_DEPTH: Final = 100
# Below the decoder's 5 million containers and 10 million parts, for the same reason.
_MAX_PARTS: Final = 4_500_000
_PLAIN: Final = frozenset({type(None), bool, float})
_LARGE_BYTES: Final = 4_096
_INT64: Final = 1 << 63
_SUMMARY_CHARS: Final = 300
_DEEP_LEVELS: Final = 15_000

Rule = Callable[["Encoder", Any, int], Any]


def encode(value: object) -> bytes:
    """Return ``value`` as one message, for ``decode``."""
    encoder = Encoder()
    return join(tags.VALUE_MAGIC, encoder.node(value), encoder.blobs)


class Encoder:
    """Turns values into nodes; one memo and one list of blobs for a whole message."""

    def __init__(
        self,
        inputs: Mapping[int, str] | None = None,
        code: Mapping[int, list[Any]] | None = None,
        cell: str = "",
    ) -> None:
        """
        Args:
            inputs: id of an unchanged input to its name, which the user still has.
            code: id of a function inside an input to the way there, by name, keys and indexes.
            cell: the source of the cell that made the values.
        """
        self._cell = cell
        self._cell_codes: list[types.CodeType] | None = None
        self.blobs: list[Any] = []
        self.opaque_count = 0
        """How many values have travelled closed so far."""
        self._closes = True
        self._parts = 0
        self._inputs = {number: [name] for number, name in (inputs or {}).items()}
        self._inputs |= code or {}
        self._memo: dict[int, int] = {}
        # In the order of the memo; keeps the ids from being used twice.
        self._marked: list[object] = []
        self._busy: set[int] = set()

    @property
    def memo_length(self) -> int:
        """How many containers have been numbered."""
        return len(self._marked)

    def cell_codes(self) -> list[types.CodeType]:
        """Return the code objects of the cell, as its text alone gives them."""
        if self._cell_codes is None:
            self._cell_codes = code_values.codes_of_cell(self._cell)
        return self._cell_codes

    def memo_index(self, value: object) -> int | None:
        """Return the number of ``value``, or None when it was not numbered."""
        return self._memo.get(id(value))

    def node(self, value: Any, depth: int = 0) -> Any:
        """Return the node of ``value``; an Opaque where it has no safe form."""
        cls = type(value)
        if value is None or cls is bool or cls is float:
            return value
        if cls is int:
            return value if -_INT64 <= value < _INT64 else scalar_values.encode_big(value)
        if cls is str:
            return scalar_values.encode_text(value)
        if cls is bytes:
            return value if len(value) < _LARGE_BYTES else self.blob(value)
        known = self._memo.get(id(value))
        if known is not None:
            return [tags.REF, known]
        if id(value) in self._inputs:
            return [tags.INPUT, *self._inputs[id(value)]]
        return self._compound(value, cls, depth)

    def nodes(self, values: Collection[Any], depth: int) -> list[Any]:
        """Return the nodes of ``values``, the parts of one container."""
        self._parts += len(values)
        if self._parts > _MAX_PARTS:
            raise Unsupported("more parts than a message may have")
        node = self.node
        return [value if type(value) in _PLAIN else node(value, depth) for value in values]

    def open_node(self, value: Any, most_bytes: int) -> Any:
        """Return the node of ``value``; None where it would be closed or above ``most_bytes``."""
        marked, blobs, closes = len(self._marked), len(self.blobs), self._closes
        self._closes = False
        try:
            node = self.node(value)
            size_bytes = sum(memoryview(blob).nbytes for blob in self.blobs[blobs:])
            if size_bytes <= most_bytes:
                size_bytes += len(msgspec.msgpack.encode(node))
        except Unsupported:
            size_bytes = most_bytes + 1
        finally:
            self._closes = closes
        if size_bytes > most_bytes:
            self.forget(marked, blobs)
            return None
        return node

    def blob(self, data: Any) -> list[Any]:
        """Return the node of ``data``, bytes or a contiguous buffer, as a blob."""
        self.blobs.append(data)
        return [tags.BLOB, len(self.blobs) - 1]

    def mark(self, value: object) -> None:
        """Number ``value``; the decoder numbers it at the same point."""
        self._memo[id(value)] = len(self._marked)
        self._marked.append(value)

    def mark_all(self, values: list[Any]) -> bool:
        """Number ``values`` in their order; do nothing when one has a number or comes twice."""
        ids = list(map(id, values))
        if len(set(ids)) != len(ids):
            return False
        if not self._memo.keys().isdisjoint(ids) or not self._inputs.keys().isdisjoint(ids):
            return False
        self._memo.update({one: number for number, one in enumerate(ids, len(self._marked))})
        self._marked += values
        return True

    @contextmanager
    def busy(self, value: object) -> Iterator[None]:
        """Refuse a cycle through a container that exists only once its parts do."""
        if id(value) in self._busy:
            raise Unsupported("a cycle through an immutable container")
        self._busy.add(id(value))
        try:
            yield
        finally:
            self._busy.discard(id(value))

    def time_zone(self, zone: Any) -> Any:
        """Return the node of a tzinfo: None, seconds from UTC, or a key."""
        if zone is None:
            return None
        if zone is dt.UTC:
            return 0
        if isinstance(zone, dt.timezone):
            return zone.utcoffset(None).total_seconds()
        key = getattr(zone, "key", None)
        if isinstance(key, str) and tags.TIME_ZONE_KEY.match(key):
            return key
        raise Unsupported("time zone")

    @contextmanager
    def all_open(self) -> Iterator[bool]:
        """Refuse parts that would be closed; tell whether this is the outermost such block."""
        was = self._closes
        self._closes = False
        try:
            yield was
        finally:
            self._closes = was

    def pickled(self, value: object) -> list[Any]:
        """Return the pickle of ``value`` as a blob."""
        return self._pickled(value)[1]  # type: ignore[no-any-return]  # a blob's node

    def opaque(self, value: object) -> list[Any]:
        """Return the node of a value that travels closed."""
        if not self._closes:
            raise Unsupported("a closed value")
        self.opaque_count += 1
        node = [tags.OPAQUE, _type_name(value), *self._pickled(value)]
        self.mark(value)
        return node

    def _compound(self, value: Any, cls: type, depth: int) -> Any:
        marked, blobs = len(self._marked), len(self.blobs)
        try:
            if depth > _MAX_DEPTH:
                raise Unsupported("nested too deeply")
            rule = _RULES.get(cls, Encoder._foreign)
            node = rule(self, value, depth + 1)
            if node[0] in tags.NUMBERED_WHEN_MADE:
                self.mark(value)
            return node
        except Unsupported:
            self.forget(marked, blobs)
        except Exception:
            # A library object that breaks while it is looked at travels closed.
            self.forget(marked, blobs)
        return self.opaque(value)

    def forget(self, marked: int, blobs: int) -> None:
        """Take back all numbers from ``marked`` on, and all blobs from ``blobs`` on."""
        for value in self._marked[marked:]:
            # One that holds itself through a tuple has been numbered twice.
            self._memo.pop(id(value), None)
        del self._marked[marked:]
        del self.blobs[blobs:]

    def _foreign(self, value: Any, depth: int) -> Any:
        cls = type(value)
        root = (cls.__module__ or "").partition(".")[0]
        if library_records.is_record(value, root):
            return library_records.encode_record(self, value, depth)
        rule: Rule = _BY_LIBRARY.get(root, user_values.encode_user_value)
        return rule(self, value, depth)

    def _pickled(self, value: object) -> tuple[str, Any]:
        import cloudpickle  # the container has it; loaded when first needed

        try:
            data = _dumped(lambda: bytes(cloudpickle.dumps(value, protocol=5)))
        except Exception as exc:
            reason = f"it cannot be pickled: {type(exc).__name__}: {exc}"
            return _printable(reason), self.blob(b"")
        try:
            summary = repr(value)
        except Exception as exc:
            summary = f"its repr raised {type(exc).__name__}"
        return _printable(summary), self.blob(data)


def _dumped(dump: Callable[[], bytes]) -> bytes:
    """Return ``dump()``; where that is nested too deeply, tried again with room for it."""
    try:
        return dump()
    except Exception as exc:
        if not is_too_deep(exc):
            raise
    return with_deep_stack(dump, _DEEP_LEVELS)


def _type_name(value: object) -> str:
    cls = type(value)
    return _printable(f"{cls.__module__}.{cls.__qualname__}")


def _printable(text: str) -> str:
    return text[:_SUMMARY_CHARS].encode("utf-8", "replace").decode()


# ---------------------------------------------------------------- containers


def _list(encoder: Encoder, value: list[Any], depth: int) -> list[Any]:
    encoder.mark(value)
    known = column_values.encode_list(encoder, value, depth)
    if known is not None:
        return known
    return [tags.LIST, *encoder.nodes(value, depth)]


def _tuple(encoder: Encoder, value: tuple[Any, ...], depth: int) -> list[Any]:
    packed = column_values.encode_packed(encoder, value, tags.TUPLE)
    if packed is not None:
        return packed
    with encoder.busy(value):
        node = [tags.TUPLE, *encoder.nodes(value, depth)]
    encoder.mark(value)
    return node


def _pairs(tag: int) -> Rule:
    def rule(encoder: Encoder, value: Any, depth: int) -> list[Any]:
        encoder.mark(value)
        return [tag, *_items(encoder, value, depth)]

    return rule


_dict_of_any = _pairs(tags.DICT)


def _dict(encoder: Encoder, value: dict[Any, Any], depth: int) -> Any:
    return column_values.encode_dict(encoder, value, depth) or _dict_of_any(encoder, value, depth)


def _items(encoder: Encoder, value: Mapping[Any, Any], depth: int) -> Iterable[Any]:
    if not user_values.has_inert_keys(value):
        raise Unsupported("keys with a hash of their own")
    return encoder.nodes([part for item in value.items() for part in item], depth)


def _default_dict(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    factory = value.default_factory
    name = "NoneType" if factory is None else getattr(factory, "__name__", "")
    if tags.FACTORIES.get(name, encoder) is not factory:
        raise Unsupported("default_factory")
    encoder.mark(value)
    return [tags.DEFAULT_DICT, name, *_items(encoder, value, depth)]


def _set(encoder: Encoder, value: set[Any], depth: int) -> list[Any]:
    if not user_values.has_inert_keys(value):
        raise Unsupported("elements with a hash of their own")
    packed = column_values.encode_packed(encoder, value, tags.SET)
    if packed is not None:
        return packed
    encoder.mark(value)
    return [tags.SET, *encoder.nodes(value, depth)]


def _frozenset(encoder: Encoder, value: frozenset[Any], depth: int) -> list[Any]:
    if not user_values.has_inert_keys(value):
        raise Unsupported("elements with a hash of their own")
    packed = column_values.encode_packed(encoder, value, tags.FROZENSET)
    if packed is not None:
        return packed
    with encoder.busy(value):
        node = [tags.FROZENSET, *encoder.nodes(value, depth)]
    encoder.mark(value)
    return node


def _deque(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    encoder.mark(value)
    return [tags.DEQUE, value.maxlen, *encoder.nodes(value, depth)]


def _bytearray(encoder: Encoder, value: bytearray, depth: int) -> list[Any]:
    encoder.mark(value)
    return [tags.BYTEARRAY, encoder.blob(value)]


_RULES: Final[dict[type, Rule]] = {
    list: _list,
    tuple: _tuple,
    dict: _dict,
    collections.OrderedDict: _pairs(tags.ORDERED_DICT),
    collections.Counter: _pairs(tags.COUNTER),
    collections.defaultdict: _default_dict,
    set: _set,
    frozenset: _frozenset,
    collections.deque: _deque,
    bytearray: _bytearray,
    random.Random: random_values.encode_random,
    **scalar_values.ENCODERS,
    **plain_values.ENCODERS,
}  # fmt: skip


_BY_LIBRARY: Final[dict[str, Rule]] = {
    "IPython": plain_values.encode_of_ipython,
    "numpy": numpy_values.encode_numpy,
    "pandas": pandas_values.encode_pandas,
    "pyarrow": arrow_values.encode_arrow,
    "polars": arrow_values.encode_polars,
    "scipy": other_values.encode_sparse,
    "PIL": other_values.encode_image,
    "torch": other_values.encode_tensor,
    "sklearn": estimators.encode_estimator,
    "zoneinfo": lambda encoder, value, depth: [tags.TIMEZONE, encoder.time_zone(value)],
}
