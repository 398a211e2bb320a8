"""Tells whether a name of a notebook is still what was sent, or what came home.

A session keeps its names in its sandbox. A name whose fingerprint is the same need not be sent
again, and keeps its identity there. Two names that share one mutable object travel together or
not at all: else they would be two objects there.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import blake3

from . import user_modules
from .chunk_digests import CHUNK_DIGESTS
from .pickler import LEAST_BLOB_BYTES, Shipper
from .sharing import reached


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a name held: equal digests, equal contents."""

    digest: bytes
    objects: frozenset[int]
    """Ids of the mutable objects that were reached. One that is used again for another object
    costs bytes, no more."""


def fingerprints(namespace: dict[str, Any], names: Iterable[str]) -> dict[str, Fingerprint]:
    """Return the fingerprints of those of ``names`` that ``namespace`` has and can send."""
    shipped = frozenset(namespace)
    found: dict[str, Fingerprint] = {}
    for name in names:
        if name in namespace:
            made = fingerprint(Shipper(namespace, shipped=shipped), namespace, namespace[name])
            if made is not None:
                found[name] = made
    return found


def fingerprint(shipper: Shipper, namespace: dict[str, Any], value: object) -> Fingerprint | None:
    """Return the fingerprint of ``value``, made with a fresh ``shipper``; None: it cannot be sent."""
    try:
        shipper.dump(value)
        modules = user_modules.collect(shipper.modules)
    except Exception:  # what it is, and which variable, the capture itself will say
        return None
    stream, raws = shipper.dumped()
    digest = blake3.blake3(stream)
    for file in modules.files:  # code of theirs that the stream refers to by its name alone
        digest.update(file.path.encode() + blake3.blake3(file.data).digest())
    for raw in raws:
        digest.update(raw.nbytes.to_bytes(8, "big"))
        if raw.nbytes < LEAST_BLOB_BYTES:
            digest.update(raw)
            continue
        for blob in CHUNK_DIGESTS.start(raw).result():
            digest.update(bytes.fromhex(blob.ref.digest))
    return Fingerprint(digest.digest(), frozenset(_objects(value, namespace)))


def _objects(value: object, namespace: dict[str, Any]) -> Iterator[int]:
    numpy: Any = sys.modules.get("numpy")
    array: type = numpy.ndarray if numpy else type(None)
    for part in reached(value, namespace):
        if isinstance(part, types.FunctionType) and part.__globals__ is not namespace:
            continue
        yield id(_root_of_array(part, array) if isinstance(part, array) else part)


def _root_of_array(part: Any, array: type) -> object:
    while isinstance(part.base, array):
        part = part.base
    return part


def to_send(
    names: Iterable[str],
    current: Mapping[str, Fingerprint],
    known: Mapping[str, Fingerprint],
    is_there: Callable[[str], bool],
) -> set[str]:
    """Return which names a session must be sent: changed ones, and what shares objects with them.

    Args:
        names: what the cell needs.
        current: their fingerprints now.
        known: what the session has.
        is_there: whether the notebook still has a name of ``known``.
    """
    names = set(names)
    moved = {
        name
        for name in names
        if name not in known or name not in current or known[name].digest != current[name].digest
    }
    others = {name: current[name].objects for name in names - moved}
    others |= {name: known[name].objects for name in known.keys() - names if is_there(name)}
    objects = set().union(*(current[name].objects for name in moved if name in current))
    while linked := {name for name, ids in others.items() if not objects.isdisjoint(ids)}:
        moved |= linked
        for name in linked:
            objects |= others.pop(name)
    return moved
