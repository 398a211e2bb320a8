"""Brings a result home: decodes all of it, then applies it to the notebook in one step."""

from __future__ import annotations

import builtins
import re
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from ..ship import replay
from ..ship.analysis import analyze
from . import code_state, tags
from .code_values import codes_of_cell
from .decode import Decoder
from .failures import CodecError, LibraryMissing
from .framing import split
from .limits import Limits
from .opaque import Opaque
from .user_values import user_classes

_BUILTINS: Final = frozenset(dir(builtins))
_CODE: Final = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
_MISSING: Final = object()
_MAX_NAMES: Final = 10_000
# No drive, no backslash, nothing that a terminal or a shell acts on; dots are looked at below.
_PATH_PART: Final = re.compile(
    r"[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069/\\\\:*?\"<>|]{1,255}\Z"
)
_MAX_PATH_CHARS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What a result did to the notebook, and what it was not allowed to do."""

    bound: tuple[str, ...]
    """Names that now stand for a new value."""
    deleted: tuple[str, ...]
    updated_in_place: tuple[str, ...]
    """Names whose own object was changed, so that other names for it see the change."""
    replayed: tuple[str, ...]
    """Names defined again from the cell's own source."""
    opaque: dict[str, Opaque]
    """Those of ``bound`` whose values stay closed."""
    refused: dict[str, str]
    """Name to the sentence why it was left as it was."""
    unexpected: tuple[str, ...]
    """Names that the worker bound although nothing in the cell says so; they stay there."""
    values: dict[str, Any]
    """Everything that was decoded, the refused values too."""
    warnings: tuple[str, ...]
    files: tuple[tuple[str, memoryview], ...] = ()
    """Files that came home: a relative path below the job's folder, and the contents."""
    last: Any = None
    """The value of the cell's last expression; None when there is none or it stayed there."""
    held: tuple[str, ...] = ()
    """What functions and classes of the notebook hold anew: ``Animal.count``."""


def apply_result(
    data: bytes | bytearray | memoryview,
    namespace: dict[str, Any],
    *,
    expected: Collection[str],
    cell_source: str,
    source: str = "",
    out: Collection[str] | None = None,
    at_submit: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    cell_file: str | None = None,
    line_offset: int = 0,
) -> Applied:
    """Apply the result ``data`` of a cell to the notebook's ``namespace``.

    Args:
        data: what ``result_pieces`` made, or what somebody hostile made. A bytearray becomes the
            memory of large arrays, and is not the caller's any more; bytes are copied.
        namespace: the notebook's own dict.
        expected: the only names that may be touched.
        cell_source: the body of the cell; its definitions are made again from it.
        source: which worker and job it comes from; stands in every Opaque.
        out: bring home only these names; None brings all.
        at_submit: the namespace when the cell was sent, for cells in the background: what the
            user has rebound since stays.
        limits: bounds for decoding.
        cell_file: file name under which definitions are compiled; one of our own if None.
        line_offset: lines of the visible cell above its body.

    Raises:
        CodecError: the message is malformed; the notebook is untouched.
    """
    message = _Message.read(data, limits or Limits())
    cell = replay.statements(cell_source)
    homecoming = _Homecoming(
        message,
        namespace,
        frozenset(expected),
        source,
        out,
        at_submit,
        cell_source,
        partial(codes_of_cell, cell_source, cell_file or "<gridx cell>", line_offset),
    )
    first = homecoming.decode()
    wanted = cell.chosen(homecoming.allowed_definitions(cell))
    if not wanted:
        return homecoming.apply(first, _Replayed())
    undo = dict(namespace)
    try:
        # Definitions may refer to values of the cell, and values may be of classes of the cell:
        # so values first, then definitions, then the values again where a class was unknown.
        homecoming.bind_plain(first)
        replayed, again = _replay(
            wanted, namespace, cell, cell_source, cell_file=cell_file, line_offset=line_offset
        )
        if first.unresolved:
            homecoming.restore_plain(undo)
            first = homecoming.decode()
        if again:
            # What failed may need a value whose class has only been defined now.
            homecoming.bind_plain(first)
            more, failed = _replay(
                again, namespace, cell, cell_source, cell_file=cell_file, line_offset=line_offset
            )
            homecoming.restore_plain(undo)
            replayed = _Replayed(
                names=replayed.names + more.names,
                failed=[name for part in failed for name in part.names],
                notes=replayed.notes + more.notes,
                reasons=more.reasons,
            )
        return homecoming.apply(first, replayed)
    except BaseException:
        for name in [name for name in namespace if name not in undo]:
            del namespace[name]
        namespace.update(undo)
        raise


def _replay(
    wanted: list[replay.Definition],
    namespace: dict[str, Any],
    cell: replay.CellDefinitions,
    cell_source: str,
    *,
    cell_file: str | None,
    line_offset: int,
) -> tuple[_Replayed, list[replay.Definition]]:
    """Make the definitions ``wanted`` again; return what was made, and what failed."""
    replayed = _Replayed()
    failed = []
    for part in wanted:
        try:
            replay.run(
                part,
                namespace,
                flags=cell.flags,
                cell_source=cell_source,
                cell_file=cell_file,
                line_offset=line_offset,
            )
        except Exception as exc:
            names = ", ".join(part.names)
            failed.append(part)
            replayed.reasons.append(
                f"{names} could not be defined here ({type(exc).__name__}: {exc}); "
                f"it exists in the cell's container alone."
            )
            continue
        replayed.names += part.names
        if part.later:
            replayed.notes.append(
                f"{', '.join(part.names)} was defined here with the last value of "
                f"{', '.join(part.later)}, which the cell binds again after it."
            )
    return replayed, failed


@dataclass(frozen=True, slots=True)
class _Message:
    """A result, checked in form but not yet decoded."""

    entries: list[tuple[str, int, Any]]
    updates: dict[int, str]
    deleted: list[str]
    defined: dict[str, int]
    unexpected: list[str]
    files: list[tuple[str, Any]]
    last: tuple[int, Any] | None
    held: list[tuple[str, code_state.Key, int, Any]]
    blobs: list[memoryview]
    limits: Limits

    @classmethod
    def read(cls, data: bytes | bytearray | memoryview, limits: Limits) -> _Message:
        root, blobs = split(tags.RESULT_MAGIC, data, limits)
        match root:
            case [
                list() as entries,
                list() as updates,
                list() as deleted,
                list() as defined,
                list() as unexpected,
                list() as files,
                (list() | None) as last,
                list() as held,
            ]:
                return cls(
                    [(_name(n), _number(at), node) for n, at, node in map(_triple, entries)],
                    {_number(number): _name(name) for number, name in map(_pair, updates)},
                    [_name(name) for name in deleted],
                    {_name(name): _number(line) for name, line in map(_pair, defined)},
                    [_name(name) for name in unexpected[:_MAX_NAMES]],
                    _files(files),
                    None if last is None else _numbered(last),
                    [_held(item) for item in held[:_MAX_NAMES]],
                    blobs,
                    limits,
                )
            case _:
                raise CodecError("The result is malformed (form).")


def _triple(item: Any) -> tuple[Any, Any, Any]:
    if type(item) is not list or len(item) != 3:
        raise CodecError("The result is malformed (entry).")
    return item[0], item[1], item[2]


def _pair(item: Any) -> tuple[Any, Any]:
    if type(item) is not list or len(item) != 2:
        raise CodecError("The result is malformed (pair).")
    return item[0], item[1]


def _numbered(item: Any) -> tuple[int, Any]:
    number, node = _pair(item)
    return _number(number), node


def _held(item: Any) -> tuple[str, code_state.Key, int, Any]:
    if type(item) is not list or len(item) != 4 or type(item[1]) not in (int, str):
        raise CodecError("The result is malformed (what code holds).")
    return _name(item[0]), item[1], _number(item[2]), item[3]


def _files(items: list[Any]) -> list[tuple[str, Any]]:
    files = [(_path(path), node) for path, node in map(_pair, items)]
    if len({path.casefold() for path, _ in files}) != len(files):
        raise CodecError("The result is malformed (one file twice).")
    return files


def _path(item: Any) -> str:
    """Return a path that stays in the folder it is taken relative to, on every system."""
    parts = item.split("/") if type(item) is str and len(item) <= _MAX_PATH_CHARS else [""]
    if not all(_PATH_PART.match(part) and part == part.strip().rstrip(".") for part in parts):
        raise CodecError("The result is malformed (path of a file).")
    return str(item)


def _name(item: Any) -> str:
    if type(item) is not str or not item.isidentifier() or len(item) > 1_000:
        raise CodecError("The result is malformed (name).")
    return item


def _number(item: Any) -> int:
    if type(item) is not int or not 0 <= item < 1 << 40:
        raise CodecError("The result is malformed (number).")
    return item


@dataclass(slots=True)
class _Decoded:
    values: dict[str, Any] = field(default_factory=dict)
    updates: list[tuple[Any, Any]] = field(default_factory=list)
    unresolved: bool = False
    lost: list[str] = field(default_factory=list)
    """A sentence for each entry whose library is not installed here."""
    notes: list[str] = field(default_factory=list)
    last: Any = None
    held: list[tuple[str, code_state.Key, Any]] = field(default_factory=list)
    files: list[tuple[str, memoryview]] = field(default_factory=list)


@dataclass(slots=True)
class _Replayed:
    names: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    """A sentence for each definition that failed."""


class _Homecoming:
    """One result on its way into one notebook."""

    def __init__(
        self,
        message: _Message,
        namespace: dict[str, Any],
        expected: frozenset[str],
        source: str,
        out: Collection[str] | None,
        at_submit: Mapping[str, Any] | None,
        cell_source: str,
        cell_codes: Callable[[], list[types.CodeType]],
    ) -> None:
        self._message = message
        self._cell_source = cell_source
        self._cell_codes = cell_codes
        self._namespace = namespace
        self._expected = expected
        self._source = source
        self._out = None if out is None else frozenset(out)
        self._before = dict(namespace)
        self._at_submit = at_submit
        self._refused: dict[str, str] = {}
        self._writes: frozenset[str] | None = None

    def allowed_definitions(self, cell: replay.CellDefinitions) -> dict[str, int]:
        """Return the names to define again, with the lines that the worker tells."""
        return {
            name: line
            for name, line in self._message.defined.items()
            if self._is_wanted(name)
            and not self._is_rebound_here(name)
            # A name that the cell does not mention can come from a star import alone.
            and (name in self._expected or name not in cell.names)
        }

    def decode(self) -> _Decoded:
        """Decode every entry; the notebook is not touched.

        Raises:
            CodecError: an entry is malformed.
        """
        message, decoded = self._message, _Decoded()
        updated = {
            number: self._namespace[name]
            for number, name in message.updates.items()
            if name in self._namespace and not self._reason(name, _MISSING)
        }
        decoder = Decoder(
            message.blobs,
            limits=message.limits,
            classes=user_classes(self._namespace),
            source=self._source,
            inputs=self._inputs(),
            in_place=updated,
            namespace=self._namespace,
            cell_codes=self._cell_codes,
        )
        for name, start, node in message.entries:
            decoder.begin_at(start, after_loss=bool(decoded.lost))
            closed = decoder.opaque_count
            try:
                decoded.values[name] = decoder.guarded(node)
                closed = decoder.opaque_count - closed
                if closed and not isinstance(decoded.values[name], Opaque):
                    decoded.notes.append(
                        f"{name} holds {closed} value{'s' * (closed > 1)} that came home unopened."
                    )
            except LibraryMissing as exc:
                decoded.values[name] = decoder.missing(exc)
                decoded.lost.append(f"{name} needs {exc.library}, which is not installed here.")
        for name, key, start, node in message.held:
            decoder.begin_at(start, after_loss=bool(decoded.lost))
            closed = decoder.opaque_count
            try:
                value = decoder.guarded(node)
            except LibraryMissing:
                continue
            if decoder.opaque_count == closed and not isinstance(value, Opaque):
                decoded.held.append((name, key, value))
        if message.last is not None:
            start, node = message.last
            decoder.begin_at(start, after_loss=bool(decoded.lost))
            try:
                decoded.last = decoder.guarded(node)
            except LibraryMissing:
                pass
        decoded.files = [(path, decoder.raw(node)) for path, node in message.files]
        decoded.updates = decoder.updates
        decoded.unresolved = bool(decoder.unresolved)
        return decoded

    def bind_plain(self, decoded: _Decoded) -> None:
        """Bind new values, so that definitions of the cell find what they refer to."""
        for name, value in decoded.values.items():
            if not self._reason(name, value) and not isinstance(value, Opaque):
                self._namespace[name] = value

    def restore_plain(self, before: Mapping[str, Any]) -> None:
        """Take back what ``bind_plain`` bound."""
        for name in self._message.entries:
            if name[0] in before:
                self._namespace[name[0]] = before[name[0]]
            else:
                self._namespace.pop(name[0], None)

    def apply(self, decoded: _Decoded, replayed: _Replayed) -> Applied:
        """Apply what was decoded, and tell what was done."""
        warnings = [*decoded.lost, *decoded.notes, *replayed.notes, *replayed.reasons]
        bound: list[str] = []
        in_place: list[str] = []
        opaque: dict[str, Opaque] = {}
        for old, new in decoded.updates:
            _write_into(old, new)
        for name, value in decoded.values.items():
            if self._out is not None and name not in self._out:
                continue
            reason = self._reason(name, value)
            if reason:
                self._refused[name] = reason
                continue
            old = self._before.get(name, _MISSING)
            if value is old:
                if any(value is changed for changed, _ in decoded.updates):
                    in_place.append(name)
                self._namespace[name] = value
                continue
            warnings += self._left_behind(name, old)
            if name in _BUILTINS and old is _MISSING:
                warnings.append(f"{name} is this cell's value now, no longer the builtin.")
            self._namespace[name] = value
            bound.append(name)
            if isinstance(value, Opaque):
                opaque[name] = value
        held = self._hold(decoded.held)
        deleted = self._delete()
        warnings += self._undefined({*replayed.names, *replayed.failed})
        return Applied(
            bound=tuple(bound),
            deleted=tuple(deleted),
            updated_in_place=tuple(in_place),
            replayed=tuple(name for name in dict.fromkeys(replayed.names) if name != "*"),
            opaque=opaque,
            refused=self._refused,
            unexpected=tuple(self._message.unexpected),
            values=decoded.values,
            warnings=tuple(warnings),
            files=tuple(decoded.files),
            last=decoded.last,
            held=tuple(held),
        )

    def _hold(self, held: list[tuple[str, code_state.Key, Any]]) -> list[str]:
        """Change what the user's functions and classes hold, those that the cell can reach."""
        if not held:
            return []
        reached = code_state.reached_from(self._cell_source, self._namespace)
        changed = []
        for name, key, value in held:
            owner = self._namespace.get(name)
            if name not in reached or not self._is_wanted(name) or self._is_rebound_here(name):
                continue
            if code_state.is_owner(owner) and code_state.set_held(owner, key, value):
                inner = f"variable {key}" if type(key) is int else key
                changed.append(f"{name}.{inner}")
        return changed

    def _delete(self) -> list[str]:
        deleted = []
        for name in self._message.deleted:
            if name not in self._namespace or not self._is_wanted(name):
                continue
            if name not in self._expected or name.startswith("_") or self._is_rebound_here(name):
                continue
            del self._namespace[name]
            deleted.append(name)
        return deleted

    def _is_wanted(self, name: str) -> bool:
        return self._out is None or name in self._out

    def _is_rebound_here(self, name: str) -> bool:
        if self._at_submit is None:
            return False
        then = self._at_submit.get(name, _MISSING)
        return self._before.get(name, _MISSING) is not then

    def _inputs(self) -> dict[str, Any]:
        sent = self._namespace if self._at_submit is None else self._at_submit
        found = {
            name: sent[name]
            for name in self._expected
            if name in sent and not isinstance(sent[name], _CODE)
        }
        return {**found, tags.NAMESPACE: self._namespace}

    def _written(self) -> frozenset[str]:
        """Return the names that the text of the cell itself binds."""
        if self._writes is None:
            try:
                self._writes = frozenset(analyze(self._cell_source).writes)
            except SyntaxError:
                self._writes = frozenset()
        return self._writes

    def _reason(self, name: str, value: Any) -> str:
        """Return why ``name`` must not be touched, or nothing."""
        if name not in self._expected:
            return (
                f"{name} is no name that this cell binds or changes; its value stays in `values`."
            )
        if not self._is_wanted(name):
            return f"{name} is not among the names to bring home."
        if name.startswith("_"):
            return f"{name} begins with an underscore: such names are not results."
        if name in _BUILTINS and name not in self._written():
            return f"{name} is a builtin, which no result replaces: give it another name."
        if self._is_rebound_here(name):
            return (
                f"{name} was bound again here while the cell ran; the remote value is in `values`."
            )
        current = self._before.get(name)
        is_users_own = isinstance(current, types.FunctionType) and type(value) is type(current)
        if isinstance(current, _CODE) and value is not current and not is_users_own:
            kind = "a module" if isinstance(current, types.ModuleType) else "code"
            return f"{name} is {kind} in this notebook, which no result replaces."
        return ""

    def _left_behind(self, name: str, old: Any) -> list[str]:
        changed = set(self._message.updates.values())
        if old is _MISSING or name not in changed:
            return []
        others = [
            other for other, value in self._namespace.items() if value is old and other != name
        ]
        return [
            f"{other} still stands for {name} as it was before the cell."
            for other in others
            if not other.startswith("_")
        ]

    def _undefined(self, seen: set[str]) -> list[str]:
        return [
            f"{name} was bound to code that the cell's text does not define by itself; "
            f"it exists in the cell's container alone."
            for name in self._message.defined
            if name in self._expected and not seen & {name, "*"} and self._is_wanted(name)
        ]


def _write_into(old: Any, new: Any) -> None:
    """Make ``old`` hold what ``new`` holds; both are of the same exact type."""
    match old:
        case list() | bytearray():
            old[:] = new
        case dict() | set():
            old.clear()
            old.update(new)
        case _:
            old[...] = new
