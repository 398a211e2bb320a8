"""The result of one call: what it bound, deleted and changed, as one message.

``encode_result`` runs in the container and compares the namespace with a snapshot; ``apply_result``
runs on the user's machine, decodes everything first and then applies it in one step.

The root of a message is ``[entries, updates, deleted, defined, unexpected, files, last, held]``:

    entries     [name, length of the memo before it, node] for each rebound or changed name
    updates     [number in the memo, name] for each object that was changed in place
    deleted     names
    defined     [name, line] for names bound to code by a definition of the cell
    unexpected  names that were bound but not expected, without their values
    files       [relative path, bytes] for each file to bring home
    last        [length of the memo before it, node] of the last expression's value, or nil
    held        [name, key, length of the memo before it, node] for what a function or class of
                the user holds and the cell has changed
"""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from ..ship import replay
from . import code_state, tags
from .encode import Encoder
from .framing import Pieces, pieces
from .home import Applied, apply_result
from .snapshot import Snapshot, digest_of, digests, snapshot

__all__ = [
    "Applied",
    "ResultPieces",
    "Snapshot",
    "apply_result",
    "encode_result",
    "result_pieces",
    "snapshot",
]

_CODE: Final = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
)
_SHELL_NAMES: Final = frozenset(
    {"In", "Out", "exit", "quit", "get_ipython", "open", "display", "__gridx_load__"}
)
_MAX_UNEXPECTED: Final = 1_000
# What the notebook shows is shown already; its value is worth this much and no more.
_MAX_LAST_BYTES: Final = 1 << 20
_MAX_HELD_BYTES: Final = 1 << 26
_MISSING: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultPieces(Pieces):
    """A result in the buffers that it was made of, and what they hold."""

    contents: tuple[tuple[str, tuple[int, int], Any], ...]
    """Name of each value or file, its first buffer and the one after its last, its node."""
    blobs: tuple[Any, ...]

    def largest(self, count: int = 3) -> list[tuple[str, int]]:
        """Return the ``count`` largest names or files, with their bytes."""
        sizes = []
        for name, (first, end), node in self.contents:
            beside = sum(memoryview(blob).nbytes for blob in self.blobs[first:end])
            sizes.append((name, beside + len(msgspec.msgpack.encode(node))))
        return sorted(sizes, key=lambda item: item[1], reverse=True)[:count]


def encode_result(
    before: Snapshot,
    after: Mapping[str, Any],
    *,
    expected: Collection[str] | None,
    cell: str,
) -> bytes:
    """Return ``result_pieces`` as one string, for results that are small."""
    return result_pieces(before, after, expected=expected, cell=cell).join()


def result_pieces(
    before: Snapshot,
    after: Mapping[str, Any],
    *,
    expected: Collection[str] | None,
    cell: str,
    files: Sequence[tuple[str, bytes | bytearray | memoryview]] = (),
    last: object = None,
) -> ResultPieces:
    """Return what a cell did to its namespace, as one message for ``apply_result``.

    A value that cannot be encoded travels closed; one is never the failure of all. The pieces
    are views of the values: nothing may change these before they are sent.

    Args:
        before: the namespace before the cell.
        after: the namespace now; also after the cell raised.
        expected: names whose values are sent; None sends all.
        cell: the source of the cell, which tells what the user's side makes again by itself.
        files: relative path and contents of each file to bring home.
        last: the value of the cell's last expression. It is sent when it is one of the values
            anyway, or small and open.
    """
    changes = _Changes(before, after, expected, replay.statements(cell))
    inputs = {**changes.unchanged_inputs, id(after): tags.NAMESPACE}
    encoder = Encoder(inputs=inputs, code=before.code, cell=cell)
    entries, contents = [], []
    for name in changes.values:
        start, blobs, closed = encoder.memo_length, len(encoder.blobs), encoder.opaque_count
        node = encoder.node(after[name])
        if name in changes.untold and encoder.opaque_count > closed:
            # Nothing shows that it changed: the user keeps it, rather than a closed copy.
            encoder.forget(start, blobs)
            continue
        entries.append([name, start, node])
        contents.append((name, (blobs, len(encoder.blobs)), node))
    updates = []
    for name in changes.changed:
        number = encoder.memo_index(after[name])
        if number is not None:
            updates.append([number, name])
    held = _held(encoder, before, after, changes.made)
    shown = None if last is None else _last(encoder, last)
    sent: list[Any] = []
    for path, data in files:
        sent.append([path, encoder.blob(data)])
        contents.append((path, (len(encoder.blobs) - 1, len(encoder.blobs)), None))
    root = [entries, updates, changes.deleted, changes.defined, changes.unexpected, sent, shown]
    root.append(held)
    made = pieces(tags.RESULT_MAGIC, root, encoder.blobs)
    return ResultPieces(
        buffers=made.buffers,
        size_bytes=made.size_bytes,
        contents=tuple(contents),
        blobs=tuple(encoder.blobs),
    )


def _held(
    encoder: Encoder, before: Snapshot, after: Mapping[str, Any], made: Collection[str]
) -> list[Any]:
    """Return what functions and classes of the user hold now and did not before."""
    found: list[Any] = []
    for name, owner in code_state.owners_in(after).items():
        is_new = before.values.get(name) is not owner
        if is_new and name not in made:
            continue
        known = {} if is_new else before.held.get(name, {})
        for key, value in code_state.held_by(owner):
            if is_new and not (type(key) is str and code_state.is_small(value)):
                continue
            old, digest = known.get(key, (_MISSING, None))
            if old is value and (digest is None or digest == digest_of(value)):
                continue
            start = encoder.memo_length
            node = encoder.open_node(value, _MAX_HELD_BYTES)
            if node is not None:
                found.append([name, key, start, node])
    return found


def _last(encoder: Encoder, value: object) -> list[Any] | None:
    start = encoder.memo_length
    node = encoder.open_node(value, _MAX_LAST_BYTES)
    return None if node is None else [start, node]


class _Changes:
    """The names of a namespace, sorted by what happened to them."""

    def __init__(
        self,
        before: Snapshot,
        after: Mapping[str, Any],
        expected: Collection[str] | None,
        cell: replay.CellDefinitions,
    ) -> None:
        self._cell = cell
        self.changed = _changed_in_place(before, after)
        self.unchanged_inputs = {
            id(after[name]): name
            for name, digest in before.digests.items()
            if digest is not None and name not in self.changed and _is_same(before, after, name)
        }
        self.deleted = [
            name
            for name in before.values
            if name not in after and _may_be_result(name) and (expected is None or name in expected)
        ]
        self.untold = {name for name in self.changed if before.digests[name] is None}
        self.values: list[str] = []
        self.made: set[str] = set()
        """Names of functions and classes that the user's side makes again."""
        self.defined: list[list[Any]] = []
        self.unexpected: list[str] = []
        rebound = [
            name
            for name in list(after)
            if _may_be_result(name) and not _is_same(before, after, name)
        ]
        for name in sorted(rebound):
            self._sort(name, after[name], expected)
        self.values += [name for name in self.changed if expected is None or name in expected]

    def _sort(self, name: str, value: Any, expected: Collection[str] | None) -> None:
        is_expected = expected is None or name in expected
        is_code = isinstance(value, _CODE)
        if name in self._cell.names and (is_code or name in self._cell.final):
            self.defined.append([name, first_line(value)])
            self.made.add(name)
        elif is_expected and not isinstance(value, types.ModuleType):
            self.values.append(name)
        elif is_expected or is_code:
            self.defined.append([name, 0])  # a star import, if anything of the cell
        elif len(self.unexpected) < _MAX_UNEXPECTED:
            self.unexpected.append(name)


def _may_be_result(name: object) -> bool:
    return type(name) is str and not name.startswith("_") and name not in _SHELL_NAMES


def _is_same(before: Snapshot, after: Mapping[str, Any], name: str) -> bool:
    missing = before  # an object that no namespace holds
    return before.values.get(name, missing) is after.get(name, before.digests)


def _changed_in_place(before: Snapshot, after: Mapping[str, Any]) -> list[str]:
    same = {name: after[name] for name in before.digests if _is_same(before, after, name)}
    now = digests({name: value for name, value in same.items() if not isinstance(value, _CODE)})
    return [
        name
        for name, digest in now.items()
        if _may_be_result(name) and (digest is None or digest != before.digests[name])
    ]


def first_line(value: Any) -> int:
    """Return the line of the cell where the code of ``value`` begins; 0 when it cannot be told."""
    value = getattr(value, "__wrapped__", value)
    line = getattr(getattr(value, "__code__", None), "co_firstlineno", None)
    if line is None and isinstance(value, type):
        line = vars(value).get("__firstlineno__")
    return line if type(line) is int and 0 < line < 1 << 31 else 0
