"""Notebook functions that a value can reach, and the global names that they need."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from .analysis import names_in_text, soft_names_of_string
from .opcodes import code_names, code_strings

_ATOMS: Final = frozenset({int, float, str, bytes, bool, complex, type(None)})
_MAX_DEPTH: Final = 8
_MAX_ITEMS: Final = 1_000
# What is not found within this many steps, the pickler still finds on its own.
_MAX_STEPS: Final = 20_000


@dataclass(frozen=True, slots=True)
class FunctionNeeds:
    """Global names of one function: needed when it runs, only mentioned, and written."""

    needs: frozenset[str]
    soft: frozenset[str]
    writes: frozenset[str]
    deletes: frozenset[str]
    imports: frozenset[str]
    """Modules that it imports when it runs."""


def function_needs(function: types.FunctionType) -> FunctionNeeds:
    """Return the global names that ``function`` reads or writes, nested code included."""
    names = code_names(function.__code__)
    soft: set[str] = set()
    for text in code_strings(function.__code__):
        soft |= soft_names_of_string(text)
    for annotation in getattr(function, "__annotations__", {}).values():
        if isinstance(annotation, str):
            soft |= names_in_text(annotation)
    return FunctionNeeds(
        needs=names.loads | names.stores | names.deletes,
        soft=frozenset(soft),
        writes=names.stores,
        deletes=names.deletes,
        imports=names.imports,
    )


class Reach:
    """Finds each notebook function once, over all the values that it is asked about."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self._namespace = namespace
        self._seen: set[int] = set()
        self._steps = 0
        # Kept alive, so that an id is never used twice.
        self._kept: list[object] = []

    def functions(self, value: object) -> Iterator[types.FunctionType]:
        """Yield notebook functions reachable from ``value`` that were not yielded before.

        Methods, closures, defaults, partials, wrapped functions, bases, an instance's class
        and attributes, and callables in small containers.
        """
        return self._walk(value, 0)

    def _walk(self, value: object, depth: int) -> Iterator[types.FunctionType]:
        if type(value) in _ATOMS or depth > _MAX_DEPTH or id(value) in self._seen:
            return
        self._steps += 1
        if self._steps > _MAX_STEPS:
            return
        self._seen.add(id(value))
        self._kept.append(value)
        if isinstance(value, types.FunctionType) and self._is_ours(value):
            yield value
        for part in self._parts(value):
            yield from self._walk(part, depth + 1)

    def _is_ours(self, function: types.FunctionType) -> bool:
        return function.__globals__ is self._namespace or function.__module__ == "__main__"

    def _parts(self, value: object) -> Iterable[object]:
        match value:
            case types.FunctionType():
                return self._parts_of_function(value)
            case classmethod() | staticmethod():
                return (value.__func__,)
            case property():
                return (value.fget, value.fset, value.fdel)
            case types.MethodType():
                return (value.__func__, value.__self__)
            case type():
                return _parts_of_class(value)
            case list() | tuple() | set() | frozenset():
                return tuple(value) if len(value) <= _MAX_ITEMS else ()
            case dict():
                return tuple(value.values()) if len(value) <= _MAX_ITEMS else ()
            case _:
                return _parts_of_object(value)

    def _parts_of_function(self, function: types.FunctionType) -> Iterable[object]:
        parts: list[object] = [getattr(function, "__wrapped__", None)]
        if self._is_ours(function):
            for cell in function.__closure__ or ():
                try:
                    parts.append(cell.cell_contents)
                except ValueError:
                    continue  # a cell that is not filled yet
            parts += function.__defaults__ or ()
            parts += (function.__kwdefaults__ or {}).values()
            parts += vars(function).values()
        return parts


def _parts_of_class(cls: type) -> Iterable[object]:
    parts: list[object] = []
    for base in cls.__mro__:
        if base.__module__ == "__main__":
            parts.append(type(base))
            parts += vars(base).values()
    return parts


def _parts_of_object(value: object) -> Iterable[object]:
    cls = type(value)
    if cls.__module__ == "functools":
        arguments = getattr(value, "args", ())
        parts = [getattr(value, "func", None), getattr(value, "__wrapped__", None)]
        return [*parts, *(arguments if isinstance(arguments, tuple) else ())]
    if cls.__module__ == "__main__":
        return [cls, *dict(getattr(value, "__dict__", {})).values()]
    return ()
