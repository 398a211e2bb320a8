"""What functions and classes of the user hold: shared variables, attributes, counters.

A cell may change them without binding a name: ``increment()`` counts in a variable of its closure,
``Animal.count += 1`` in the class. What has changed comes home as data; the functions and classes
stay the user's own.
"""

from __future__ import annotations

import enum
import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ..ship.analysis import names_in_text

_USER_MODULE: Final = "__main__"
_ATOMS: Final = frozenset({int, float, str, bytes, bool, complex, type(None)})
_CONTAINERS: Final = frozenset({list, dict, set, bytearray})
_CODE: Final = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
_MISSING: Final = object()
_MAX_OWNERS: Final = 10_000

Key = int | str
"""The number of a variable in a function's closure, or the name of an attribute."""


def is_owner(value: object) -> bool:
    """Return whether ``value`` is a function or plain class of the user."""
    if isinstance(value, type):
        return value.__module__ == _USER_MODULE and not issubclass(value, enum.Enum)
    return type(value) is types.FunctionType and value.__module__ == _USER_MODULE


def held_by(owner: Any) -> Iterator[tuple[Key, Any]]:
    """Yield what ``owner`` holds that is data."""
    if isinstance(owner, types.FunctionType):
        for number, cell in enumerate(owner.__closure__ or ()):
            content = content_of(cell)
            if content is not _MISSING and not isinstance(content, _CODE):
                yield number, content
    for name, value in list(vars(owner).items()):
        if is_attribute(name) and is_data(value):
            yield name, value


def content_of(cell: types.CellType) -> Any:
    """Return what ``cell`` holds; an object that nothing else is when it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def is_attribute(name: object) -> bool:
    """Return whether ``name`` may be set on code of the user."""
    return type(name) is str and name.isidentifier() and not name.startswith("__")


def is_data(value: object) -> bool:
    """Return whether ``value`` is no code and no descriptor."""
    return not isinstance(value, _CODE) and not callable(value) and not hasattr(value, "__get__")


def owners_in(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the functions and classes of the user by the names that they are bound to."""
    return {name: value for name, value in list(namespace.items()) if is_owner(value)}


def reached_from(source: str, namespace: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the user's functions and classes that the text of a cell can reach."""
    owners = owners_in(namespace)
    if not owners:
        return frozenset()
    names_of = {id(owner): name for name, owner in owners.items()}
    found: set[str] = set()
    waiting = list(names_in_text(source))
    seen: set[str] = set()
    while waiting and len(seen) < _MAX_OWNERS:
        name = waiting.pop()
        if name in seen or name not in namespace:
            continue
        seen.add(name)
        value = namespace[name]
        for cls in getattr(type(value), "__mro__", ()):
            if id(cls) in names_of:
                waiting.append(names_of[id(cls)])
        if name in owners:
            found.add(name)
            waiting += _names_read_by(value)
    return frozenset(found)


def _names_read_by(owner: Any) -> Iterator[str]:
    members = [owner]
    if isinstance(owner, type):
        members = list(vars(owner).values())
        yield from (base.__name__ for base in owner.__mro__)
    for member in members:
        plain = getattr(member, "__func__", getattr(member, "fget", member))
        plain = inspect.unwrap(plain, stop=lambda f: False) if callable(plain) else plain
        if isinstance(plain, types.FunctionType):
            yield from _names_in(plain.__code__)


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _names_in(part)


def set_held(owner: Any, key: Key, value: Any) -> bool:
    """Let ``owner`` hold ``value``; return whether it may. No code of the user is run."""
    if type(key) is int:
        closure = owner.__closure__ if isinstance(owner, types.FunctionType) else None
        if not closure or not 0 <= key < len(closure):
            return False
        cell = closure[key]
        old = content_of(cell)
        if isinstance(old, _CODE):
            return False
        if not _write_into(old, value):
            cell.cell_contents = value
        return True
    if not is_attribute(key):
        return False
    old = inspect.getattr_static(owner, str(key), _MISSING)
    if old is not _MISSING and not is_data(old):
        return False  # it would hide a method or a descriptor
    if isinstance(owner, type):
        if str(key) not in vars(owner) or not _write_into(old, value):
            type.__setattr__(owner, str(key), value)
        return True
    vars(owner)[str(key)] = value
    return True


def _write_into(old: Any, new: Any) -> bool:
    """Make ``old`` hold what ``new`` holds, where both are plain containers of one type."""
    if old is new:
        return True
    if type(old) is not type(new) or type(new) not in _CONTAINERS:
        return False
    if isinstance(old, (list, bytearray)):
        old[:] = new
    else:
        old.clear()
        old.update(new)
    return True


def is_atom(value: object) -> bool:
    """Return whether ``value`` is one number or text."""
    return type(value) in _ATOMS


def is_small(value: object) -> bool:
    """Return whether ``value`` is an atom or a plain container."""
    return type(value) in _ATOMS or type(value) in _CONTAINERS
