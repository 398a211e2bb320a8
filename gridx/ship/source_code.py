"""Functions and classes of the notebook as source, for a container of another Python version.

Code objects do not cross minor versions. What the cells define is made again over there from
the text of the cells that ran here; everything else travels as data without any code in it.
"""

from __future__ import annotations

import ast
import re
import sys
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from . import replay
from .analysis import analyze
from .opcodes import code_names
from .withheld import BUILTIN_NAMES

_MAGIC_LINE: Final = re.compile(r"\A\s*%%gridx[^\n]*\n")
_FUTURE_ANNOTATIONS: Final = 0x1000000  # CO_FUTURE_ANNOTATIONS


@dataclass(frozen=True, slots=True)
class DefinitionSource:
    """A statement of a cell that makes one name of the notebook again."""

    name: str
    order: tuple[int, int]
    """Cell and place in it, so that definitions are made in the order they were made in."""
    text: str
    needs: frozenset[str]
    """Names that it reads, now or when what it makes is called."""


class SourceDefinitions:
    """Which names of a namespace can be made again from the cells that ran."""

    def __init__(self, namespace: dict[str, Any], cells: Iterable[str]) -> None:
        self._namespace = namespace
        self._found: dict[str, DefinitionSource] = {}
        self._wrong: dict[str, str] = {}
        newest = _newest(cells)
        self.paths: dict[int, str] = {}
        """Where to find again what a definition makes, by id: ``f``, ``C``, ``C.Inner``, ``C.m``."""
        for name, (order, part, flags) in newest.items():
            value = namespace.get(name)
            if not _is_of_the_notebook(value, namespace):
                continue
            reason = _why_not(name, value, part.node, namespace)
            if reason:
                self._wrong[name] = reason
                continue
            self._found[name] = _source(name, order, part.node, flags)
            for path, inner in _inside(name, value):
                self.paths.setdefault(id(inner), path)

    def find(self, name: str) -> DefinitionSource | None:
        """Return the definition of ``name``, when its value can be made again."""
        return self._found.get(name)

    def reason(self, value: object) -> str:
        """Return why ``value``, code of the notebook, cannot be made again elsewhere."""
        name = getattr(value, "__name__", "")
        here = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
        if name in self._wrong and self._namespace.get(name) is value:
            return self._wrong[name]
        if name == "<lambda>":
            return f"it holds a lambda, whose code only {here} can run"
        if getattr(value, "__closure__", None) or "<locals>" in getattr(value, "__qualname__", ""):
            return f"it holds {name}, which was made inside a function and only runs on {here}"
        return f"the source of {name or 'its code'} is not among the cells that ran here"


def _newest(
    cells: Iterable[str],
) -> dict[str, tuple[tuple[int, int], replay.Definition, int]]:
    """Return, for each name whose last binding is a definition, that definition."""
    newest: dict[str, tuple[tuple[int, int], replay.Definition, int]] = {}
    for number, cell in enumerate(cells):
        text = _MAGIC_LINE.sub("", cell)
        try:
            writes = analyze(text).writes
        except (SyntaxError, ValueError):
            continue
        found = replay.statements(text)
        for name in writes - found.names:
            newest.pop(name, None)
        for place, part in enumerate(found.definitions):
            if isinstance(part.node, ast.Import | ast.ImportFrom):
                for name in part.names:
                    newest.pop(name, None)
                continue
            for name in part.names:
                newest[name] = ((number, place), part, found.flags)
    return newest


def _is_of_the_notebook(value: object, namespace: dict[str, Any]) -> bool:
    if isinstance(value, types.FunctionType) and value.__globals__ is namespace:
        return True
    return callable(value) and getattr(value, "__module__", None) == "__main__"


def _why_not(name: str, value: Any, node: ast.stmt, namespace: dict[str, Any]) -> str:
    """Return why the statement does not make ``value``; empty when it does."""
    if hasattr(value, "registry") and hasattr(value, "dispatch"):
        return f"{name} is a generic function, whose implementations stand in other statements"
    is_decorated = bool(getattr(node, "decorator_list", ()))
    if isinstance(value, types.FunctionType) and not is_decorated:
        made = "<lambda>" if isinstance(node, ast.Assign) else name
        if value.__code__.co_name != made:
            return f"{name} is bound to another function than its cell defines"
    if isinstance(value, type):
        for key, member in vars(value).items():
            function = getattr(member, "__func__", member)
            if (
                isinstance(function, types.FunctionType)
                and function.__globals__ is namespace
                and not function.__qualname__.startswith(f"{value.__qualname__}.")
            ):
                return f"{key} of the class {name} was set after its definition"
    return ""


def _source(name: str, order: tuple[int, int], node: ast.stmt, flags: int) -> DefinitionSource:
    text = ast.unparse(node)
    module = ast.fix_missing_locations(ast.Module([node], []))
    names = code_names(compile(module, "<cell>", "exec", flags=flags, dont_inherit=True))
    if flags & _FUTURE_ANNOTATIONS:
        text = f"from __future__ import annotations\n{text}"
    return DefinitionSource(name, order, text, names.loads - {name} - BUILTIN_NAMES)


def _inside(path: str, value: Any) -> Iterator[tuple[str, object]]:
    yield path, value
    if not isinstance(value, type):
        return
    for key, member in list(vars(value).items()):
        function = getattr(member, "__func__", member)
        if isinstance(function, types.FunctionType):
            yield f"{path}.{key}", function
        elif isinstance(member, type) and member.__qualname__ == f"{value.__qualname__}.{key}":
            yield from _inside(f"{path}.{key}", member)
