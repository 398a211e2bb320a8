"""Takes what a cell needs out of a notebook, as one string of bytes."""

from __future__ import annotations

import ast
import sys
import threading
import types
import warnings as warning_filters
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..errors import CaptureError
from .analysis import Analysis, analyze, transform
from .closure import Closure, ClosureBuilder
from .local_modules import by_value
from .opcodes import attribute_names
from .payload import Packed
from .pickler import Shipper
from .refusal import NameWithheld, UnknownNeed, Unpicklable, explain
from .withheld import HISTORY_NAMES, is_secret

if TYPE_CHECKING:
    from ..blobs import Blob
    from ..schemas import BlobRef
    from .chunk_digests import ChunkDigests

_Result = TypeVar("_Result")

SOFT_LIMIT_BYTES: Final = 65_536
_DEEP_STACK_BYTES: Final = 512 << 20
_DEEP_RECURSION: Final = 60_000
# A value is shipped with the code when it is code: libraries that evaluate names while they
# are unpickled then find the functions.
_CODE: Final = (types.FunctionType, type, types.ModuleType)


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """What travels with a cell, and what was noticed on the way."""

    payload: bytes
    """For ``restore``; empty when a report found a refusal."""
    blobs: tuple[Blob, ...] = ()
    """Large parts of the payload, as views of the notebook's own memory: put them before the
    user's code runs on, or send ``detached()``."""
    names: dict[str, int]
    """What travels, with its approximate bytes."""
    why: dict[str, str]
    left_out: dict[str, int]
    """Names only mentioned in strings and too big to be sent unasked, with their bytes."""
    missing: frozenset[str]
    """Read by the cell, but neither in the notebook nor builtins."""
    withheld: frozenset[str]
    """Secrets, which travel only with ``needs``."""
    unpicklable: dict[str, Unpicklable]
    modules: frozenset[str]
    """Modules that the payload imports where it is restored."""
    imports: frozenset[str]
    """Modules that the cell itself imports."""
    dynamic: frozenset[str]
    files: frozenset[str]
    writes: frozenset[str]
    deletes: frozenset[str]
    expected: frozenset[str]
    """The only names that the cell's result may touch."""
    inputs: frozenset[str]
    """Captured names that hold data rather than code."""
    warnings: tuple[str, ...]
    python: str
    """Major and minor version, which the container must share."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the payload with its blobs."""
        return len(self.payload) + sum(blob.ref.size for blob in self.blobs)

    @property
    def blob_refs(self) -> tuple[BlobRef, ...]:
        """Names of all blobs that the job needs."""
        return tuple(blob.ref for blob in self.blobs)

    def detached(self) -> Captured:
        """Return the same with blobs that later changes in the notebook do not reach."""
        from ..blobs import Blob

        copies = [Blob(ref=b.ref, data=memoryview(bytes(b.data))) for b in self.blobs]
        return replace(self, blobs=tuple(copies))

    def largest(self, count: int = 3) -> list[tuple[str, int]]:
        """Return the ``count`` largest names with their bytes, the largest first."""
        return sorted(self.names.items(), key=lambda item: -item[1])[:count]


def capture(
    source: str,
    namespace: dict[str, Any],
    *,
    needs: Iterable[str] = (),
    without: Iterable[str] = (),
    everything: bool = False,
    soft_limit_bytes: int = SOFT_LIMIT_BYTES,
    report_only: bool = False,
    with_blobs: bool = False,
) -> Captured:
    """Return what the cell ``source`` needs of ``namespace``, ready to be sent.

    Args:
        source: the body of the cell.
        namespace: the notebook's own dict, not a copy: functions are known by it.
        needs: names to send although nothing shows that they are read, secrets included.
        without: names not to send although they are read.
        everything: send every name that can travel.
        soft_limit_bytes: names that are only mentioned in strings travel up to this size.
        report_only: put refusals into the result instead of raising them.
        with_blobs: large parts travel beside the payload; otherwise it holds everything.

    Raises:
        SyntaxError: the cell is not Python.
        UnknownNeed: a name of ``needs`` is not in ``namespace``.
        NameWithheld: the cell needs a secret that ``needs`` does not name.
        CaptureError: a variable that the cell needs cannot be pickled.
    """
    needs = frozenset(needs)
    unknown = sorted(needs - namespace.keys())
    if unknown and not report_only:
        raise UnknownNeed(f"There is no variable {unknown[0]!r} in the notebook.", name=unknown[0])
    analysis = analyze(source)
    closure = ClosureBuilder(
        namespace, needs=needs, without=without, soft_limit_bytes=soft_limit_bytes
    ).build(analysis, everything=everything)
    if closure.needs_withheld and not report_only:
        raise _withheld(closure)
    values = {name: namespace[name] for name in sorted(closure.why)}
    if analysis.out_values and "Out" in namespace:
        # One value of the history travels, never the whole of it.
        history = namespace["Out"]
        values["Out"] = {n: history[n] for n in sorted(analysis.out_values & history.keys())}
        closure.why["Out"] = "read by the cell"
    with by_value() as local_modules:
        packing = _Packing(
            values,
            namespace,
            closure,
            needs=needs,
            without=frozenset(without),
            submodules=_submodules(source, values, closure),
            digests=_digests() if with_blobs else None,
        )
        packing.run()
        notes = local_modules.notes(packing.modules)
    if packing.unpicklable and not report_only:
        name, reason = next(iter(packing.unpicklable.items()))
        raise reason.error(name)
    return _captured(analysis, closure, packing, notes)


def _captured(
    analysis: Analysis, closure: Closure, packing: _Packing, notes: tuple[str, ...]
) -> Captured:
    inputs = frozenset(name for name, value in packing.sent.items() if not isinstance(value, _CODE))
    inputs -= HISTORY_NAMES
    return Captured(
        payload=packing.packed.head,
        blobs=packing.packed.blobs,
        names=packing.sizes,
        why={name: why for name, why in closure.why.items() if name in packing.sent},
        left_out=closure.left_out,
        missing=frozenset(closure.missing),
        withheld=frozenset(closure.withheld) | packing.withheld,
        unpicklable=packing.unpicklable,
        modules=frozenset(packing.modules),
        imports=frozenset(analysis.imports),
        dynamic=frozenset(analysis.dynamic),
        files=frozenset(analysis.files),
        writes=frozenset(closure.writes),
        deletes=frozenset(closure.deletes),
        expected=frozenset(closure.writes) | closure.deletes | inputs,
        inputs=inputs,
        warnings=(*packing.warnings, *notes),
        python=f"{sys.version_info[0]}.{sys.version_info[1]}",
    )


def _digests() -> ChunkDigests:
    # Not at the head: a kernel that never sends anything need not load the hash functions.
    from .chunk_digests import CHUNK_DIGESTS

    return CHUNK_DIGESTS


def _withheld(closure: Closure) -> NameWithheld:
    name = min(closure.needs_withheld)
    return NameWithheld(
        f"Variable {name!r} looks like a secret and is {closure.withheld[name]}; "
        f"it is not sent unasked.",
        hint=f"Send it with --needs {name}; whoever owns the worker can read it.",
        name=name,
    )


def _submodules(source: str, values: dict[str, Any], closure: Closure) -> list[str]:
    """Return loaded submodules ``a.b.c`` of sent modules whose every part is mentioned.

    ``import a.b.c`` binds ``a`` alone; the other side must import the rest of it too.
    """
    modules = [value.__name__ for value in values.values() if isinstance(value, types.ModuleType)]
    if not modules:
        return []
    with warning_filters.catch_warnings():
        warning_filters.simplefilter("ignore")
        cell = compile(
            transform(source),
            "<cell>",
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )
    mentioned = set(attribute_names(cell))
    for function in closure.functions:
        mentioned |= attribute_names(function.__code__)
    found = set()
    for module in modules:
        prefix = f"{module}."
        for loaded in list(sys.modules):
            if loaded.startswith(prefix) and set(loaded[len(prefix) :].split(".")) <= mentioned:
                found.add(loaded)
    return sorted(found)


class _Packing:
    """Pickles the values of one capture; drops what cannot be pickled and starts again."""

    def __init__(
        self,
        values: dict[str, Any],
        namespace: dict[str, Any],
        closure: Closure,
        *,
        needs: frozenset[str],
        without: frozenset[str],
        submodules: list[str],
        digests: ChunkDigests | None,
    ) -> None:
        self._values = values
        self._namespace = namespace
        self._closure = closure
        self._needs = needs
        self._without = without
        self._submodules = submodules
        self._digests = digests
        self._may_take_environ = any(
            is_secret("", namespace[name]) for name in needs if name in namespace
        )
        self.withheld: set[str] = set()
        self.unpicklable: dict[str, Unpicklable] = {}
        self.warnings: list[str] = []
        self.modules: set[str] = set()
        self.sent: dict[str, Any] = {}
        self.sizes: dict[str, int] = {}
        self.packed = Packed(b"")

    def run(self) -> None:
        """Pickle all; afterwards ``packed`` or ``unpicklable`` is filled."""
        todo = dict(self._values)
        while True:
            failed = self._try(todo)
            if failed is None:
                break
            for name in failed:
                del todo[name]
        if self.unpicklable:
            self.packed = Packed(b"")

    def _try(self, values: dict[str, Any]) -> list[str] | None:
        """Pickle ``values``; return the names that cannot be, or None when all could."""
        shipper = self._shipper(values, self._digests)
        sizes: dict[str, int] = {}
        current: list[str] = []

        def dump() -> None:
            code = {n: v for n, v in values.items() if isinstance(v, _CODE)}
            data = [n for n in values if n not in code]
            current[:] = list(code)
            shipper.dump((code, self._submodules, data))
            sizes.update(dict.fromkeys(code, 0))
            for name in data:
                current[:] = [name]
                before = shipper.size_bytes
                shipper.dump(values[name])
                sizes[name] = shipper.size_bytes - before

        try:
            try:
                dump()
            except RecursionError:
                raise
            except Exception as exc:
                if "recursion" not in str(exc):
                    raise
                raise RecursionError from exc
        except RecursionError:
            shipper = self._shipper(values, self._digests)
            try:
                _with_deep_stack(dump)
            except Exception as exc:
                return self._blame(list(current), values, exc)
        except Exception as exc:
            return self._blame(list(current), values, exc)
        self._finish(shipper, values, sizes)
        return None

    def _finish(self, shipper: Shipper, values: dict[str, Any], sizes: dict[str, int]) -> None:
        self.packed = shipper.packed()
        self.modules = shipper.modules | set(self._submodules)
        self.warnings += shipper.warnings
        self.sent = {**shipper.carried, **values}
        self.sizes = {**dict.fromkeys(shipper.carried, 0), **sizes}

    def _shipper(self, values: Iterable[str], digests: ChunkDigests | None = None) -> Shipper:
        return Shipper(
            self._namespace,
            shipped=frozenset(values),
            may_take=self._may_take,
            may_take_environ=self._may_take_environ,
            digests=digests,
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
            if name in self._closure.hard:
                self.unpicklable[name] = explained
            else:
                self.warnings.append(f"{name} stays here: {explained.sentence}")
        return [name for name, _ in culprits]

    def _failure(self, value: object, values: Iterable[str]) -> Exception | None:
        try:
            self._shipper(values).dump(value)
        except Exception as exc:
            return exc
        return None


def _with_deep_stack(action: Callable[[], _Result]) -> _Result:
    """Run ``action`` in a thread with room for deep recursion."""
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as exc:
            errors.append(exc)

    stack_bytes = threading.stack_size(_DEEP_STACK_BYTES)
    recursion = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(max(recursion, _DEEP_RECURSION))
        thread = threading.Thread(target=run, name="gridx-deep-pickle", daemon=True)
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(recursion)
        threading.stack_size(stack_bytes)
    if errors:
        raise errors[0]
    return results[0]
