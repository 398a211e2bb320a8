"""Random generators: the state of a known kind, every number of it checked.

A cell that draws from a generator of the notebook changes it, so it comes home. numpy takes
positions inside a state on trust; one out of range would read foreign memory.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

from . import tags
from .failures import CodecError, Unsupported
from .libraries import load, loaded

if TYPE_CHECKING:
    from .decode import Decoder
    from .encode import Encoder

_U32: Final = (0, (1 << 32) - 1)
_U128: Final = (0, (1 << 128) - 1)
_FLAG: Final = (0, 1)
_TAIL: Final[dict[str, Any]] = {"has_uint32": _FLAG, "uinteger": _U32}
# A pair is the range of an int, a triple the dtype and length of an array, a dict its parts.
_PCG: Final[dict[str, Any]] = {"state": {"state": _U128, "inc": _U128}, **_TAIL}
_FORMS: Final[dict[str, dict[str, Any]]] = {
    "PCG64": _PCG,
    "PCG64DXSM": _PCG,
    "MT19937": {"state": {"key": ("array", "<u4", 624), "pos": (0, 624)}},
    "SFC64": {"state": {"state": ("array", "<u8", 4)}, **_TAIL},
    "Philox": {
        "state": {"counter": ("array", "<u8", 4), "key": ("array", "<u8", 2)},
        "buffer": ("array", "<u8", 4),
        "buffer_pos": (0, 4),
        **_TAIL,
    },
}
_LEGACY: Final[dict[str, Any]] = {**_FORMS["MT19937"], "has_gauss": _FLAG, "gauss": float}


def encode_generator(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of a numpy ``Generator`` or ``RandomState``."""
    numpy = loaded("numpy")
    if type(value) is numpy.random.Generator:
        state = dict(value.bit_generator.state)
        kind = "Generator"
    elif type(value) is numpy.random.RandomState:
        state = dict(value.get_state(legacy=False))
        kind = "RandomState"
    else:
        raise Unsupported(type(value).__qualname__)
    name = state.pop("bit_generator")
    if name not in _FORMS:
        raise Unsupported(name)
    return [tags.GENERATOR, kind, name, encoder.node(state, depth)]


def encode_random(encoder: Encoder, value: random.Random, depth: int) -> list[Any]:
    """Return the node of a ``random.Random``."""
    return [tags.RANDOM, encoder.node(value.getstate(), depth)]


def _decode_generator(decoder: Decoder, node: list[Any], depth: int) -> Any:
    numpy = load("numpy")
    decoder.check(len(node) == 4 and type(node[2]) is str and node[2] in _FORMS, "generator")
    state = decoder.value(node[3], depth)
    if node[1] == "RandomState":
        decoder.check(node[2] == "MT19937" and _has_form(state, _LEGACY), "generator")
        legacy = numpy.random.RandomState(0)
        legacy.set_state({"bit_generator": node[2], **state})
        return legacy
    decoder.check(node[1] == "Generator" and _has_form(state, _FORMS[node[2]]), "generator")
    bits = getattr(numpy.random, node[2])(0)
    bits.state = {"bit_generator": node[2], **state}
    return numpy.random.Generator(bits)


def _has_form(value: Any, form: Any) -> bool:
    match form:
        case dict():
            is_same = type(value) is dict and value.keys() == form.keys()
            return is_same and all(_has_form(value[key], form[key]) for key in form)
        case (int() as low, int() as high):
            number = value.item() if _is_numpy_integer(value) else value
            return type(number) is int and low <= number <= high
        case ("array", dtype, length):
            numpy = load("numpy")
            if type(value) is not numpy.ndarray:
                return False
            return bool(value.dtype.str == dtype and value.shape == (length,))
        case _:
            return type(value) is float


def _is_numpy_integer(value: Any) -> bool:
    numpy = loaded("numpy")
    return numpy is not None and isinstance(value, numpy.integer)


def _decode_random(decoder: Decoder, node: list[Any], depth: int) -> random.Random:
    decoder.check(len(node) == 2, "random")
    state = decoder.value(node[1], depth)
    made = random.Random(0)  # noqa: S311  # the user's own generator, whatever it is for
    try:
        made.setstate(state)
    except Exception as exc:
        raise CodecError(f"The result is malformed (random: {type(exc).__name__}).") from None
    return made


DECODERS: Final = {tags.GENERATOR: _decode_generator, tags.RANDOM: _decode_random}
