"""The names that must travel: the cell's own, and those of every function that it can reach."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .analysis import Analysis
from .reach import Reach, function_needs
from .withheld import BUILTIN_NAMES, is_of_the_shell, is_secret

_BY_CELL = "read by the cell"
_IN_STRING = "mentioned in a string"
_UNBOUND = "unbound by the cell"
_ASKED = "asked for"


@dataclass(slots=True)
class Closure:
    """What a cell needs of a namespace, and why."""

    why: dict[str, str] = field(default_factory=dict)
    """Name to reason, for every name that should travel."""
    hard: set[str] = field(default_factory=set)
    """Those of them without which the cell cannot run."""
    withheld: dict[str, str] = field(default_factory=dict)
    """Secrets to the reason why they would be needed."""
    needs_withheld: set[str] = field(default_factory=set)
    left_out: dict[str, int] = field(default_factory=dict)
    """Soft names above the limit, with their bytes."""
    missing: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)
    deletes: set[str] = field(default_factory=set)
    imports: set[str] = field(default_factory=set)
    """Modules that the functions import when they run."""
    functions: list[types.FunctionType] = field(default_factory=list)
    may_send: Callable[[str], bool] = lambda name: False
    """Whether a name is there and neither a secret, nor left out, nor the shell's."""


class ClosureBuilder:
    """Closes the names of one cell transitively over the values of its namespace."""

    def __init__(
        self,
        namespace: dict[str, Any],
        *,
        needs: Iterable[str],
        without: Iterable[str],
        soft_limit_bytes: int,
    ) -> None:
        self._namespace = namespace
        self._needs = frozenset(needs)
        self._without = frozenset(without)
        self._soft_limit_bytes = soft_limit_bytes
        self._reach = Reach(namespace)
        self._soft: dict[str, str] = {}
        self.result = Closure(may_send=self._may_send)

    def build(self, analysis: Analysis, *, everything: bool) -> Closure:
        """Return the closure of ``analysis``; with ``everything`` also all other names."""
        result = self.result
        result.writes |= analysis.writes
        result.deletes |= analysis.deletes
        result.missing = {
            name
            for name in analysis.reads
            if name not in self._namespace
            and name not in BUILTIN_NAMES
            and not is_of_the_shell(name, self._namespace)
        }
        self._take([(name, _ASKED) for name in sorted(self._needs)])
        self._take([(name, _BY_CELL) for name in sorted(analysis.reads)])
        self._soft |= dict.fromkeys(sorted(analysis.soft), _IN_STRING)
        self._soft |= dict.fromkeys(sorted(analysis.soft & analysis.deletes), _UNBOUND)
        self._take_soft()
        if everything:
            self._take_everything()
        return result

    def take_for(self, name: str, definition: str) -> bool:
        """Take ``name``, which the source of ``definition`` reads; return whether it travels."""
        self._take([(name, f"read by {definition}, whose source is sent")])
        return name in self.result.why

    def _take(self, wanted: list[tuple[str, str]], *, hard: bool = True) -> None:
        todo = list(wanted)
        while todo:
            name, reason = todo.pop()
            if not self._is_open(name, reason, hard=hard):
                continue
            self.result.why[name] = reason
            if hard:
                self.result.hard.add(name)
            todo += self._needs_of(name)

    def _may_send(self, name: str) -> bool:
        return (
            name in self._namespace
            and name not in self._without
            and not is_of_the_shell(name, self._namespace)
            and not is_secret(name, self._namespace[name])
        )

    def _is_open(self, name: str, reason: str, *, hard: bool) -> bool:
        if name not in self._namespace or name in self._without:
            return False
        if is_of_the_shell(name, self._namespace):
            return False
        if name not in self._needs and is_secret(name, self._namespace[name]):
            self.result.withheld.setdefault(name, reason)
            if hard:
                self.result.needs_withheld.add(name)
            return False
        if name in self.result.why:
            if hard:
                self.result.hard.add(name)
            return False
        return True

    def _needs_of(self, name: str) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for function in self._reach.functions(self._namespace[name]):
            needs = function_needs(function)
            reason = f"read by {function.__qualname__}()"
            self.result.functions.append(function)
            self.result.writes |= needs.writes
            self.result.deletes |= needs.deletes
            self.result.imports |= needs.imports
            for soft in needs.soft:
                self._soft.setdefault(soft, f"mentioned in a string of {function.__qualname__}()")
            found += [(other, reason) for other in sorted(needs.needs)]
        return found

    def _take_soft(self) -> None:
        # Taking one may bring more, so it goes on until nothing is left.
        while self._soft:
            name, reason = self._soft.popitem()
            if name in self.result.why or not self._is_open(name, reason, hard=False):
                continue
            size = shallow_bytes(self._namespace[name])
            if size > self._soft_limit_bytes:
                self.result.left_out[name] = size
                continue
            self._take([(name, reason)], hard=False)

    def _take_everything(self) -> None:
        names = [name for name in sorted(self._namespace) if not name.startswith("_")]
        self._take([(name, _ASKED) for name in names], hard=False)
        self.result.left_out.clear()


def shallow_bytes(value: object) -> int:
    """Return a cheap guess of the bytes of ``value``; modules count 0."""
    if isinstance(value, types.ModuleType):
        return 0
    try:
        reported = _reported_bytes(value)
        return sys.getsizeof(value) if reported is None else reported
    except Exception:
        return sys.maxsize  # an object that cannot even tell its size is not sent unasked


def _reported_bytes(value: Any) -> int | None:
    if isinstance(value, type):
        return None
    if isinstance(size := getattr(value, "nbytes", None), int):
        return size
    measure = getattr(value, "memory_usage", None)
    if not callable(measure):
        return None
    size = measure()
    return int(size.sum() if hasattr(size, "sum") else size)
