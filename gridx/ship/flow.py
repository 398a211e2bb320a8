"""Definite assignment over the statements of a cell.

A name that the cell has surely bound before it reads it is not an input. A wrong guess only
ever adds an input: that costs bytes, while a missing input would cost correctness.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from .opcodes import CodeNames, code_names

Bound = frozenset[str]
# What is surely bound after a statement; None when control never falls out of it.
After = Bound | None


class Flow:
    """Walks the statements of one cell; ``reads``, ``writes`` and ``deletes`` grow as it goes."""

    def __init__(self, flags: int) -> None:
        """``flags``: compiler flags of the cell's ``from __future__`` imports."""
        self.flags = flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self.reads: set[str] = set()
        self.writes: set[str] = set()
        self.deletes: set[str] = set()
        self.unbinds: set[str] = set()
        """Names of ``except … as name``: deleted when the handler has run, and not read."""
        self.has_star_import = False

    def block(self, statements: Iterable[ast.stmt], bound: Bound) -> After:
        """Walk ``statements`` with ``bound`` surely bound before them."""
        for statement in statements:
            rule = _RULES.get(type(statement), Flow._simple)
            after = rule(self, statement, bound)
            if after is None:
                return None
            bound = after
        return bound

    def _names(self, node: ast.stmt | ast.expr) -> CodeNames:
        statement: ast.stmt
        if isinstance(node, ast.stmt):
            statement = node
        else:
            statement = ast.copy_location(ast.Expr(node), node)
        module = ast.Module([statement], [])
        return code_names(compile(module, "<cell>", "exec", flags=self.flags, dont_inherit=True))

    def _use(self, names: Iterable[str], bound: Bound) -> None:
        self.reads |= set(names) - bound

    def _expression(self, node: ast.expr | None, bound: Bound) -> None:
        if node is None:
            return
        names = self._names(node)
        self._use(names.loads, bound)
        # A walrus may be skipped by and, or, if: it writes, but does not surely bind.
        self.writes |= names.stores

    def _target(self, node: ast.expr, bound: Bound) -> Bound:
        """Return the names that a ``for`` or ``with`` target binds; ``x[i]`` and ``x.a`` read."""
        made: set[str] = set()
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                if isinstance(part.ctx, ast.Store):
                    made.add(part.id)
                else:
                    self._use({part.id}, bound)
        self.writes |= made
        return frozenset(made)

    def _if(self, node: Any, bound: Bound) -> After:
        self._expression(node.test, bound)
        return _meet([self.block(node.body, bound), self.block(node.orelse, bound)])

    def _for(self, node: Any, bound: Bound) -> After:
        self._expression(node.iter, bound)
        target = self._target(node.target, bound)
        self.block(node.body, bound | target)
        self.block(node.orelse, bound)
        return bound

    def _while(self, node: Any, bound: Bound) -> After:
        self._expression(node.test, bound)
        self.block(node.body, bound)
        self.block(node.orelse, bound)
        return bound

    def _with(self, node: Any, bound: Bound) -> After:
        for item in node.items:
            self._expression(item.context_expr, bound)
            if item.optional_vars is not None:
                bound |= self._target(item.optional_vars, bound)
        self.block(node.body, bound)
        return bound  # the manager may swallow an exception of the body

    def _try(self, node: Any, bound: Bound) -> After:
        body = self.block(node.body, bound)
        ends = [body if body is None else self.block(node.orelse, body)]
        for handler in node.handlers:
            self._expression(handler.type, bound)
            name = {handler.name} if handler.name else set()
            self.writes |= name
            self.unbinds |= name
            end = self.block(handler.body, bound | name)
            ends.append(None if end is None else end - name)
        after = _meet(ends)
        final = self.block(node.finalbody, bound)
        return None if final is None or after is None else after | final

    def _match(self, node: Any, bound: Bound) -> After:
        self._expression(node.subject, bound)
        for case in node.cases:
            made: set[str] = set()
            for part in ast.walk(case.pattern):
                for field in ("name", "rest"):
                    name = getattr(part, field, None)
                    if isinstance(name, str):
                        made.add(name)
                if isinstance(part, ast.Name):
                    self._use({part.id}, bound)
            self.writes |= made
            self._expression(case.guard, bound | made)
            self.block(case.body, bound | made)
        return bound

    def _definition(self, node: Any, bound: Bound) -> After:
        names = self._names(node)
        # A def may read itself (recursion) without needing an input, unless a decorator, a
        # default or a base does.
        outside: set[str] = set()
        for part in _evaluated_at_definition(node):
            outside |= self._names(part).loads
        own = {node.name}
        self._use((names.loads - own) | (outside & own), bound)
        self.writes |= names.stores
        self.deletes |= names.deletes
        return bound | own

    def _raise(self, node: Any, bound: Bound) -> After:
        self._expression(node.exc, bound)
        self._expression(node.cause, bound)
        return None

    def _leave(self, node: Any, bound: Bound) -> After:
        return None

    def _delete(self, node: Any, bound: Bound) -> After:
        names = self._names(node)
        self._use(names.loads | names.deletes, bound)
        self.deletes |= names.deletes
        return bound - names.deletes

    def _augmented(self, node: Any, bound: Bound) -> After:
        names = self._names(node)
        self._use(names.loads, bound)
        self.writes |= names.stores
        if isinstance(node.target, ast.Name):
            self._use({node.target.id}, bound)
            return bound | names.stores
        return bound

    def _assignment(self, node: Any, bound: Bound) -> After:
        names = self._names(node)
        self._use(names.loads, bound)
        if isinstance(node, ast.AnnAssign) and node.value is None:
            return bound  # a bare annotation binds nothing
        self.writes |= names.stores
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        sure = {
            part.id
            for target in targets
            for part in ast.walk(target)
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
        }
        return bound | sure

    def _import(self, node: Any, bound: Bound) -> After:
        if any(alias.name == "*" for alias in node.names):
            self.has_star_import = True
            return bound
        stores = self._names(node).stores
        self.writes |= stores
        return bound | stores

    def _simple(self, node: ast.stmt, bound: Bound) -> After:
        # All loads happen, conservatively, before the stores; a store by a nested `global`
        # does not surely bind.
        names = self._names(node)
        self._use(names.loads, bound)
        self.writes |= names.stores
        return bound


def _meet(ends: Sequence[After]) -> After:
    live = [end for end in ends if end is not None]
    return frozenset.intersection(*live) if live else None


def _evaluated_at_definition(node: Any) -> list[ast.expr]:
    parts: list[ast.expr] = list(node.decorator_list)
    if isinstance(node, ast.ClassDef):
        return [*parts, *node.bases, *(keyword.value for keyword in node.keywords)]
    defaults = (d for d in node.args.kw_defaults if d is not None)
    return [*parts, *node.args.defaults, *defaults]


_Rule = Callable[[Flow, Any, Bound], After]
_RULES: Final[dict[type[ast.stmt], _Rule]] = {
    ast.If: Flow._if,
    ast.For: Flow._for,
    ast.AsyncFor: Flow._for,
    ast.While: Flow._while,
    ast.With: Flow._with,
    ast.AsyncWith: Flow._with,
    ast.Try: Flow._try,
    ast.TryStar: Flow._try,
    ast.Match: Flow._match,
    ast.FunctionDef: Flow._definition,
    ast.AsyncFunctionDef: Flow._definition,
    ast.ClassDef: Flow._definition,
    ast.Raise: Flow._raise,
    ast.Break: Flow._leave,
    ast.Continue: Flow._leave,
    ast.Return: Flow._leave,
    ast.Delete: Flow._delete,
    ast.AugAssign: Flow._augmented,
    ast.Assign: Flow._assignment,
    ast.AnnAssign: Flow._assignment,
    ast.Import: Flow._import,
    ast.ImportFrom: Flow._import,
}
