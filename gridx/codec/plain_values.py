"""Small things with plain state: iterators, namespaces, typed arrays, files in memory, captured text."""

from __future__ import annotations

import array
import io
import itertools
import sys
import types
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from . import tags
from .failures import Unsupported

if TYPE_CHECKING:
    from .decode import Decoder
    from .encode import Encoder

_OVER: Final[dict[Any, type]] = {
    type(iter([])): list,
    type(iter(())): tuple,
    type(iter("")): str,
    type(iter("é")): str,
    type(iter(b"")): bytes,
    type(iter(range(0))): range,
    type(iter(range(1 << 70))): range,
    type(reversed([])): list,
    reversed: tuple,
}
"""Iterators that know what they go over and how far they are."""
_REMAINING: Final[tuple[type, ...]] = (
    type(iter({})),
    type(iter({}.values())),
    type(iter({}.items())),
    type(iter(set())),
)
"""Iterators that tell what is left alone."""
_MADE_BY_NAME: Final[tuple[Any, ...]] = (enumerate, zip, itertools.count)
_PLAIN_OBJECT: Final = "object"
_TYPE_CODES: Final = "bBhHiIlLqQfd"
_MAX_INDEX: Final = 1 << 60
_NEWLINE: Final = "\n"


def encode_iterator(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of an iterator of the builtin containers; it is not moved on."""
    kind: Any = type(value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 3.12 warns that itertools will not do this for ever
        reduced = value.__reduce__()
    arguments = reduced[1]
    if kind in _MADE_BY_NAME:
        if len(reduced) > 2:
            raise Unsupported("an iterator with more state")
        name, parts = kind.__name__, arguments
    elif kind in _OVER and len(reduced) == 3 and type(arguments[0]) is _OVER[kind]:
        name = "reversed" if reduced[0] is reversed else "iter"
        parts = (arguments[0], reduced[2])
    else:  # an exhausted one, or one that tells what is left
        name, parts = "iter", (list(arguments[0]), 0)
    node = [tags.ITERATOR, name, *encoder.nodes(parts, depth)]
    encoder.mark(value)
    return node


def encode_plain(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of a bare object, whose identity is all that it has."""
    encoder.mark(value)
    return [tags.PLAIN, _PLAIN_OBJECT, None]


def encode_simple_namespace(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of a ``types.SimpleNamespace``."""
    encoder.mark(value)
    return [tags.PLAIN, "namespace", encoder.node(dict(vars(value)), depth)]


def encode_typed_array(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of an ``array.array`` of numbers."""
    if value.typecode not in _TYPE_CODES:
        raise Unsupported("an array of characters")
    encoder.mark(value)
    return [tags.TYPED_ARRAY, value.typecode, value.itemsize, encoder.blob(value.tobytes())]


def encode_memory_file(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of an ``io.BytesIO`` or ``io.StringIO``: its contents and position.

    Raises:
        Unsupported: it has attributes, translates line ends, or stands beyond its end.
        ValueError: it has been closed.
    """
    content, *newline, position, fields = value.__getstate__()
    if fields or newline not in ([], [_NEWLINE]) or position > len(content):
        raise Unsupported("a file in memory with more state")
    encoder.mark(value)
    node = encoder.blob(content) if type(content) is bytes else encoder.node(content, depth)
    return [tags.MEMORY_FILE, type(value).__name__, node, position]


def encode_of_ipython(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of ``lines = !command``, or of what ``%%capture`` has captured."""
    name = type(value).__name__
    if name == "SList":
        encoder.mark(value)
        return [tags.PLAIN, "lines", encoder.nodes(list(value), depth)]
    if name == "CapturedIO":
        encoder.mark(value)
        return [tags.PLAIN, "captured", encoder.nodes([value.stdout, value.stderr], depth)]
    raise Unsupported(name)


# ---------------------------------------------------------------- decode


def _decode_iterator(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) >= 2 and type(node[1]) is str, "iterator")
    parts = decoder.parts(node[2:], depth)
    match [node[1], *parts]:
        case ["iter" | "reversed", over, int() as index] if type(over) in _OVER.values():
            is_back = node[1] == "reversed"
            decoder.check(not is_back or type(over) in (list, tuple), "iterator")
            made: Any = reversed(over) if is_back else iter(over)
            decoder.check(-2 <= index <= _MAX_INDEX, "iterator")
            made.__setstate__(index)
        case ["enumerate", inner, int() as start] if _is_iterator(inner):
            made = enumerate(inner, start)
        case ["zip", *inners] if all(map(_is_iterator, inners)):
            made = zip(*inners)  # noqa: B905  # the user's own may be of unequal length
        case ["count", (int() | float()) as start, *step] if len(step) < 2:
            decoder.check(all(type(part) in (int, float) for part in step), "iterator")
            made = itertools.count(start, *step)
        case _:
            decoder.check(False, "iterator")
    return decoder.place(made)


def _is_iterator(value: Any) -> bool:
    return type(value) in _OVER or type(value) in _MADE_BY_NAME


def _decode_plain(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 3, "object")
    if node[1] == _PLAIN_OBJECT:
        return decoder.place(object())
    if node[1] == "namespace":
        made = decoder.place(types.SimpleNamespace())
        fields = decoder.value(node[2], depth)
        decoder.check(type(fields) is dict and all(type(key) is str for key in fields), "object")
        vars(made).update(fields)
        return made
    decoder.check(type(node[2]) is list, "object")
    number = decoder.reserve()
    parts = decoder.parts(node[2], depth)
    if node[1] == "lines":
        kind = getattr(sys.modules.get("IPython.utils.text"), "SList", list)
        return decoder.settle(number, kind(parts))
    is_text = len(parts) == 2 and all(type(part) is str for part in parts)
    decoder.check(node[1] == "captured" and is_text, "object")
    module = sys.modules.get("IPython.utils.capture")
    if module is None:
        return decoder.settle(number, parts)
    return decoder.settle(number, module.CapturedIO(*map(io.StringIO, parts), None))


def _decode_typed_array(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 4 and type(node[1]) is str and len(node[1]) == 1, "array")
    decoder.check(node[1] in _TYPE_CODES, "array")
    made = array.array(node[1])
    raw = decoder.raw(node[3])
    decoder.check(node[2] == made.itemsize and len(raw) % made.itemsize == 0, "array")
    made.frombytes(raw)
    return decoder.place(made)


def _decode_memory_file(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 4 and node[1] in ("BytesIO", "StringIO"), "file in memory")
    made: io.BytesIO | io.StringIO
    if node[1] == "BytesIO":
        content = decoder.raw(node[2])
        made = io.BytesIO(content)
    else:
        content = decoder.value(node[2], depth)
        decoder.check(type(content) is str, "file in memory")
        made = io.StringIO(content)
    # Beyond the end the next write would fill what lies between.
    made.seek(decoder.integer(node[3], 0, len(content)))
    return decoder.place(made)


ENCODERS: Final[dict[type, Callable[[Encoder, Any, int], Any]]] = {
    **dict.fromkeys(_OVER, encode_iterator),
    **dict.fromkeys(_REMAINING, encode_iterator),
    **dict.fromkeys(_MADE_BY_NAME, encode_iterator),
    object: encode_plain,
    types.SimpleNamespace: encode_simple_namespace,
    array.array: encode_typed_array,
    io.BytesIO: encode_memory_file,
    io.StringIO: encode_memory_file,
}

DECODERS: Final = {
    tags.ITERATOR: _decode_iterator,
    tags.PLAIN: _decode_plain,
    tags.TYPED_ARRAY: _decode_typed_array,
    tags.MEMORY_FILE: _decode_memory_file,
}
