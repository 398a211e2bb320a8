"""Arrays and numpy scalars: a dtype from a closed grammar, a shape, and raw bytes."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

from . import code_values, random_values, tags, user_values
from .failures import Unsupported
from .libraries import load, loaded

if TYPE_CHECKING:
    from .decode import Decoder
    from .encode import Encoder

_OBJECT: Final = "O"
_DTYPE: Final = re.compile(
    r"[<>|=]?(?:b1|[iu][1248]|f[248]|c(?:8|16)|[SU]\d{1,7}"
    r"|[mM]8(?:\[\d{0,6}(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)\Z"
)
_MAX_FIELDS: Final = 1_000
_MAX_ITEM_BYTES: Final = 1 << 24
_MAX_DTYPE_NESTING: Final = 8
_MAX_ELEMENTS: Final = 1 << 62
_MAX_CODE_POINT: Final = 0x10FFFF


def encode_numpy(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of an array or a numpy scalar."""
    numpy = loaded("numpy")
    kind = type(value)
    if kind is numpy.ndarray:
        return encode_array(encoder, value, depth)
    if kind.__name__ == "MaskedArray" and kind.__module__.startswith("numpy.ma"):
        return _encode_masked(encoder, value, depth)
    if kind is numpy.memmap:
        return encode_array(encoder, numpy.asarray(value), depth)
    if kind in (numpy.matrix, numpy.recarray):
        view = encode_array(encoder, numpy.asarray(value), depth)
        encoder.mark(value)
        return [tags.ARRAY_VIEW, kind.__name__, view]
    if isinstance(value, numpy.generic) and not value.dtype.hasobject and not value.dtype.names:
        return [tags.NUMPY_SCALAR, _dtype_node(value.dtype), value.tobytes()]
    if isinstance(value, numpy.dtype):
        return [tags.NUMPY_DTYPE, _OBJECT if value.kind == "O" else _dtype_node(value)]
    if kind is numpy.vectorize:
        return code_values.encode_vectorized(encoder, value, depth)
    return random_values.encode_generator(encoder, value, depth)


def encode_array(encoder: Encoder, array: Any, depth: int) -> list[Any]:
    """Return the node of a plain ``ndarray``."""
    encoder.mark(array)
    shape = list(array.shape)
    if array.dtype.hasobject:
        if array.dtype.names or array.dtype.subdtype:
            raise Unsupported("objects inside a structured dtype")
        parts = [encoder.node(part, depth) for part in array.ravel().tolist()]
        return [tags.ARRAY, _OBJECT, shape, parts]
    dtype = _dtype_node(array.dtype)
    if not array.size or not array.itemsize:
        return [tags.ARRAY, dtype, shape, encoder.blob(b"")]
    # An array in Fortran's order comes home in it: not copied, and sums come out the same.
    is_turned = array.flags.f_contiguous and not array.flags.c_contiguous
    straight = array.T if is_turned else loaded("numpy").ascontiguousarray(array)
    node = [tags.ARRAY, dtype, shape, encoder.blob(straight.reshape(-1).view("u1"))]
    return [*node, 1] if is_turned else node


def _dtype_node(dtype: Any) -> Any:
    if dtype.names:
        if dtype.hasobject or any(len(dtype.fields[name]) == 3 for name in dtype.names):
            raise Unsupported("titled fields")
        fields = [
            [name, _dtype_node(dtype.fields[name][0]), dtype.fields[name][1]]
            for name in dtype.names
        ]
        return [*fields, dtype.itemsize]
    if dtype.subdtype:
        return {"b": _dtype_node(dtype.subdtype[0]), "s": list(dtype.subdtype[1])}
    if not _DTYPE.match(dtype.str):
        raise Unsupported(f"dtype {dtype}")
    return dtype.str


def _encode_masked(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    if value.dtype.hasobject or value.dtype.names:
        raise Unsupported("a masked array of records or objects")
    numpy = loaded("numpy")
    data = encode_array(encoder, numpy.asarray(value.data), depth)
    is_masked = value.mask is not numpy.ma.nomask
    mask = encode_array(encoder, numpy.asarray(value.mask), depth) if is_masked else None
    fill = numpy.asarray(value.fill_value, value.dtype).tobytes()
    encoder.mark(value)
    return [tags.MASKED_ARRAY, data, mask, fill]


def has_same_form(old: Any, made: Any) -> bool:
    """Return whether ``old`` is an array that ``made`` can be written into."""
    numpy = loaded("numpy")
    if numpy is None or type(old) is not numpy.ndarray or type(made) is not numpy.ndarray:
        return False
    return bool(old.dtype == made.dtype and old.shape == made.shape and old.flags.writeable)


# ---------------------------------------------------------------- decode


def decode_array(decoder: Decoder, node: list[Any], depth: int) -> Any:
    """Return the array of ``node``, writable; its memory is a copy, or its part of the message."""
    numpy = load("numpy")
    decoder.check(len(node) in (4, 5) and node[0] == tags.ARRAY, "array")
    is_turned = len(node) == 5
    decoder.check(not is_turned or node[4] == 1, "array")
    if node[1] == _OBJECT:
        return _decode_objects(decoder, node, depth)
    dtype = _dtype(decoder, node[1])
    shape, size = _shape(decoder, node[2], dtype.itemsize)
    raw = decoder.raw(node[3])
    decoder.check(len(raw) == size, "an array that is not as long as its shape says")
    if size == 0:
        return decoder.place(numpy.zeros(shape, dtype))
    flat = numpy.frombuffer(decoder.own(node[3]), numpy.uint8).view(dtype)
    array = flat.reshape(shape, order="F" if is_turned else "C")
    _check_contents(decoder, array)
    return decoder.place(array)


def _decode_masked(decoder: Decoder, node: list[Any], depth: int) -> Any:
    numpy = load("numpy")
    decoder.check(len(node) == 4 and type(node[3]) is bytes, "masked array")
    data = _plain_array(decoder, node[1], depth)
    mask = numpy.ma.nomask if node[2] is None else _plain_array(decoder, node[2], depth)
    has_mask = node[2] is None or (mask.dtype == bool and mask.shape == data.shape)
    decoder.check(has_mask and len(node[3]) == data.itemsize, "masked array")
    fill = numpy.frombuffer(node[3], data.dtype)
    _check_contents(decoder, fill)
    return decoder.place(numpy.ma.MaskedArray(data, mask=mask, fill_value=fill[0]))


def _plain_array(decoder: Decoder, node: Any, depth: int) -> Any:
    decoder.check(type(node) is list and node and node[0] == tags.ARRAY, "array")
    array = decode_array(decoder, node, depth)
    decoder.check(not array.dtype.hasobject and not array.dtype.names, "array")
    return array


def _decode_view(decoder: Decoder, node: list[Any], depth: int) -> Any:
    numpy = load("numpy")
    decoder.check(len(node) == 3 and node[1] in ("matrix", "recarray"), "array")
    decoder.check(type(node[2]) is list and node[2] and node[2][0] == tags.ARRAY, "array")
    array = decode_array(decoder, node[2], depth)
    if node[1] == "matrix":
        decoder.check(array.ndim == 2 and not array.dtype.names, "matrix")
        return decoder.place(array.view(numpy.matrix))
    decoder.check(array.dtype.names, "records")
    return decoder.place(array.view(numpy.recarray))


def _decode_objects(decoder: Decoder, node: list[Any], depth: int) -> Any:
    shape, count = _shape(decoder, node[2], 1)
    parts = node[3]
    decoder.check(type(parts) is list and len(parts) == count, "object array")
    flat = load("numpy").empty(count, object)
    array = flat.reshape(shape)
    seen = decoder.place(array)
    for index, part in enumerate(parts):
        flat[index] = decoder.value(part, depth)
    return seen


def _decode_scalar(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 3 and type(node[1]) is str and type(node[2]) is bytes, "scalar")
    dtype = _dtype(decoder, node[1])
    decoder.check(len(node[2]) == dtype.itemsize, "scalar")
    array = load("numpy").frombuffer(node[2], dtype)
    _check_contents(decoder, array)
    return array[0]


def _decode_dtype(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 2, "dtype")
    return load("numpy").dtype(object) if node[1] == _OBJECT else _dtype(decoder, node[1])


def _dtype(decoder: Decoder, node: Any, nesting: int = 0) -> Any:
    numpy = load("numpy")
    decoder.check(nesting < _MAX_DTYPE_NESTING, "dtype")
    if type(node) is str:
        decoder.check(_DTYPE.match(node), "dtype")
        dtype = numpy.dtype(node)
    elif type(node) is list:
        dtype = _structured(decoder, node, nesting)
    else:
        is_subarray = type(node) is dict and node.keys() == {"b", "s"}
        decoder.check(is_subarray and type(node["s"]) is list, "dtype")
        decoder.check(len(node["s"]) <= _MAX_DTYPE_NESTING, "dtype")
        base = _dtype(decoder, node["b"], nesting + 1)
        sides = [decoder.integer(side, 1, _MAX_ITEM_BYTES) for side in node["s"]]
        decoder.check(math.prod(sides) * base.itemsize <= _MAX_ITEM_BYTES, "dtype")
        dtype = numpy.dtype((base, tuple(sides)))
    # Without a size per item a few bytes could claim any number of items.
    decoder.check(not dtype.hasobject and dtype.itemsize > 0, "dtype")
    return dtype


def _structured(decoder: Decoder, node: list[Any], nesting: int) -> Any:
    decoder.check(1 < len(node) <= _MAX_FIELDS + 1, "dtype")
    size = decoder.integer(node[-1], 1, _MAX_ITEM_BYTES)
    names, formats, offsets = [], [], []
    for field in node[:-1]:
        decoder.check(type(field) is list and len(field) == 3, "dtype")
        inner = _dtype(decoder, field[1], nesting + 1)
        offset = decoder.integer(field[2], 0, size)
        decoder.check(offset + inner.itemsize <= size, "dtype")
        names.append(decoder.text(field[0], 1_000))
        formats.append(inner)
        offsets.append(offset)
    form = {"names": names, "formats": formats, "offsets": offsets, "itemsize": size}
    return load("numpy").dtype(form)


def _shape(decoder: Decoder, node: Any, item_bytes: int) -> tuple[tuple[int, ...], int]:
    decoder.check(type(node) is list and len(node) <= decoder.limits.dimensions, "shape")
    sides = [decoder.integer(side, 0, 1 << 40) for side in node]
    decoder.check(math.prod(max(1, side) for side in sides) < _MAX_ELEMENTS, "shape")
    return tuple(sides), item_bytes * math.prod(sides)


def _check_contents(decoder: Decoder, array: Any) -> None:
    """Refuse bytes that numpy takes on trust: other bools than 0 and 1, no code points."""
    numpy = load("numpy")
    if array.dtype.names:
        for name in array.dtype.names:
            _check_contents(decoder, array[name])
    elif array.dtype.kind == "b":
        decoder.check(numpy.ascontiguousarray(array).view("u1").max(initial=0) <= 1, "bool")
    elif array.dtype.kind == "U":
        four = numpy.dtype("u4").newbyteorder(array.dtype.byteorder)
        points = numpy.ascontiguousarray(array).reshape(-1).view(four)
        decoder.check(points.max(initial=0) <= _MAX_CODE_POINT, "code point")


def is_of_objects(array: Any) -> bool:
    """Return whether ``array``, of numpy or pandas, has dtype object."""
    return str(getattr(array, "dtype", "")) == "object"


def check_hashable_objects(decoder: Decoder, array: Any) -> None:
    """Refuse object arrays whose elements would run the user's code when they are hashed."""
    if is_of_objects(array):
        decoder.keys(list(array))


def are_hashable_objects(array: Any) -> bool:
    """Return whether ``check_hashable_objects`` will accept what is encoded from ``array``."""
    return not is_of_objects(array) or user_values.has_inert_keys(list(array))


DECODERS: Final = {
    tags.ARRAY: decode_array,
    tags.NUMPY_SCALAR: _decode_scalar,
    tags.NUMPY_DTYPE: _decode_dtype,
    tags.MASKED_ARRAY: _decode_masked,
    tags.ARRAY_VIEW: _decode_view,
}
