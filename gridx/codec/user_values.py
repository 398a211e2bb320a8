"""Instances of the user's own classes: fields in, fields out, no code of theirs run.

On decode a class is looked up among the user's own alone; the object is made with
``object.__new__`` and its fields are set past ``__init__``, ``__setattr__`` and properties.
"""

from __future__ import annotations

import builtins
import dataclasses
import enum
import functools
import itertools
import operator
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from . import code_values, tags
from .failures import CodecError, Unsupported
from .opaque import Opaque

if TYPE_CHECKING:
    from .decode import Decoder
    from .encode import Encoder

USER_MODULE: Final = "__main__"
_BUILTIN_BASES: Final = (
    int, float, str, bytes, bytearray, list, dict, set, frozenset, tuple, BaseException, type,
)  # fmt: skip
_DERIVED: Final[dict[str, type]] = {
    cls.__name__: cls for cls in (list, dict, set, frozenset, tuple, int, float, str)
}
_CODE: Final = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
_SCALARS: Final = frozenset({int, float, str, bytes, bool, complex, type(None)})
_MAX_NESTING: Final = 4
_ORIGIN: Final = "__orig_class__"
"""What ``Box[int](3)`` leaves on the box; nothing but typing's introspection reads it."""
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


def has_inert_keys(keys: Collection[object], types_of_user: frozenset[type] | None = None) -> bool:
    """Return whether hashing and comparing ``keys`` runs none of the user's code.

    Generated methods (dataclass, enum, named tuple) are not the user's.
    """
    kinds = set(map(type, keys))
    if kinds <= _SCALARS:
        return True
    if kinds == {tuple}:
        inside: Iterable[Any] = itertools.chain.from_iterable(keys)  # type: ignore[arg-type]  # tuples
        if set(map(type, inside)) <= _SCALARS:
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
        return _encode_code(encoder, value, depth)
    if cls is functools.partial:
        return code_values.encode_partial(encoder, value, depth)
    if isinstance(value, BaseException):
        return _encode_exception(encoder, value, depth)
    if cls.__module__ != USER_MODULE or "<locals>" in cls.__qualname__:
        raise Unsupported(cls.__qualname__)
    head = [cls.__module__, cls.__qualname__]
    if isinstance(value, enum.Enum):
        if value.name not in cls.__members__:  # a combination of flags has no name of its own
            return [tags.ENUM, *head, _names_of_flags(value)]
        return [tags.ENUM, *head, value.name]
    if isinstance(value, tuple) and hasattr(cls, "_fields"):
        with encoder.busy(value):
            node = [tags.NAMED_TUPLE, *head, *[encoder.node(part, depth) for part in value]]
        encoder.mark(value)
        return node
    base = _derived_from(cls)
    if base is not None:
        return _encode_derived(encoder, value, base, depth)
    if isinstance(value, _BUILTIN_BASES) or _pickles_itself(cls):
        raise Unsupported(cls.__qualname__)
    encoder.mark(value)
    node = [tags.OBJECT, *head]
    for name, part in _fields(value, _slot_members(cls)).items():
        if not is_field_name(name):
            raise Unsupported("an attribute name")
        node += [name, encoder.node(part, depth)]
    return node


def _names_of_flags(value: Any) -> list[str]:
    names = [str(member.name) for member in value] if isinstance(value, enum.Flag) else []
    if not _are_plain_flags(type(value)) or sum(type(value)[n].value for n in names) != value.value:
        raise Unsupported("a combination of flags")
    return names


def _are_plain_flags(cls: Any) -> bool:
    return issubclass(cls, enum.Flag) and cls.__or__ in (enum.Flag.__or__, enum.IntFlag.__or__)


def _derived_from(cls: type) -> type | None:
    """Return the one builtin that ``cls`` adds to, when nothing else says how to pickle it."""
    bases = [base for base in _DERIVED.values() if issubclass(cls, base)]
    if len(bases) != 1 or issubclass(cls, enum.Enum) or hasattr(cls, "_fields"):
        return None
    between = cls.__mro__[: cls.__mro__.index(bases[0])]
    if any(base.__module__ not in (USER_MODULE, "typing") for base in between):
        return None  # a Counter, say, has a state of its own
    own = {"__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__del__"}
    return None if any(own & vars(base).keys() for base in between) else bases[0]


def _encode_derived(encoder: Encoder, value: Any, base: type, depth: int) -> list[Any]:
    cls = type(value)
    # Past what the class overrides: the base's own way to give its contents.
    content: Any = base(value) if base in (int, float, str) else list(base.__iter__(value))  # type: ignore[attr-defined]  # containers have it
    if base is dict:
        content = [(key, dict.__getitem__(value, key)) for key in content]
    is_late = base in (list, dict, set)
    if is_late:
        encoder.mark(value)
    with encoder.busy(value):
        node = encoder.node(content, depth)
        fields = _fields(value, _slot_members(cls))
        if not all(map(is_field_name, fields)):
            raise Unsupported("an attribute name")
        parts = encoder.nodes(list(fields.values()), depth)
    if not is_late:
        encoder.mark(value)
    head = [tags.DERIVED, cls.__module__, cls.__qualname__, base.__name__]
    return [*head, node, list(fields), parts]


def _encode_code(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    try:
        return _encode_definition(value)
    except Unsupported:
        if type(value) is not types.FunctionType:
            raise
    return code_values.encode_function(encoder, value, depth)


def _encode_exception(encoder: Encoder, value: BaseException, depth: int) -> list[Any]:
    """An exception that is a value: its class, arguments and fields; its traceback stays there."""
    cls = type(value)
    is_known = cls.__module__ == USER_MODULE and "<locals>" not in cls.__qualname__
    if not is_known and getattr(builtins, cls.__name__, None) is not cls:
        raise Unsupported(cls.__qualname__)
    with encoder.busy(value):
        arguments = encoder.nodes(_arguments_of(value), depth)
    encoder.mark(value)
    fields = {k: v for k, v in vars(value).items() if is_field_name(k)}
    notes = [str(note)[:10_000] for note in getattr(value, "__notes__", ())]
    parts = [encoder.node(fields, depth) if fields else None, notes and encoder.node(notes, depth)]
    return [tags.EXCEPTION, cls.__module__, cls.__qualname__, arguments, parts[0], parts[1] or None]


def _arguments_of(error: BaseException) -> tuple[Any, ...]:
    """Return what makes ``error`` again: an OSError does not keep its file among its ``args``."""
    if isinstance(error, OSError) and len(error.args) == 2 and error.filename is not None:
        return (*error.args, error.filename)
    return error.args


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
    if hasattr(cls, "__del__"):
        return True  # made from a stranger's data, it would act on it when it is dropped
    if cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__:
        return True
    if hasattr(cls, "__setstate__") and not dataclasses.is_dataclass(cls):
        return True
    get_state = getattr(cls, "__getstate__", None)
    is_stock = get_state is getattr(object, "__getstate__", None)
    return not is_stock and not dataclasses.is_dataclass(cls)


def _fields(value: object, slots: Iterable[str]) -> dict[str, Any]:
    found = dict(getattr(value, "__dict__", {}))
    found.pop(_ORIGIN, None)
    for name in slots:
        if name != _ORIGIN and hasattr(value, name):
            found[name] = getattr(value, name)
    return found


def fields_of_plain(values: list[Any]) -> list[dict[str, Any]] | None:
    """Return the fields of ``values``, all of one class; None unless they are plain objects."""
    cls = type(values[0])
    is_other = isinstance(values[0], (*_BUILTIN_BASES, *_CODE, enum.Enum))
    if is_other or "<locals>" in cls.__qualname__ or _pickles_itself(cls):
        return None
    slots = list(_slot_members(cls))
    fields = [_fields(value, slots) for value in values]
    return fields if all(map(is_field_name, fields[0])) else None


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


class Plan:
    """How instances of one class with one set of fields are made, checked once for all of them."""

    def __init__(
        self, cls: type | None, slots: Mapping[str, Any], placeholder: Callable[[], Opaque]
    ) -> None:
        self._cls = cls
        self._slots = slots
        self._placeholder = placeholder

    def make(self) -> Any:
        """Return an instance without fields, or what stands for one whose class is not here."""
        return self._placeholder() if self._cls is None else object.__new__(self._cls)

    def fill(self, made: Any, name: str, value: Any) -> None:
        """Set a field past ``__setattr__`` and properties."""
        if self._cls is None:
            return
        if name in self._slots:
            self._slots[name].__set__(made, value)
            return
        attributes = getattr(made, "__dict__", None)
        if type(attributes) is not dict:
            raise CodecError(f"{self._cls.__qualname__!r} has no attribute {name!r} here.")
        attributes[name] = value


def plan_of(decoder: Decoder, module: Any, qualname: Any, names: Any) -> Plan:
    """Return the plan for the fields ``names`` of a class of the user.

    Raises:
        CodecError: it is no plain class here, or has other fields.
    """
    is_named = type(module) is str and type(qualname) is str and type(names) is list
    decoder.check(is_named and all(map(is_field_name, names)), "attribute name")
    key = (module, qualname, *names)
    if key not in decoder.plans:
        node = [tags.OBJECT, module, qualname]
        cls = _class(decoder, node)
        if cls is not None:
            _check_plain(decoder, cls, names)
        slots = {} if cls is None else _slot_members(cls)
        decoder.plans[key] = Plan(cls, slots, lambda: _placeholder(decoder, node))
    return decoder.plans[key]


def _check_plain(decoder: Decoder, cls: type, names: list[str]) -> None:
    if issubclass(cls, (*_BUILTIN_BASES, enum.Enum)) or hasattr(cls, "__del__"):
        raise CodecError(f"{cls.__qualname__!r} is not a plain class.")
    if dataclasses.is_dataclass(cls):
        wanted = {field.name for field in dataclasses.fields(cls)}
        decoder.check(wanted <= set(names), "dataclass fields")


def _slot_members(cls: type) -> dict[str, Any]:
    return {
        name: member
        for base in cls.__mro__
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType)
    }


def _decode_object(decoder: Decoder, node: list[Any], depth: int) -> object:
    decoder.check(len(node) >= 3 and len(node) % 2 == 1, "fields")
    names = node[3::2]
    plan = plan_of(decoder, node[1], node[2], names)
    made = plan.make()
    decoder.place(made)
    for name, part in zip(names, node[4::2], strict=True):
        plan.fill(made, name, decoder.value(part, depth))
    return made


def _decode_derived(decoder: Decoder, node: list[Any], depth: int) -> object:
    decoder.check(len(node) == 7 and type(node[3]) is str and node[3] in _DERIVED, "object")
    decoder.check(type(node[5]) is list and all(map(is_field_name, node[5])), "attribute name")
    decoder.check(type(node[6]) is list and len(node[5]) == len(node[6]), "attribute name")
    base: Any = _DERIVED[node[3]]
    cls: Any = _class(decoder, node)
    decoder.check(cls is None or _derived_from(cls) is base, "object")
    is_late = base in (list, dict, set)
    # Made and filled by the base itself, past what the class overrides.
    made: Any = None
    if is_late:
        made = _placeholder(decoder, node) if cls is None else base.__new__(cls)
        decoder.place(made)
    content = decoder.value(node[4], depth)
    fields = dict(zip(node[5], decoder.parts(node[6], depth), strict=True))
    if base in (int, float, str):
        decoder.check(type(content) is base, "object")
    else:
        decoder.check(type(content) is list, "object")
        if base in (dict, set, frozenset):
            pairs = all(type(item) is tuple and len(item) == 2 for item in content)
            decoder.check(base is not dict or pairs, "object")
            decoder.keys([item[0] for item in content] if base is dict else content)
    if not is_late:
        made = _placeholder(decoder, node) if cls is None else base.__new__(cls, content)
        decoder.place(made)
    if cls is None:
        return made
    if is_late:
        {list: list.extend, dict: dict.update, set: set.update}[base](made, content)  # type: ignore[operator]  # each its own
    _set_fields(made, cls, fields)
    return made


def _set_fields(made: Any, cls: type, fields: Mapping[str, Any]) -> None:
    plan = Plan(cls, _slot_members(cls), lambda: made)
    for name, value in fields.items():
        plan.fill(made, name, value)


def _decode_flags(decoder: Decoder, cls: Any, names: list[Any]) -> object:
    members = getattr(cls, "__members__", {})
    decoder.check(isinstance(cls, enum.EnumMeta) and _are_plain_flags(cls), "enum")
    decoder.check(0 < len(names) <= len(members), "enum")
    decoder.check(all(type(name) is str and name in members for name in names), "enum")
    return functools.reduce(operator.or_, [members[name] for name in names])


def _decode_enum(decoder: Decoder, node: list[Any], depth: int) -> object:
    decoder.check(len(node) == 4 and type(node[3]) in (str, list), "enum")
    cls = _class(decoder, node)
    if cls is None:
        return _placeholder(decoder, node)
    if type(node[3]) is list:
        return _decode_flags(decoder, cls, node[3])
    if not isinstance(cls, enum.EnumMeta) or node[3] not in cls.__members__:
        raise CodecError(f"{node[2]!r} has no member {node[3]!r} here.")
    return cls.__members__[node[3]]


def _decode_named_tuple(decoder: Decoder, node: list[Any], depth: int) -> object:
    cls = _class(decoder, node)
    parts = [decoder.value(part, depth) for part in node[3:]]
    if cls is None:
        return decoder.place(_placeholder(decoder, node))
    fields = getattr(cls, "_fields", None)
    is_plain = issubclass(cls, tuple) and not hasattr(cls, "__del__")
    if not is_plain or type(fields) is not tuple or len(fields) != len(parts):
        raise CodecError(f"{node[2]!r} is another named tuple here.")
    return decoder.place(tuple.__new__(cls, parts))


def _decode_definition(decoder: Decoder, node: list[Any], depth: int) -> object:
    decoder.check(len(node) == 3 and type(node[1]) is str and type(node[2]) is str, "definition")
    found = decoder.classes.get((node[1], node[2]))
    if found is None:
        decoder.unresolved.add((node[1], node[2]))
        return _placeholder(decoder, node)
    return found


def _decode_exception(decoder: Decoder, node: list[Any], depth: int) -> object:
    decoder.check(len(node) == 6 and type(node[3]) is list, "exception")
    if node[1] == "builtins":
        decoder.check(type(node[2]) is str, "exception")
        found: Any = vars(builtins).get(node[2])
        decoder.check(isinstance(found, type) and issubclass(found, BaseException), "exception")
        cls: Any = found
    else:
        cls = _class(decoder, node)
        decoder.check(cls is None or issubclass(cls, BaseException), "exception")
        decoder.check(not hasattr(cls, "__del__"), "exception")
    arguments = decoder.parts(node[3], depth)
    made = decoder.place(
        _placeholder(decoder, node) if cls is None else bare_exception(cls, arguments)
    )
    fields, notes = decoder.parts(node[4:], depth)
    decoder.check(fields is None or type(fields) is dict, "exception")
    decoder.check(notes is None or type(notes) is list, "exception")
    if cls is not None:
        decoder.check(all(map(is_field_name, fields or ())), "exception")
        vars(made).update(fields or {})
        for note in notes or ():
            made.add_note(decoder.text(note))
    return made


def bare_exception(cls: type[BaseException], arguments: list[Any]) -> BaseException:
    """Return an instance made by the builtin that lays it out: no code of the user is run."""
    base = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    made = base.__new__(cls, *arguments)
    if base is cls:
        base.__init__(made, *arguments)
    return made


DECODERS: Final = {
    tags.DERIVED: _decode_derived,
    tags.EXCEPTION: _decode_exception,
    tags.OBJECT: _decode_object,
    tags.ENUM: _decode_enum,
    tags.NAMED_TUPLE: _decode_named_tuple,
    tags.DEFINITION: _decode_definition,
}
