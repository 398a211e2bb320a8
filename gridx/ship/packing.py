"""Pickles the values of one capture; what cannot be pickled is named, or left here."""

from __future__ import annotations

import types
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ..errors import CaptureError
from .closure import ClosureBuilder
from .deep_stack import is_too_deep, with_deep_stack
from .formulas import FORMULA_LIBRARIES
from .payload import Packed
from .pickler import Shipper
from .refusal import Unpicklable, explain
from .withheld import is_secret

if TYPE_CHECKING:
    from .chunk_digests import ChunkDigests
    from .source_code import DefinitionSource, SourceDefinitions

_DEEP_LEVELS: Final = 60_000
# A value is shipped with the code when it is code: libraries that evaluate names while they
# are unpickled then find the functions.
CODE: Final = (types.FunctionType, type, types.ModuleType)


class Packing:
    """Pickles the values of one capture; drops what cannot be pickled and starts again."""

    def __init__(
        self,
        namespace: dict[str, Any],
        closure: ClosureBuilder,
        *,
        needs: frozenset[str],
        without: frozenset[str],
        present: Collection[str] = (),
        submodules: list[str],
        digests: ChunkDigests | None,
        definitions: SourceDefinitions | None = None,
    ) -> None:
        """
        Args:
            namespace: the notebook's.
            closure: knows what the cell needs, and is told what definitions need.
            needs: names that were asked for.
            without: names that must not travel.
            present: names that the sandbox has already.
            submodules: modules to import beside those of the values.
            digests: cuts large buffers into blobs.
            definitions: what travels as source instead of code.
        """
        self._namespace = namespace
        self._closure = closure
        self._needs = needs
        self._without = without
        self._present = frozenset(present)
        self._submodules = submodules
        self._digests = digests
        self._definitions = definitions
        self._failed: set[str] = set()
        self.withheld: set[str] = set()
        self.unpicklable: dict[str, Unpicklable] = {}
        self.stays: dict[str, str] = {}
        """Names that travel only if they can, to why they cannot."""
        self.warnings: list[str] = []
        self.modules: set[str] = set()
        self.needed_by: dict[str, str] = {}
        """Modules that data needs, with the first variable that does."""
        self.sent: dict[str, Any] = {}
        self.sizes: dict[str, int] = {}
        self.packed = Packed(b"")
        self.data = memoryview(b"")
        """The part of the pickle stream that holds values rather than code."""

    def run(self, values: dict[str, Any]) -> None:
        """Pickle ``values``; afterwards ``packed`` or ``unpicklable`` is filled."""
        todo = dict(values)
        while True:
            failed = self._try(todo)
            if failed is None:
                break
            self._failed.update(failed)
            for name in failed:
                todo.pop(name, None)
        if self.unpicklable:
            self.packed = Packed(b"")

    def fresh_shipper(self, values: Iterable[str]) -> Shipper:
        """Return a pickler as if ``values`` travelled, which starts no hashing."""
        return self._shipper(values)

    def _try(self, values: dict[str, Any]) -> list[str] | None:
        """Pickle ``values``; return the names that cannot be, or None when all could."""
        values = dict(values)
        order = self._order(values)
        shipper = self._shipper(values, self._digests)
        sizes: dict[str, int] = {}
        current: list[str] = []
        begin = 0

        def dump() -> None:
            nonlocal begin
            current[:] = list(order.code)
            definitions = [(part.name, part.text) for part in order.definitions]
            shipper.dump((order.code, self._submodules, order.early, definitions, order.late))
            sizes.update(dict.fromkeys([*order.code, *(name for name, _ in definitions)], 0))
            begin = shipper.stream_bytes
            for name in [*order.early, *order.late]:
                current[:] = [name]
                before, modules = shipper.size_bytes, len(shipper.modules)
                shipper.may_take_secrets = name in self._needs
                shipper.dump(values[name])
                sizes[name] = shipper.size_bytes - before
                if len(shipper.modules) != modules:
                    for module in shipper.modules - self.needed_by.keys():
                        self.needed_by[module] = name

        try:
            dump()
        except Exception as error:
            if not is_too_deep(error):
                return self._blame(list(current), values, error)
            shipper = self._shipper(values, self._digests)
            try:
                with_deep_stack(dump, _DEEP_LEVELS)
            except Exception as exc:
                return self._blame(list(current), values, exc)
        self.data = memoryview(shipper.dumped()[0])[begin:]
        self._finish(shipper, {**values, **order.defined}, sizes)
        return None

    def _order(self, values: dict[str, Any]) -> _Order:
        if self._definitions is None:
            code = {n: v for n, v in values.items() if isinstance(v, CODE)}
            data = [n for n in values if n not in code]
            return _Order(code, sorted(data, key=lambda n: _may_evaluate(values[n])))
        return self._order_by_source(values, self._definitions)

    def _order_by_source(self, values: dict[str, Any], definitions: SourceDefinitions) -> _Order:
        """Return the order for a container that can run no code object of this Python.

        What definitions read is added to ``values``; what is made again is taken out of it.
        """
        order = _Order({}, [])
        references: dict[str, frozenset[str]] = {}
        todo = sorted(values)
        seen = set(self._failed)
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            value = values[name] if name in values else self._namespace[name]
            part = definitions.find(name)
            if part is not None:
                order.definitions.append(part)
                order.defined[name] = value
                values.pop(name, None)
                todo += [n for n in sorted(part.needs) if self._closure.take_for(n, name)]
                continue
            values[name] = value
            if isinstance(value, types.ModuleType):
                order.code[name] = value
            else:
                references[name] = self._references(value)
                todo += sorted(references[name])
        order.definitions.sort(key=lambda part: part.order)
        for name in values:
            if name in references:
                (order.late if references[name] else order.early).append(name)
        return order

    def _references(self, value: object) -> frozenset[str]:
        """Return the definitions that ``value`` refers to; none when it cannot be pickled."""
        shipper = self._shipper(())
        try:
            shipper.dump(value)
        except Exception:
            return frozenset()  # found again, and told, when it is pickled with the others
        return frozenset(shipper.defined)

    def _finish(self, shipper: Shipper, values: dict[str, Any], sizes: dict[str, int]) -> None:
        self.packed = shipper.packed()
        self.modules = shipper.modules | set(self._submodules)
        self.warnings += shipper.warnings
        self.sent = {**shipper.carried, **values}
        self.sizes = {**dict.fromkeys(shipper.carried, 0), **sizes}

    def _shipper(self, values: Iterable[str], digests: ChunkDigests | None = None) -> Shipper:
        return Shipper(
            self._namespace,
            shipped=self._present.union(values),
            may_take=self._may_take,
            digests=digests,
            definitions=self._definitions,
        )

    def _may_take(self, name: str, value: object) -> bool:
        """Whether a function that was found only while pickling may carry a global."""
        if name in self._without:
            return False
        if name not in self._needs and is_secret(name, value):
            self.withheld.add(name)
            return False
        return True

    def _blame(self, names: list[str], values: dict[str, Any], error: Exception) -> list[str]:
        """Return those of ``names`` that fail by themselves, and note why."""
        culprits: list[tuple[str, Exception]] = []
        for name in names:
            reason = error if len(names) == 1 else self._failure(values[name], values)
            if reason is not None:
                culprits.append((name, reason))
        if not culprits:
            raise CaptureError(
                f"The variables {', '.join(names)} cannot be sent together: {error}.", names=names
            ) from error
        for name, reason in culprits:
            explained = explain(
                name, values[name], reason, lambda part: self._failure(part, values) is not None
            )
            if name in self._closure.result.hard:
                self.unpicklable[name] = explained
            else:
                self.stays[name] = explained.sentence
                self.warnings.append(f"{name} stays here: {explained.sentence}")
        return [name for name, _ in culprits]

    def _failure(self, value: object, values: Iterable[str]) -> Exception | None:
        try:
            self._shipper(values).dump(value)
        except Exception as exc:
            return exc
        return None


def _may_evaluate(value: object) -> bool:
    """Return whether ``value`` may evaluate a formula when it is restored: it comes last then."""
    return type(value).__module__.partition(".")[0] in FORMULA_LIBRARIES


@dataclass(frozen=True, slots=True)
class _Order:
    """In which order names travel: code, data, definitions as source, data that needs them."""

    code: dict[str, Any]
    early: list[str]
    definitions: list[DefinitionSource] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    defined: dict[str, Any] = field(default_factory=dict)
