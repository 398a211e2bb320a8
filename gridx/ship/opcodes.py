"""Which names of the global namespace a code object touches, by the compiler's own scoping."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType
from typing import Final, NamedTuple

_READS: Final = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_CO_NEWLOCALS: Final = 0x2
# Used by the compiler for annotated statements and class bodies.
_COMPILER_NAMES: Final = frozenset(
    {"__annotations__", "__conditional_annotations__", "__classdict__", "__name__"}
)


class CodeNames(NamedTuple):
    """Global names that a code object and the code nested in it load, store and delete, and the
    modules that they import."""

    loads: frozenset[str]
    stores: frozenset[str]
    deletes: frozenset[str]
    imports: frozenset[str] = frozenset()


def code_names(code: CodeType) -> CodeNames:
    """Return what ``code`` and its nested functions and classes do to global names.

    In a class body ``LOAD_NAME`` falls back to the globals, so it counts as a read, while its
    ``STORE_NAME`` makes an attribute and does not count.
    """
    loads: set[str] = set()
    stores: set[str] = set()
    deletes: set[str] = set()
    imports: set[str] = set()
    for nested, is_top in _nested(code):
        is_class = not is_top and not nested.co_flags & _CO_NEWLOCALS
        for instruction in dis.get_instructions(nested):
            op, name = instruction.opname, instruction.argval
            if op in _READS:
                loads.add(name)
            elif op == "STORE_GLOBAL" or (op == "STORE_NAME" and not is_class):
                stores.add(name)
            elif op == "DELETE_GLOBAL" or (op == "DELETE_NAME" and not is_class):
                deletes.add(name)
            elif op == "IMPORT_NAME":
                imports.add(name)
    return CodeNames(
        frozenset(loads - _COMPILER_NAMES),
        frozenset(stores - _COMPILER_NAMES),
        frozenset(deletes - _COMPILER_NAMES),
        frozenset(imports - {""}),
    )


def code_strings(code: CodeType) -> Iterator[str]:
    """Yield the string constants of ``code`` and of the code nested in it."""
    for nested, _ in _nested(code):
        for constant in nested.co_consts:
            if isinstance(constant, str):
                yield constant


def attribute_names(code: CodeType) -> frozenset[str]:
    """Return every name, attribute names included, that ``code`` and nested code mention."""
    return frozenset(name for nested, _ in _nested(code) for name in nested.co_names)


def _nested(code: CodeType) -> Iterator[tuple[CodeType, bool]]:
    todo = [(code, True)]
    while todo:
        current, is_top = todo.pop()
        yield current, is_top
        todo += [(c, False) for c in current.co_consts if isinstance(c, CodeType)]
