"""Which names a cell reads, writes and deletes, without running it."""

from __future__ import annotations
import __future__

import ast
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from . import magic_lines
from .flow import Flow
from .import_statements import Imports, imports_of

IDENTIFIER: Final = re.compile(r"[^\W\d]\w*")
_AT_NAME: Final = re.compile(r"@([^\W\d]\w*)")
# What IPython transforms: magics, shell lines, help, quoting prefixes, prompts, indentation.
_NOT_PYTHON: Final = re.compile(r"[%!?]|^\s*[,;/]|>>>|^\s*In \[|\A\s", re.MULTILINE)
# Calls that may reach any name of their caller.
_DYNAMIC: Final = frozenset({"exec", "eval", "globals", "locals", "vars", "compile", "__import__"})
# Calls whose string arguments name variables of the calling frame: pandas, numexpr, duckdb,
# timeit, statsmodels and patsy formulas.
_FRAME_CALLS: Final = frozenset(
    [
        "eval",
        "exec",
        "compile",
        "query",
        "sql",
        "evaluate",
        "timeit",
        "repeat",
        "run",
        "Timer",
        "ols",
        "wls",
        "gls",
        "glm",
        "logit",
        "probit",
        "poisson",
        "rlm",
        "quantreg",
        "mixedlm",
        "dmatrix",
        "dmatrices",
    ]
)
_MAX_NESTING: Final = 4


@dataclass(slots=True)
class Analysis:
    """What a cell does to names, as far as its text tells."""

    reads: set[str] = field(default_factory=set)
    """Must be present before the cell, or be builtins."""
    soft: set[str] = field(default_factory=set)
    """Mentioned in strings only: sent when cheap."""
    writes: set[str] = field(default_factory=set)
    deletes: set[str] = field(default_factory=set)
    dynamic: set[str] = field(default_factory=set)
    """Constructs that make this answer incomplete."""
    files: set[str] = field(default_factory=set)
    """Files that magics of the cell read."""
    written_files: set[str] = field(default_factory=set)
    """Files that magics of the cell write."""
    imports: set[str] = field(default_factory=set)
    """Modules that the cell surely imports when it runs to its end."""
    optional_imports: set[str] = field(default_factory=set)
    """Modules that it imports perhaps: in a branch, in a function, where ImportError is caught."""
    out_values: set[int] = field(default_factory=set)
    """Numbers n of ``Out[n]``."""
    star: bool = False
    """The cell has ``from m import *``."""

    def add(self, other: Analysis) -> None:
        """Add what ``other``, code inside this code, does."""
        self.reads |= other.reads
        self.soft |= other.soft
        self.writes |= other.writes
        self.deletes |= other.deletes
        self.dynamic |= other.dynamic
        self.files |= other.files
        self.written_files |= other.written_files
        self.imports |= other.imports
        self.optional_imports |= other.optional_imports
        self.out_values |= other.out_values
        self.star |= other.star


def analyze(source: str) -> Analysis:
    """Return what the cell ``source`` does to names.

    ``%``, ``!`` and ``?`` lines are understood where IPython is loaded.

    Raises:
        SyntaxError: the cell is not Python.
    """
    with warnings.catch_warnings():
        # The user sees the compiler's warnings once, when the cell runs.
        warnings.simplefilter("ignore")
        return _analyze(source, nesting=0)


def transform(source: str) -> str:
    """Return ``source`` as plain Python, magics as calls, where IPython is loaded."""
    module: Any = sys.modules.get("IPython.core.inputtransformer2")
    if not _NOT_PYTHON.search(source):
        return source
    return source if module is None else str(module.TransformerManager().transform_cell(source))


def names_in_text(text: str) -> set[str]:
    """Return every identifier in ``text``."""
    return set(IDENTIFIER.findall(text))


def soft_names_of_string(text: str) -> set[str]:
    """Return names that a string of ordinary code may mean: ``@name``, or exactly one name."""
    found = set(_AT_NAME.findall(text))
    if text.isidentifier():
        found.add(text)
    return found


def _analyze(source: str, nesting: int) -> Analysis:
    result = Analysis()
    if nesting > _MAX_NESTING or not source.strip():
        return result
    text = transform(source)
    try:
        tree = ast.parse(text)
        flags = future_flags(tree)
        compile(
            tree,
            "<cell>",
            "exec",
            flags=flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )
    except SyntaxError:
        if not nesting:
            raise
        result.soft |= names_in_text(source)
        return result
    flow = Flow(flags)
    flow.block(tree.body, frozenset())
    result.reads, result.writes, result.deletes = flow.reads, flow.writes, flow.deletes
    result.star = flow.has_star_import
    # The other side can only tell that such a name is gone when it was there before.
    result.deletes |= flow.unbinds
    result.soft |= flow.unbinds
    if "import" in text:
        found: Imports = imports_of(tree)
        result.imports, result.optional_imports = found.sure, found.optional
    for node in ast.walk(tree):
        _look_at(node, result, nesting)
    if magic_lines.may_hide_code(text):
        for kind, hidden in magic_lines.hidden_code(tree):
            _look_into(kind, hidden, result, nesting)
    result.reads -= {"get_ipython"}
    result.soft -= result.reads
    return result


def future_flags(tree: ast.Module) -> int:
    """Return the compiler flags of the ``from __future__`` imports of ``tree``."""
    flags = 0
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            for alias in node.names:
                feature = getattr(__future__, alias.name, None)
                flags |= feature.compiler_flag if feature is not None else 0
    return flags


def _look_at(node: ast.AST, result: Analysis, nesting: int) -> None:
    match node:
        case ast.Constant(value=str() as text):
            result.soft |= soft_names_of_string(text)
        case ast.Call():
            _look_at_call(node, result, nesting)
        case ast.Subscript(value=ast.Name(id="Out"), slice=ast.Constant(value=int() as number)):
            result.out_values.add(number)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            result.soft |= _annotation_names(node.returns)
        case ast.AnnAssign() | ast.arg():
            result.soft |= _annotation_names(node.annotation)
        case _:
            pass


def _look_at_call(node: ast.Call, result: Analysis, nesting: int) -> None:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    name = node.func.id if isinstance(node.func, ast.Name) else name
    if name in _FRAME_CALLS:
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            for text in _strings_in(argument):
                result.soft |= names_in_text(text)
    if name in _DYNAMIC and _is_builtin(node.func):
        match node.args[:1]:
            case [ast.Constant(value=str() as code)] if name in ("exec", "eval"):
                result.add(_analyze(code, nesting + 1))
            case _:
                result.dynamic.add(name)


def _is_builtin(function: ast.expr) -> bool:
    """Return whether ``function`` is the builtin of its name: ``re.compile``, ``df.eval`` are not."""
    if isinstance(function, ast.Attribute):
        return isinstance(function.value, ast.Name) and function.value.id == "builtins"
    return True


def _strings_in(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def _annotation_names(node: ast.expr | None) -> set[str]:
    if node is None:
        return set()
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    for text in _strings_in(node):
        names |= names_in_text(text)
    return names


def _look_into(kind: magic_lines.Kind, text: str, result: Analysis, nesting: int) -> None:
    match kind:
        case "python":
            result.add(_analyze(text, nesting + 1))
        case "expression":
            result.soft |= _analyze(text, nesting + 1).reads
        case "soft":
            result.soft.add(text)
        case "names":
            result.reads |= names_in_text(text)
        case "file":
            result.files.add(text)
        case "write":
            result.writes.add(text)
        case "written":
            result.written_files.add(text)
        case "dynamic":
            result.dynamic.add(text)
