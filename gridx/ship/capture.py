"""Takes what a cell needs out of a notebook: a payload, blobs, and the files of its modules."""

from __future__ import annotations

import ast
import sys
import types
import warnings as warning_filters
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import cloudpickle

from ..resources import format_bytes
from .analysis import Analysis, analyze, transform
from .closure import Closure, ClosureBuilder
from .declared_limits import limits_of
from .formulas import FORMULA_LIBRARIES, names_in_pickles
from .named_files import NamedFiles
from .opcodes import attribute_names
from .packing import CODE, Packing
from .refusal import NameWithheld, UnknownNeed, Unpicklable
from .sharing import names_that_share
from .user_modules import UserModules, collect, is_user_module
from .withheld import HISTORY_NAMES

if TYPE_CHECKING:
    from ..blobs import Blob
    from ..schemas import BlobRef, FileSpec
    from .chunk_digests import ChunkDigests
    from .fingerprint import Fingerprint
    from .source_code import SourceDefinitions

SOFT_LIMIT_BYTES: Final = 65_536
_INLINE_FILES_BYTES: Final = 256 * 1024
_INLINE_FILE_BYTES: Final = 4 * 1024
_BY_A_VALUE: Final = "read by a function inside a value"
_SOFT: Final = "mentioned in a string"
_PYTHON: Final = f"{sys.version_info[0]}.{sys.version_info[1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """What travels with a cell, and what was noticed on the way."""

    payload: bytes
    """For ``restore``; empty when a report found a refusal."""
    blobs: tuple[Blob, ...] = ()
    """Large parts of the payload and of the files, as views of the notebook's own memory: put
    them before the user's code runs on, or send ``detached()``."""
    files: tuple[FileSpec, ...] = ()
    """Modules of the user, and files that magics of the cell run."""
    names: dict[str, int]
    """What travels, with its approximate bytes."""
    why: dict[str, str]
    """Why each of them travels, and each of ``unchanged`` is needed, in words."""
    unchanged: frozenset[str] = frozenset()
    """Needed, and in the session's sandbox already."""
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)
    """Of a session: what its sandbox has once it has this; merge it into what is known."""
    left_out: dict[str, int]
    """Names only mentioned in strings and too big to be sent unasked, with their bytes."""
    left_out_why: dict[str, str] = field(default_factory=dict)
    """Every name that was looked at and stays, with the reason in words."""
    missing: frozenset[str]
    """Read by the cell, but neither in the notebook nor builtins."""
    withheld: frozenset[str]
    """Secrets, which travel only with ``needs``."""
    unpicklable: dict[str, Unpicklable]
    may_be_asked_for: frozenset[str] = frozenset()
    """Names that strings of the values mention (formulas): when restoring one of the values
    fails for the lack of such a name, it may be sent without asking. No other may: whoever runs
    the cell could name any variable to get it."""
    modules: frozenset[str]
    """Modules that the payload imports where it is restored."""
    needed_by: dict[str, str] = field(default_factory=dict)
    """Those of them that a variable's value needs, with the first such variable."""
    imports: frozenset[str]
    """Modules that the cell surely imports itself, or by the user's modules."""
    optional_imports: frozenset[str] = frozenset()
    """Modules that it, or a function that it can reach, imports perhaps."""
    user_modules: frozenset[str] = frozenset()
    """Top-level names of the modules in ``files``."""
    dynamic: frozenset[str]
    named_files: frozenset[str]
    """Files that magics of the cell run."""
    written_files: frozenset[str] = frozenset()
    """Files that magics of the cell write, where it runs."""
    writes: frozenset[str]
    deletes: frozenset[str]
    expected: frozenset[str]
    """The only names that the cell's result may touch."""
    inputs: frozenset[str]
    """Captured names that hold data rather than code."""
    warnings: tuple[str, ...]
    limits: tuple[str, ...] = ()
    """Declared limits that concern this cell, for those who ask (docs/limits.md)."""
    python: str
    """Major and minor version, which the container must share."""
    has_code: bool = True
    """Whether the payload holds code objects, which only that version can run."""

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

    def sent(self) -> Captured:
        """Return the same without the bytes, which need no memory once they were sent."""
        return replace(self, payload=b"", blobs=(), files=())

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
    known: Mapping[str, Fingerprint] | None = None,
    remote_names: Collection[str] = (),
    target_python: str | None = None,
    sources: Iterable[str] = (),
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
        known: of a session, what its sandbox has: empty for its first cell; None: no session.
        remote_names: names that only the session's sandbox has.
        target_python: minor version of the container, "3.12"; another one than this gets source
            instead of code.
        sources: the cells that ran here, in order: where that source is.

    Raises:
        SyntaxError: the cell is not Python.
        UnknownNeed: a name of ``needs`` is not in ``namespace``.
        NameWithheld: the cell needs a secret that ``needs`` does not name.
        CaptureError: a variable or module that the cell needs cannot travel.
    """
    needs, without = frozenset(needs), frozenset(without)
    unknown = sorted(needs - namespace.keys() - set(remote_names))
    if unknown and not report_only:
        raise UnknownNeed(f"There is no variable {unknown[0]!r} in the notebook.", name=unknown[0])
    analysis = analyze(source)
    named = NamedFiles(analysis)
    builder = ClosureBuilder(
        namespace, needs=needs, without=without, soft_limit_bytes=soft_limit_bytes
    )
    closure = builder.build(analysis, everything=everything)
    if closure.needs_withheld and not report_only:
        raise _withheld(closure)
    values = {name: namespace[name] for name in sorted(closure.why)}
    if analysis.out_values and "Out" in namespace:
        # One value of the history travels, never the whole of it.
        history = namespace["Out"]
        values["Out"] = {n: history[n] for n in sorted(analysis.out_values & history.keys())}
        closure.why["Out"] = "read by the cell"
    sharing = names_that_share(
        values,
        namespace,
        may_send=closure.may_send,
        rebound=closure.writes | closure.deletes,
    )
    for name, other in sharing.items():
        values[name] = namespace[name]
        closure.why[name] = f"shares an object with {other}"
    with_source = target_python not in (None, _PYTHON)
    with _files_win():
        packing = Packing(
            namespace,
            builder,
            needs=needs,
            without=without,
            present={*closure.why, *remote_names} if known is not None else (),
            submodules=_submodules(source, values, closure),
            digests=_digests() if with_blobs else None,
            definitions=_definitions(namespace, sources) if with_source else None,
        )
        session = _Session(namespace, packing, known, values)
        packing.run(session.to_send)
    if packing.unpicklable and not report_only:
        name, reason = next(iter(packing.unpicklable.items()))
        raise reason.error(name)
    modules = collect(
        {*packing.modules, *analysis.imports, *analysis.optional_imports, *closure.imports},
        surely={*packing.modules, *analysis.imports},
    )
    captured = _captured(
        source,
        analysis,
        closure,
        packing,
        modules,
        session,
        remote_names=frozenset(remote_names),
        without=without,
        target_python=target_python or _PYTHON,
    )
    return _with_files(captured, modules, named, with_blobs=with_blobs)


def _captured(
    source: str,
    analysis: Analysis,
    closure: Closure,
    packing: Packing,
    modules: UserModules,
    session: _Session,
    *,
    remote_names: frozenset[str],
    without: frozenset[str],
    target_python: str,
) -> Captured:
    held = {**session.unchanged, **packing.sent}
    inputs = frozenset(name for name, value in held.items() if not isinstance(value, CODE))
    inputs -= HISTORY_NAMES
    imports = frozenset(analysis.imports | modules.sure_imports)
    optional = analysis.optional_imports | closure.imports | modules.imports
    return Captured(
        payload=packing.packed.head,
        blobs=packing.packed.blobs,
        names=packing.sizes,
        why={name: closure.why.get(name) or session.why.get(name) or _BY_A_VALUE for name in held},
        unchanged=frozenset(session.unchanged),
        fingerprints={n: f for n, f in session.fingerprints.items() if n in held},
        left_out=closure.left_out,
        left_out_why=_why_left_out(closure, packing, without & analysis.reads),
        missing=frozenset(closure.missing) - remote_names,
        withheld=frozenset(closure.withheld) | packing.withheld,
        unpicklable=packing.unpicklable,
        may_be_asked_for=_may_be_asked_for(packing, closure),
        modules=frozenset(packing.modules),
        needed_by=packing.needed_by,
        imports=imports,
        optional_imports=frozenset(optional - imports),
        user_modules=modules.roots,
        dynamic=frozenset(analysis.dynamic),
        named_files=frozenset(analysis.files),
        written_files=frozenset(analysis.written_files),
        writes=frozenset(closure.writes),
        deletes=frozenset(closure.deletes),
        expected=frozenset(closure.writes) | closure.deletes | inputs,
        inputs=inputs,
        warnings=(*packing.warnings, *modules.notes),
        limits=tuple(limits_of(source, held)),
        python=target_python,
        has_code=target_python == _PYTHON,
    )


class _Session:
    """What of a cell's values a session's sandbox lacks; all of them where there is no session."""

    def __init__(
        self,
        namespace: dict[str, Any],
        packing: Packing,
        known: Mapping[str, Fingerprint] | None,
        values: dict[str, Any],
    ) -> None:
        self.to_send = values
        self.unchanged: dict[str, Any] = {}
        self.fingerprints: dict[str, Fingerprint] = {}
        self.why: dict[str, str] = {}
        if known is None:
            return
        from .fingerprint import fingerprint, to_send

        def look_at(name: str, value: object) -> None:
            made = fingerprint(packing.fresh_shipper(values), namespace, value)
            if made is not None:
                self.fingerprints[name] = made

        for name, value in values.items():
            look_at(name, value)
        moved = to_send(values, self.fingerprints, known, namespace.__contains__)
        for name in sorted(moved - values.keys()):
            look_at(name, namespace[name])
            self.why[name] = "shares an object with a name that has changed"
        self.to_send = {n: values[n] if n in values else namespace[n] for n in sorted(moved)}
        self.unchanged = {n: value for n, value in values.items() if n not in moved}


def _digests() -> ChunkDigests:
    # Not at the head: a kernel that never sends anything need not load the hash functions.
    from .chunk_digests import CHUNK_DIGESTS

    return CHUNK_DIGESTS


def _definitions(namespace: dict[str, Any], cells: Iterable[str]) -> SourceDefinitions:
    from .source_code import SourceDefinitions

    return SourceDefinitions(namespace, cells)


@contextmanager
def _files_win() -> Iterator[None]:
    """Within, modules that travel as files are not pickled by value, whoever asked for it.

    A class of both kinds would be two classes there.
    """
    names = [n for n in cloudpickle.list_registry_pickle_by_value() if is_user_module(n)]
    modules = [sys.modules[name] for name in names if name in sys.modules]
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.register_pickle_by_value(module)


def _withheld(closure: Closure) -> NameWithheld:
    name = min(closure.needs_withheld)
    return NameWithheld(
        f"Variable {name!r} looks like a secret and is {closure.withheld[name]}; "
        f"it is not sent unasked.",
        hint=f"Send it with --needs {name}; whoever owns the worker can read it.",
        name=name,
    )


def _why_left_out(closure: Closure, packing: Packing, without: Iterable[str]) -> dict[str, str]:
    secrets = closure.withheld.keys() | packing.withheld
    return {
        **{n: f"{format_bytes(size)}, and only {_SOFT}" for n, size in closure.left_out.items()},
        **dict.fromkeys(secrets, "looks like a secret"),
        **packing.stays,
        **dict.fromkeys(without, "left out by --without"),
        **{n: reason.sentence for n, reason in packing.unpicklable.items()},
    }


def _may_be_asked_for(packing: Packing, closure: Closure) -> frozenset[str]:
    roots = {name.partition(".")[0] for name in packing.modules}
    if not roots & FORMULA_LIBRARIES:
        return frozenset()
    mentioned = names_in_pickles(packing.data)
    return frozenset(
        name for name in mentioned if name not in packing.sent and closure.may_send(name)
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


def _with_files(
    captured: Captured, modules: UserModules, named: NamedFiles, *, with_blobs: bool
) -> Captured:
    found: list[tuple[str, Literal["work", "module"], bytes]]
    found = [(file.path, "module", file.data) for file in modules.files]
    found += [(file.path, "work", file.data) for file in named.files]
    if not found and not named.notes:
        return captured
    from ..schemas import FileSpec

    inline = not with_blobs or sum(len(data) for _, _, data in found) <= _INLINE_FILES_BYTES
    blobs = {blob.ref.digest: blob for blob in captured.blobs}
    files = []
    for path, kind, data in found:
        if inline or len(data) <= _INLINE_FILE_BYTES:
            files.append(FileSpec(path=path, kind=kind, data=data))
            continue
        parts = _digests().start(memoryview(data)).result()
        blobs |= {blob.ref.digest: blob for blob in parts}
        files.append(FileSpec(path=path, kind=kind, blobs=tuple(blob.ref for blob in parts)))
    return replace(
        captured,
        files=tuple(files),
        blobs=tuple(blobs.values()),
        warnings=(*captured.warnings, *named.notes),
    )
