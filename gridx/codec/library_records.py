"""Records of libraries that are plain data: dicts with attributes, tuples with names.

``load_iris()``, ``minimize()`` and ``ttest_ind()`` give them. The class is taken from a library
that is already loaded here, past its ``__init__``; where it is not, the plain dict or tuple comes.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from . import tags
from .failures import Unsupported
from .user_values import is_field_name

if TYPE_CHECKING:
    from .decode import Decoder
    from .encode import Encoder

_DICTS: Final = {
    "Bunch": ("sklearn.utils._bunch", "sklearn.utils"),
    "OptimizeResult": ("scipy.optimize._optimize", "scipy.optimize"),
    "OdeResult": ("scipy.integrate._ivp.ivp", "scipy.integrate._ivp.ivp"),
    "RootResults": ("scipy.optimize._zeros_py", "scipy.optimize"),
}
"""Name of each class, where it says that it is from, and where it is found."""
_MAX_EXTRA_BYTES: Final = 1 << 24
_LIBRARIES: Final = frozenset(
    ["scipy", "sklearn", "numpy", "pandas", "urllib", "statistics", "shutil", "difflib", "sqlite3"]
)


def is_record(value: object, root: str) -> bool:
    """Return whether ``value``, of the library ``root``, is a record."""
    cls = type(value)
    if isinstance(value, tuple):
        return root in _LIBRARIES and _is_named(cls)
    return isinstance(value, dict) and _DICTS.get(cls.__name__, ("",))[0] == cls.__module__


def _is_named(cls: type) -> bool:
    fields = getattr(cls, "_fields", None)
    return type(fields) is tuple and all(map(is_field_name, fields))


def encode_record(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of a record."""
    cls = type(value)
    if isinstance(value, dict):
        if not all(type(key) is str for key in value):
            raise Unsupported(cls.__qualname__)
        encoder.mark(value)
        names = list(value)
        return [tags.RECORD, cls.__name__, names, encoder.nodes(list(value.values()), depth)]
    if vars(sys.modules[cls.__module__]).get(cls.__qualname__) is not cls:
        raise Unsupported(cls.__qualname__)
    extras = dict(getattr(value, "__dict__", {}))
    with encoder.busy(value):
        parts = encoder.nodes(list(value), depth)
        # What has no open form there, such as a module that it calculates with, becomes None.
        more = [encoder.open_node(part, _MAX_EXTRA_BYTES) for part in extras.values()]
    encoder.mark(value)
    return [tags.NAMED_RECORD, cls.__module__, cls.__qualname__, parts, list(extras), more]


# ---------------------------------------------------------------- decode


def _decode_record(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 4 and type(node[1]) is str and node[1] in _DICTS, "record")
    decoder.check(type(node[2]) is type(node[3]) is list, "record")
    decoder.check(all(type(name) is str for name in node[2]), "record")
    module = sys.modules.get(_DICTS[node[1]][1])
    cls: Any = None if module is None else vars(module).get(node[1])
    is_dict = isinstance(cls, type) and issubclass(cls, dict)
    made: Any = decoder.place(dict.__new__(cls) if is_dict else {})
    dict.update(made, zip(node[2], decoder.parts(node[3], depth), strict=True))
    return made


def _decode_named(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 6 and type(node[1]) is type(node[2]) is str, "record")
    decoder.check(node[1].partition(".")[0] in _LIBRARIES and type(node[3]) is list, "record")
    parts = decoder.parts(node[3], depth)
    decoder.check(type(node[4]) is type(node[5]) is list, "record")
    decoder.check(all(map(is_field_name, node[4])), "record")
    extras = dict(zip(node[4], decoder.parts(node[5], depth), strict=True))
    module = sys.modules.get(node[1])
    cls: Any = None if module is None else vars(module).get(node[2])
    is_named = isinstance(cls, type) and issubclass(cls, tuple) and _is_named(cls)
    if not is_named or len(cls._fields) != len(parts):
        return decoder.place(tuple(parts))
    made = tuple.__new__(cls, parts)
    if extras and type(getattr(made, "__dict__", None)) is dict:
        vars(made).update(extras)
    return decoder.place(made)


DECODERS: Final = {tags.RECORD: _decode_record, tags.NAMED_RECORD: _decode_named}
