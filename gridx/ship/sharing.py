"""Objects that a notebook's values share: which other names stand for a part of a value.

A cell that changes ``first["s"]`` changes ``shared`` too, when both are one list. So ``shared``
travels with ``first``, and comes home with it.
"""

from __future__ import annotations

import collections
import enum
import functools
import gc
import sys
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, Final

from .user_modules import is_user_module

_MAX_OBJECTS: Final = 5_000
# Numbers and texts cost less than objects, but a list may hold a hundred million of them.
_MAX_PARTS: Final = 200_000
_MAX_PARTS_OF_ONE: Final = 10_000
# Neither they nor what lies behind them is a notebook's own state.
_OPAQUE: Final = (
    type,
    types.ModuleType,
    types.CodeType,
    types.FrameType,
    types.BuiltinFunctionType,
    enum.Enum,
    str,
    bytes,
    int,
    float,
)
_CODE: Final = (types.FunctionType, type, types.ModuleType)
_ATOMS: Final[frozenset[type]] = frozenset({int, float, str, bytes, bool, complex, type(None)})
# A result changes the notebook's own object of these, so that its other names see the change.
_CHANGED_IN_PLACE: Final = frozenset({list, dict, set, bytearray})
_BOUND_ANEW: Final = frozenset(
    {
        collections.deque,
        collections.OrderedDict,
        collections.Counter,
        collections.defaultdict,
        types.SimpleNamespace,
    }
)
_CONTAINERS: Final = (
    list,
    tuple,
    dict,
    set,
    frozenset,
    collections.deque,
    types.SimpleNamespace,
    types.MethodType,
    types.CellType,
    functools.partial,
)
_IMMUTABLE: Final = (*_OPAQUE, tuple, frozenset, BaseException)


def reached(
    value: object,
    namespace: dict[str, Any],
    seen: set[int] | None = None,
    *,
    max_parts: int = sys.maxsize,
    max_parts_of_one: int = sys.maxsize,
    has_parts: Callable[[type], bool] = lambda cls: True,
) -> Iterator[object]:
    """Yield what can change of ``value`` and of its parts, until 5,000 objects were looked at.

    Args:
        value: where to begin.
        namespace: the notebook's, which functions refer to and which is nobody's part.
        seen: ids that need not be looked at again; they are added.
        max_parts: how many parts are looked at, numbers and texts included.
        max_parts_of_one: how many of them may be parts of one object.
        has_parts: whether objects of a class are looked into.
    """
    seen = set() if seen is None else seen
    most_seen = len(seen) + _MAX_OBJECTS
    array = _array_type()
    immutable = (*_OPAQUE, *_index_type())
    # By class, whether its objects can have parts that change, and are looked into: asked once.
    looked_into: dict[type, bool | None] = dict.fromkeys(_ATOMS)
    left = max_parts
    level: list[object] = [value]
    while level:
        following: list[object] = []
        for part in level:
            cls = type(part)
            if cls not in looked_into:
                looked_into[cls] = None if issubclass(cls, immutable) else has_parts(cls)
            into = looked_into[cls]
            if into is None or id(part) in seen or part is namespace:
                continue
            seen.add(id(part))
            if len(seen) >= most_seen:
                return
            parts: Iterable[object] = ()
            if issubclass(cls, array):
                yield part
                parts = _parts_of_array(part)
            elif cls is types.FunctionType:
                yield part
                parts = _parts_of_function(part)
            # A dict of numbers and texts is not tracked, and can change as any other.
            elif gc.is_tracked(part) or issubclass(cls, bytearray | dict):
                if not issubclass(cls, tuple | frozenset):
                    yield part
                parts = _parts(part) if into else ()
            taken = len(following)
            following += islice(parts, min(left, max_parts_of_one))
            left -= len(following) - taken
        level = following


def _parts_of_array(array: Any) -> Iterable[object]:
    if not array.dtype.hasobject:
        return ()
    return array.flat if array.dtype.names is None else array.ravel().tolist()  # type: ignore[no-any-return]


def _parts_of_function(function: Any) -> Iterable[object]:
    return [*(function.__closure__ or ()), *(function.__defaults__ or ())]


def _parts(part: Any) -> Iterable[object]:
    cls = type(part)
    if cls is dict:
        return chain(part.values(), part)
    if cls in (list, tuple, set, frozenset):
        return part  # type: ignore[no-any-return]  # one by one: there may be millions
    return gc.get_referents(part)


def _array_type() -> Any:
    numpy: Any = sys.modules.get("numpy")
    return getattr(numpy, "ndarray", ())


def _frame_types() -> frozenset[type]:
    pandas: Any = sys.modules.get("pandas")
    found = (getattr(pandas, name, None) for name in ("DataFrame", "Series"))
    return frozenset(cls for cls in found if cls is not None)


def _index_type() -> tuple[type, ...]:
    pandas: Any = sys.modules.get("pandas")
    index = getattr(pandas, "Index", None)
    return () if index is None else (index,)


def names_that_share(
    values: Mapping[str, object],
    namespace: dict[str, Any],
    *,
    may_send: Callable[[str], bool],
    rebound: Collection[str],
) -> dict[str, str]:
    """Return other names for what can change in ``values``, with the name that they share it with.

    Args:
        values: what a cell needs.
        namespace: the notebook's.
        may_send: whether a name may travel unasked.
        rebound: names that the cell itself binds or deletes: what they stood for is out of its
            result's reach under them.
    """
    roots = [name for name in values if not _is_closed(values[name])]
    if not roots:
        return {}
    others = _others(values, namespace)
    if not others:
        return {}
    found: dict[str, str] = {}
    seen: set[int] = set()
    quiet = _CHANGED_IN_PLACE | _frame_types()
    for root in roots:
        value = values[root]
        parts = reached(
            value,
            namespace,
            seen,
            max_parts=_MAX_PARTS,
            max_parts_of_one=_MAX_PARTS_OF_ONE,
            has_parts=_is_looked_into,
        )
        for part in parts:
            names = others.get(id(part))
            if names is None:
                continue
            if part is value and root not in rebound and type(part) in quiet:
                continue
            for name in names:
                if may_send(name):
                    found.setdefault(name, root)
            del others[id(part)]
        if not others:
            break
    return found


def _is_closed(value: object) -> bool:
    """Return whether ``value`` has no parts that another name could stand for."""
    if type(value) in _ATOMS or issubclass(type(value), _CODE):
        return True
    return type(value) is _array_type() and not value.dtype.hasobject  # type: ignore[attr-defined]


def _others(values: Mapping[str, object], namespace: dict[str, Any]) -> dict[int, list[str]]:
    """Return the ids of what can change and is more than one name's, with its other names."""
    found: dict[int, list[str]] = {}
    plain = {*_CHANGED_IN_PLACE, *_BOUND_ANEW, *_frame_types(), _array_type()}
    for name, value in list(namespace.items()):
        cls = type(value)
        if cls in _ATOMS or name in values or name.startswith("_"):
            continue
        # What the namespace alone refers to is no part of another value.
        if sys.getrefcount(value) > _OWN_REFERENCES and (cls in plain or _is_of_the_user(cls)):
            found.setdefault(id(value), []).append(name)
    return found


def _is_looked_into(cls: type) -> bool:
    # What an object of a library holds is its own: a model that keeps its training data does
    # not change it.
    return issubclass(cls, _CONTAINERS) or _is_of_the_user(cls)


def _is_of_the_user(cls: type) -> bool:
    # The class alone is asked: looking at the value may run code of its own.
    if issubclass(cls, (*_IMMUTABLE, *_CODE)):
        return False
    module: object = cls.__module__
    return module == "__main__" or (isinstance(module, str) and is_user_module(module))


def _own_references() -> int:
    """Return how often an object counts as referred to when a namespace alone has it."""
    namespace: dict[str, Any] = {"name": []}
    count = 0
    for _, value in list(namespace.items()):
        count = sys.getrefcount(value)
    return count


_OWN_REFERENCES: Final = _own_references()
