"""Which modules a cell imports for sure, and which only perhaps."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

_CAUGHT: Final = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(slots=True)
class Imports:
    """Absolute imports of a cell, as dotted names."""

    sure: set[str] = field(default_factory=set)
    optional: set[str] = field(default_factory=set)
    """In a branch, in a function that the cell does not call, or where ImportError is caught."""


def imports_of(tree: ast.Module) -> Imports:
    """Return what ``tree`` imports."""
    functions: dict[str, _Function] = {}
    found = Imports()
    if not any(isinstance(node, _Function) for node in tree.body):
        statements = [node for node in tree.body if not isinstance(node, ast.Assign | ast.Expr)]
    else:
        statements = tree.body
    called = _walk(statements, found, functions, is_sure=True)
    done: set[str] = set()
    while todo := called & functions.keys() - done:
        for name in todo:
            done.add(name)
            called |= _walk(functions[name].body, found, functions, is_sure=True)
    for name in functions.keys() - done:
        _walk(functions[name].body, found, {}, is_sure=False)
    found.optional -= found.sure
    return found


def _walk(
    body: Iterable[ast.stmt], found: Imports, functions: dict[str, _Function], *, is_sure: bool
) -> set[str]:
    """Note the imports of ``body``; return the names of what it surely calls."""
    called: set[str] = set()
    for node in body:
        match node:
            case ast.Import() | ast.ImportFrom():
                (found.sure if is_sure else found.optional).update(module_names(node))
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                functions[node.name] = node
            case ast.Try() | ast.TryStar():
                tried = is_sure and not _catches_import_errors(node)
                called |= _walk(node.body, found, functions, is_sure=tried)
                called |= _walk(node.finalbody, found, functions, is_sure=is_sure)
                for handler in node.handlers:
                    _walk(handler.body, found, functions, is_sure=False)
                _walk(node.orelse, found, functions, is_sure=False)
            case ast.With() | ast.AsyncWith() | ast.ClassDef():
                called |= _walk(node.body, found, functions, is_sure=is_sure)
            case ast.If() | ast.For() | ast.AsyncFor() | ast.While():
                called |= _calls(node)
                for part in (node.body, node.orelse):
                    _walk(part, found, functions, is_sure=False)
            case ast.Match():
                for case in node.cases:
                    _walk(case.body, found, functions, is_sure=False)
            case _:
                called |= _calls(node)
    return called


def _calls(node: ast.AST) -> set[str]:
    return {
        part.func.id
        for part in ast.walk(node)
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Name)
    }


def _catches_import_errors(node: ast.Try | ast.TryStar) -> bool:
    for handler in node.handlers:
        if handler.type is None:
            return True
        names = {part.id for part in ast.walk(handler.type) if isinstance(part, ast.Name)}
        if names & _CAUGHT:
            return True
    return False


def module_names(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield the absolute modules that the statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif node.module is not None and not node.level:
        yield node.module
