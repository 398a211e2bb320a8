"""Instances of the user's own classes: fields in, fields out, no code of theirs run.

On decode a class is looked up among the user's own alone; the object is made with
``object.__new__`` and its fields are set past ``__init__``, ``__setattr__`` and properties.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from . import tags
from .failures import CodecError, Unsupported
from .opaque import Opaque

if TYPE_CHECKING:
    from .decode import Decoder
    from .encode import Encoder

USER_MODULE: Final = "__main__"
_BUILTIN_BASES: Final = (
    int, float, str, bytes, bytearray, list, dict, set, frozenset, tuple, BaseException, type,
)  # fmt: skip
_CODE: Final = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
_SCALARS: Final = frozenset({int, float, str, bytes, bool, complex, type(None)})
_MAX_NESTING: Final = 4
Key = tuple[str, str]


def user_classes(namespace: Mapping[str, Any]) -> dict[Key, object]:
    """Return the notebook's own classes and functions by (module, qualified name)."""
    found: dict[Key, object] = {}
    for value in list(namespace.values()):
        if isinstance(value, (type, types.FunctionType)):
            _collect(value, found, 0)
    return found


def _collect(value: Any, found: dict[Key, object], nesting: int) -> None:
    if value.__module__ != USER_MODULE or nesting > _MAX_NESTING:
        return
    found[(value.__module__, value.__qualname__)] = value
    if isinstance(value, type):
        for part in list(vars(value).values()):
            if isinstance(part, type):
                _collect(part, found, nesting + 1)


def has_inert_keys(keys: Iterable[object], types_of_user: frozenset[type] | None = None) -> bool:
    """Return whether hashing and comparing ``keys`` runs none of the user's code.

    Generated methods (dataclass, enum, named tuple) are not the user's.
    """
    if set(map(type, keys)) <= _SCALARS:
        return True
    return all(_is_inert(key, types_of_user, 0) for key in keys)


def _is_inert(key: object, types_of_user: frozenset[type] | None, nesting: int) -> bool:
    cls = type(key)
    if cls in (tuple, frozenset) or isinstance(key, tuple):
        parts: Iterable[object] = key  # type: ignore[assignment]  # both iterate
        if nesting > _MAX_NESTING * 8 or not all(
            _is_inert(part, types_of_user, nesting + 1) for part in parts
        ):
            return False
    if cls.__module__ != USER_MODULE and not (types_of_user and cls in types_of_user):
        return True
    inert = _is_generated(cls.__hash__) and _is_generated(cls.__eq__)
    if inert and dataclasses.is_dataclass(cls):
        if nesting > _MAX_NESTING * 8:
            return False
        fields = [getattr(key, field.name, None) for field in dataclasses.fields(cls)]
        return all(_is_inert(part, types_of_user, nesting + 1) for part in fields)
    return inert


def _is_generated(method: object) -> bool:
    if not isinstance(method, types.FunctionType):
        return True  # a slot of object, tuple or type
    return method.__code__.co_filename == "<string>" or method.__module__ == "enum"


# ---------------------------------------------------------------- encode


def encode_user_value(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of an instance, class or function of the user.

    Raises:
        Unsupported: it is neither, or pickles itself in its own way.
    """
    cls = type(value)
    if isinstance(value, _CODE):
        return _encode_definition(value)
    if cls.__module__ != USER_MODULE or "<locals>" in cls.__qualname__:
        raise Unsupported(cls.__qualname__)
    head = [cls.__module__, cls.__qualname__]
    if isinstance(value, enum.Enum):
        # A combination of flags has no name of its own.
        if value.name not in cls.__members__:
            raise Unsupported("a combination of flags")
        return [tags.ENUM, *head, value.name]
    if isinstance(value, tuple) and hasattr(cls, "_fields"):
        with encoder.busy(value):
            node = [tags.NAMED_TUPLE, *head, *[encoder.node(part, depth) for part in value]]
        encoder.mark(value)
        return node
    if isinstance(value, _BUILTIN_BASES) or _pickles_itself(cls):
        raise Unsupported(cls.__qualname__)
    encoder.mark(value)
    node = [tags.OBJECT, *head]
    for name, part in _fields(value).items():
        if not is_field_name(name):
            raise Unsupported("an attribute name")
        node += [name, encoder.node(part, depth)]
    return node


def _encode_definition(value: Any) -> list[Any]:
    module = getattr(value, "__module__", None)
    qualname = getattr(value, "__qualname__", "")
    found: Any = sys.modules.get(USER_MODULE)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    # Code that is not found under its own name would arrive as something else of that name.
    if module != USER_MODULE or found is not value:
        raise Unsupported("code")
    return [tags.DEFINITION, module, qualname]


def _pickles_itself(cls: Any) -> bool:
    if cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__:
        return True
    if hasattr(cls, "__setstate__") and not dataclasses.is_dataclass(cls):
        return True
    get_state = getattr(cls, "__getstate__", None)
    is_stock = get_state is getattr(object, "__getstate__", None)
    return not is_stock and not dataclasses.is_dataclass(cls)


def _fields(value: object) -> dict[str, Any]:
    found = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        for name, member in vars(cls).items():
            if isinstance(member, types.MemberDescriptorType) and hasattr(value, name):
                found[name] = getattr(value, name)
    return found


def is_field_name(name: object) -> bool:
    """Return whether ``name`` may be set on an object: a plain attribute, no dunder."""
    if type(name) is not str or not name.isidentifier():
        return False
    return not (name.startswith("__") and name.endswith("__"))


# ---------------------------------------------------------------- decode


def _class(decoder: Decoder, node: list[Any]) -> type | None:
    decoder.check(len(node) >= 3 and type(node[1]) is str and type(node[2]) is str, "class")
    found = decoder.classes.get((node[1], node[2]))
    if found is None:
        decoder.unresolved.add((node[1], node[2]))
        return None
    if not isinstance(found, type):
        raise CodecError(f"{node[2]!r} is not a class here.")
    return found


def _placeholder(decoder: Decoder, node: list[Any]) -> Opaque:
    name = f"{node[1]}.{node[2]}"[:300]
    return Opaque(name, "this notebook has no definition of it", b"", decoder.source)


def _decode_object(decoder: Decoder, node: list[Any], depth: int) -> object:
    cls = _class(decoder, node)
    decoder.check(len(node) % 2 == 1, "fields")
    names = node[3::2]
    decoder.check(all(is_field_name(name) for name in names), "attribute name")
    if cls is None:
        made: object = decoder.place(_placeholder(decoder, node))
        for part in node[4::2]:
            decoder.value(part, depth)  # keeps the numbers of the memo right
        return made
    if issubclass(cls, (*_BUILTIN_BASES, enum.Enum)):
        raise CodecError(f"{node[2]!r} is not a plain class.")
    if dataclasses.is_dataclass(cls):
        wanted = {field.name for field in dataclasses.fields(cls)}
        decoder.check(wanted <= set(names), "dataclass fields")
    slots = {
        name: member
        for base in cls.__mro__
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType)
    }
    made = object.__new__(cls)
    decoder.place(made)
    attributes = getattr(made, "__dict__", None)
    for name, part in zip(names, node[4::2], strict=True):
        value = decoder.value(part, depth)
        if name in slots:
            slots[name].__set__(made, value)
        elif type(attributes) is dict:
            attributes[name] = value
        else:
            raise CodecError(f"{node[2]!r} has no attribute {name!r} here.")
    return made


def _decode_enum(decoder: Decoder, node: list[Any], depth: int) -> object:
    decoder.check(len(node) == 4 and type(node[3]) is str, "enum")
    cls = _class(decoder, node)
    if cls is None:
        return _placeholder(decoder, node)
    if not isinstance(cls, enum.EnumMeta) or node[3] not in cls.__members__:
        raise CodecError(f"{node[2]!r} has no member {node[3]!r} here.")
    return cls.__members__[node[3]]


def _decode_named_tuple(decoder: Decoder, node: list[Any], depth: int) -> object:
    cls = _class(decoder, node)
    parts = [decoder.value(part, depth) for part in node[3:]]
    if cls is None:
        return decoder.place(_placeholder(decoder, node))
    fields = getattr(cls, "_fields", None)
    if not issubclass(cls, tuple) or type(fields) is not tuple or len(fields) != len(parts):
        raise CodecError(f"{node[2]!r} is another named tuple here.")
    return decoder.place(tuple.__new__(cls, parts))


def _decode_definition(decoder: Decoder, node: list[Any], depth: int) -> object:
    decoder.check(len(node) == 3 and type(node[1]) is str and type(node[2]) is str, "definition")
    found = decoder.classes.get((node[1], node[2]))
    if found is None:
        decoder.unresolved.add((node[1], node[2]))
        return _placeholder(decoder, node)
    return found


DECODERS: Final = {
    tags.OBJECT: _decode_object,
    tags.ENUM: _decode_enum,
    tags.NAMED_TUPLE: _decode_named_tuple,
    tags.DEFINITION: _decode_definition,
}
