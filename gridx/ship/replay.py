"""Imports, functions and classes that a cell made elsewhere, made again from its own source.

A worker may say *that* ``def f`` ran; what ``f`` is comes from the user's text alone.
"""

from __future__ import annotations

import ast
import copy
import linecache
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from . import magic_lines
from .analysis import future_flags, transform

# Calls that make a class or a type without a statement of their own.
_MAKERS: Final = frozenset(
    [
        "namedtuple",
        "NamedTuple",
        "TypedDict",
        "Enum",
        "IntEnum",
        "Flag",
        "IntFlag",
        "StrEnum",
        "NewType",
        "TypeVar",
        "ParamSpec",
        "make_dataclass",
        "new_class",
    ]
)
# A cell without any of these words has no definitions, and need not be parsed.
_WORDS: Final = re.compile(rf"\b(?:import|def|class|lambda|{'|'.join(sorted(_MAKERS))})\b")
_BODIES: Final = ("body", "orelse", "finalbody", "handlers", "cases")


@dataclass(frozen=True, slots=True)
class Definition:
    """A statement that can be made again, and the names that it binds."""

    names: tuple[str, ...]
    node: ast.stmt
    is_conditional: bool
    """It stands inside an if, try, with or loop, so it may not have run."""
    later: tuple[str, ...] = ()
    """Names that it evaluates when it is made, and that the cell binds again after it."""

    @property
    def is_star(self) -> bool:
        """It is ``from m import *``."""
        return self.names == ("*",)

    def begins_at(self, line: int) -> bool:
        """Return whether the code made by this statement says that it begins at ``line``."""
        decorators = getattr(self.node, "decorator_list", [])
        return line in (self.node.lineno, *(decorator.lineno for decorator in decorators))


@dataclass(frozen=True, slots=True)
class CellDefinitions:
    """All definitions of a cell, in the order of its text."""

    definitions: tuple[Definition, ...]
    final: frozenset[str]
    """Names whose last binding is surely one of these."""
    flags: int
    """Compiler flags of the cell's ``from __future__`` imports."""

    @property
    def names(self) -> frozenset[str]:
        """Every name that one of the definitions binds."""
        return frozenset(name for part in self.definitions for name in part.names)

    def chosen(self, lines: Mapping[str, int]) -> list[Definition]:
        """Return what to make again.

        Args:
            lines: each name that was bound to code, with the line where that code begins, or 0.
        """
        found = []
        for part in self.definitions:
            wanted = [name for name in part.names if name in lines]
            if part.is_star:
                if lines.keys() - self.names:
                    found.append(part)
            elif wanted and (not part.is_conditional or self._is_meant(part, wanted, lines)):
                found.append(part)
        return found

    def _is_meant(self, part: Definition, wanted: list[str], lines: Mapping[str, int]) -> bool:
        def is_only(name: str) -> bool:
            return sum(name in other.names for other in self.definitions) == 1

        return any(is_only(name) or part.begins_at(lines[name]) for name in wanted)


def statements(cell_source: str) -> CellDefinitions:
    """Return the definitions of the cell; none when it is not Python."""
    if not _WORDS.search(cell_source):
        return CellDefinitions((), frozenset(), 0)
    try:
        tree = ast.parse(transform(cell_source))
    except SyntaxError:
        return CellDefinitions((), frozenset(), 0)
    body = _body_of_cell_magic(tree)
    if body is not None:
        return statements(body)
    found: list[Definition] = []
    final: dict[str, bool] = {}
    last_line: dict[str, int] = {}
    for node, is_conditional in _flat(tree.body, False):
        names = _replayable_names(node)
        if names:
            found.append(Definition(names, node, is_conditional))
        for name in names or _bound_names(node):
            final[name] = bool(names) and not is_conditional
            last_line[name] = node.lineno
    found = [replace(part, later=_bound_later(part.node, last_line)) for part in found]
    sure = frozenset(name for name, is_definition in final.items() if is_definition)
    return CellDefinitions(tuple(found), sure, future_flags(tree))


def run(
    part: Definition,
    namespace: dict[str, Any],
    *,
    flags: int,
    cell_source: str,
    cell_file: str | None = None,
    line_offset: int = 0,
) -> None:
    """Make ``part`` again in ``namespace``. Raises whatever the statement raises."""
    if cell_file is None:
        cell_file = f"<gridx cell {hash(cell_source) & 0xFFFF_FFFF:08x}>"
        lines = ("\n" * line_offset + cell_source).splitlines(keepends=True)
        linecache.cache[cell_file] = (len(cell_source), None, lines, cell_file)
    module = ast.increment_lineno(ast.Module([copy.deepcopy(part.node)], []), line_offset)
    code = compile(module, cell_file, "exec", flags=flags, dont_inherit=True)
    exec(code, namespace)  # noqa: S102  # the user's own text, in the user's own notebook


def _body_of_cell_magic(tree: ast.Module) -> str | None:
    """Return the body of ``%%time`` and its like, whose definitions are the notebook's too."""
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        return None
    call = tree.body[0].value
    is_magic = (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "run_cell_magic"
    )
    if not is_magic:
        return None
    hidden = [text for kind, text in magic_lines.hidden_code(tree) if kind == "python"]
    return hidden[0] if hidden else None


def _flat(body: Iterable[ast.AST], is_conditional: bool) -> Iterator[tuple[ast.stmt, bool]]:
    for node in body:
        is_scope = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        if isinstance(node, ast.stmt):
            yield node, is_conditional
        if not is_scope:
            for field in _BODIES:
                yield from _flat(getattr(node, field, None) or (), True)


def _replayable_names(node: ast.stmt) -> tuple[str, ...]:
    match node:
        case ast.Import():
            return tuple(a.asname or a.name.partition(".")[0] for a in node.names)
        case ast.ImportFrom(module="__future__"):
            return ()
        case ast.ImportFrom():
            return tuple(alias.asname or alias.name for alias in node.names)
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return (node.name,)
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if _makes_code(value):
            return (name,)
        case _:
            return ()


def _bound_later(node: ast.stmt, last_line: Mapping[str, int]) -> tuple[str, ...]:
    """Return the names that making ``node`` evaluates and that are bound again below it."""
    parts: list[ast.AST] = list(getattr(node, "decorator_list", ()))
    if isinstance(node, ast.ClassDef):
        parts += [*node.bases, *(keyword.value for keyword in node.keywords), *node.body]
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        parts += [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]
    elif isinstance(node, ast.Assign):
        value = node.value
        lambda_defaults = value.args.defaults if isinstance(value, ast.Lambda) else [value]
        parts += lambda_defaults
    names = {name for part in parts for name in _evaluated_names(part)}
    return tuple(sorted(name for name in names if last_line.get(name, 0) > node.lineno))


def _evaluated_names(node: ast.AST) -> Iterator[str]:
    """Yield names that ``node`` reads at once: not those inside a function that it makes."""
    if isinstance(node, ast.Name):
        yield node.id
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        inner: list[ast.AST] = [*node.args.defaults]
        inner += [default for default in node.args.kw_defaults if default is not None]
        inner += getattr(node, "decorator_list", [])
    else:
        inner = list(ast.iter_child_nodes(node))
    for child in inner:
        yield from _evaluated_names(child)


def _makes_code(value: ast.expr) -> bool:
    if isinstance(value, ast.Lambda):
        return True
    if not isinstance(value, ast.Call):
        return False
    function = value.func
    name = function.attr if isinstance(function, ast.Attribute) else ""
    name = function.id if isinstance(function, ast.Name) else name
    return name in _MAKERS


def _bound_names(node: ast.stmt) -> set[str]:
    parts: list[ast.AST] = []
    if isinstance(node, ast.Assign):
        parts = list(node.targets)
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.For, ast.AsyncFor)):
        parts = [node.target]
    elif isinstance(node, (ast.With, ast.AsyncWith)):
        parts = [item.optional_vars for item in node.items if item.optional_vars is not None]
    elif isinstance(node, ast.Delete):
        parts = list(node.targets)
    return {part.id for top in parts for part in ast.walk(top) if isinstance(part, ast.Name)}
