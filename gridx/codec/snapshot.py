"""A namespace before a cell ran: what was bound, and what the captured inputs held."""

from __future__ import annotations

import functools
import io
import pickle
import types
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..ship.deep_stack import with_deep_stack
from . import code_state
from .libraries import loaded

# Above this many bytes an input is not read twice, and counts as changed.
_BUDGET_BYTES: Final = 1 << 30
_HELD_BYTES: Final = 1 << 24
_MAX_CODE_DEPTH: Final = 3
_MAX_CODE_ITEMS: Final = 10_000
_DEEP_LEVELS: Final = 15_000
# Of these the identity is the content: a cell does not change a function, it makes another.
_CODE: Final = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.ModuleType,
    functools._lru_cache_wrapper,
)
_ATOMS: Final = frozenset({int, float, str, bytes, bool, complex, type(None)})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What ``encode_result`` compares with."""

    values: dict[str, Any]
    """Every name of the namespace, by identity."""
    digests: dict[str, str | None]
    """Captured inputs that can change in place; None when that cannot be told."""
    code: dict[int, list[Any]]
    """Id of each function inside an input, and the way to it: the name, then keys and indexes."""
    held: dict[str, dict[code_state.Key, tuple[Any, str | None]]]
    """What each function and class of the user holds, and its digest where that can change."""


def snapshot(namespace: Mapping[str, Any], names: Iterable[str]) -> Snapshot:
    """Return the state of ``namespace`` before a cell, with digests of the inputs ``names``."""
    wanted = {name: namespace[name] for name in names if name in namespace}
    code: dict[int, list[Any]] = {}
    for name, value in wanted.items():
        _find_code(value, [name], code)
    owners = code_state.owners_in(namespace)
    held = {name: _held_by(owner) for name, owner in owners.items()}
    return Snapshot(values=dict(namespace), digests=digests(wanted), code=code, held=held)


def _held_by(owner: Any) -> dict[code_state.Key, tuple[Any, str | None]]:
    return {key: (value, digest_of(value)) for key, value in code_state.held_by(owner)}


def digest_of(value: Any) -> str | None:
    """Return a digest of ``value``; None for one number or text, or where it cannot be told."""
    return None if code_state.is_atom(value) else _digest(value, _Budget(_HELD_BYTES))


def _find_code(value: Any, way: list[Any], found: dict[int, list[Any]]) -> None:
    if isinstance(value, _CODE):
        found.setdefault(id(value), way)
        return
    steps: Iterable[tuple[Any, Any]] = ()
    if type(value) in (list, tuple):
        steps = enumerate(value)
    elif type(value) is dict:
        steps = value.items()
    if not steps or len(way) > _MAX_CODE_DEPTH or len(value) > _MAX_CODE_ITEMS:
        return
    if set(map(type, value.values() if type(value) is dict else value)) <= _ATOMS:
        return
    for step, part in steps:
        if type(step) in (str, int):
            _find_code(part, [*way, step], found)


def digests(values: Mapping[str, Any]) -> dict[str, str | None]:
    """Return a digest of the contents of each of ``values`` that is not a plain scalar."""
    budget = _Budget(_BUDGET_BYTES)
    of_objects: dict[int, str | None] = {}  # one object is read once, whatever names it has
    for value in values.values():
        if type(value) not in _ATOMS and id(value) not in of_objects:
            of_objects[id(value)] = _digest(value, budget)
    return {n: of_objects[id(v)] for n, v in values.items() if type(v) not in _ATOMS}


class _BudgetSpent(Exception):
    """The inputs are too large to be read twice."""


class _Budget:
    def __init__(self, left_bytes: int) -> None:
        self._left_bytes = left_bytes

    def spend(self, count: int) -> None:
        if count > self._left_bytes:
            raise _BudgetSpent
        self._left_bytes -= count


class _HashingFile(io.RawIOBase):
    """Takes a pickle and keeps its checksum alone."""

    def __init__(self, budget: _Budget) -> None:
        super().__init__()
        self._budget = budget
        self._sum = 0
        self._length = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._budget.spend(len(view))
        self._length += len(view)
        # The fastest sum of the standard library: nobody gains by fooling it.
        self._sum = zlib.crc32(view, self._sum)
        return len(view)

    def take(self, buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:
            return True
        self.write(raw)
        return False

    @property
    def digest(self) -> str:
        return f"{self._length}:{self._sum:08x}"


class _Digester(pickle.Pickler):
    """A pickler whose result is only compared, so that code may stand for itself by identity."""

    def reducer_override(self, value: Any) -> Any:
        # Code of a library is pickled by its name, and `str` below is such code itself.
        if isinstance(value, _CODE) and _is_of_the_notebook(value):
            return str, (f"code {id(value)}",)
        return NotImplemented


def _is_of_the_notebook(value: Any) -> bool:
    qualname = getattr(value, "__qualname__", "")
    return getattr(value, "__module__", None) == "__main__" or "<" in qualname


def _digest(value: Any, budget: _Budget) -> str | None:
    """Return a digest of the pickle of ``value``, its buffers beside it, without keeping either."""
    try:
        try:
            return _digest_of_pickle(value, budget)
        except RecursionError:
            return with_deep_stack(lambda: _digest_of_pickle(value, budget), _DEEP_LEVELS)
    except Exception:
        return None  # cannot be told: it counts as changed


def _digest_of_pickle(value: Any, budget: _Budget) -> str:
    file = _HashingFile(budget)
    numpy = loaded("numpy")
    if numpy is not None and type(value) is numpy.ndarray and not value.dtype.hasobject:
        file.write(f"{value.dtype} {value.shape}".encode())
        file.write(numpy.ascontiguousarray(value).reshape(-1).view("u1"))
    else:
        _Digester(file, protocol=5, buffer_callback=file.take).dump(value)
    return file.digest
